//! Every change leaves a period, also one typed by hand, and the past can be read as of any instant.

use std::time::Duration;

use super::world::{Account, CustomerNote, ShopResource, World, cx, read, tell, write};

#[tokio::test]
async fn each_version_is_one_period_and_as_of_finds_it() {
    let (world, clock) = World::with_clock(2).await;
    let account = world.register().await;
    let (first, permit) = (clock.now(), read(ShopResource::Account));
    clock.advance(Duration::from_secs(10));
    world.change(account.id, |account| account.points = 7).await.expect("commits");
    let context = cx();
    for (at, points) in [(first, Some(0)), (first.plus(Duration::from_secs(9)), Some(0)), (clock.now(), Some(7))] {
        let row = world.cluster.as_of::<Account>(&context, &permit, account.id, at).await.expect("reads");
        assert_eq!(row.map(|row| row.points), points, "{at}");
    }
    let before = world.cluster.as_of::<Account>(&context, &permit, account.id, first.minus(Duration::from_micros(1)));
    assert_eq!(before.await.expect("reads"), None);
    let periods = world.cluster.history::<Account>(&context, &permit, account.id).await.expect("reads");
    assert_eq!(periods.len(), 2);
    assert_eq!(periods[0].valid_to, Some(periods[1].valid_from));
    assert_eq!(periods[1].valid_to, None);
}

#[tokio::test]
async fn hand_typed_sql_leaves_a_period_too() {
    let world = World::new(1).await;
    let account = world.register().await;
    world.raw(account.id, "UPDATE account_row SET points = 1").await.expect("runs");
    world.raw(account.id, "UPDATE account_row SET points = 2").await.expect("runs");
    let permit = read(ShopResource::Account);
    let periods = world.cluster.history::<Account>(&cx(), &permit, account.id).await.expect("reads");
    let points: Vec<_> = periods.iter().map(|period| period.row.points).collect();
    assert_eq!(points, [0, 1, 2]);
}

#[tokio::test]
async fn periods_begin_later_than_the_one_before_even_when_the_clock_stands_still() {
    let (world, _clock) = World::with_clock(1).await;
    let account = world.register().await;
    for points in 1..=3 {
        world.change(account.id, |account| account.points = points).await.expect("commits");
    }
    let permit = read(ShopResource::Account);
    let periods = world.cluster.history::<Account>(&cx(), &permit, account.id).await.expect("reads");
    assert_eq!(periods.len(), 4);
    assert!(periods.windows(2).all(|two| two[0].valid_from < two[1].valid_from));
    assert!(periods.windows(2).all(|two| two[0].valid_to == Some(two[1].valid_from)));
}

#[tokio::test]
async fn a_deleted_row_ends_its_last_period() {
    let world = World::new(1).await;
    let account = world.register().await;
    let mut unit = world.cluster.begin(&cx(), account.id);
    let note = CustomerNote {
        id: pim_core::id::Id::child_of(account.id.bucket(), unit.at()),
        version: 0,
        customer: account.id,
        account: account.id,
        text: "gone soon".to_owned(),
    };
    unit.save(&write(ShopResource::Note), &note).expect("saves");
    tell(&mut unit, "noted");
    unit.commit().await.expect("commits");
    world.raw(account.id, "DELETE FROM note_row").await.expect("runs");
    let periods = world.cluster.history::<CustomerNote>(&cx(), &read(ShopResource::Note), note.id).await;
    assert!(periods.expect("reads")[0].valid_to.is_some());
}
