//! Every change leaves a period, also one typed by hand, and the past can be read as of any instant.

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_data::repository::{PAGE_MAX, Page};

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
    let periods = world.history(account.id).await;
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
    let periods = world.history(account.id).await;
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
    let periods = world.history(account.id).await;
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
    let periods = world.cluster.history::<CustomerNote>(&cx(), &read(ShopResource::Note), note.id, Page::FIRST).await;
    assert!(periods.expect("reads").periods[0].valid_to.is_some());
}

/// Guard: a row has as many versions as it likes: its history is told to the end, and as of any instant.
#[tokio::test]
async fn a_long_history_is_told_page_by_page_to_its_end() {
    const VERSIONS: usize = 2 * PAGE_MAX as usize + 2;
    let world = World::new(1).await;
    let account = world.register().await;
    let change = "UPDATE account_row SET points = points + 1, version = version + 1;";
    world.raw(account.id, &change.repeat(VERSIONS - 1)).await.expect("runs");
    let (context, permit) = (cx(), read(ShopResource::Account));
    let page = async |after, limit| {
        let page = Page { after, limit };
        world.cluster.history::<Account>(&context, &permit, account.id, page).await.expect("reads")
    };
    let (mut after, mut periods, mut pages) = (None, Vec::new(), 0);
    loop {
        let part = page(after, u32::MAX).await;
        assert!(part.periods.len() <= PAGE_MAX as usize);
        periods.extend(part.periods);
        pages += 1;
        // A change between two pages comes behind all others.
        world.change(account.id, |account| account.points += 1).await.expect("commits");
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((pages, periods.len()), (3, VERSIONS + 2));
    assert!(periods.iter().enumerate().all(|(number, period)| period.row.points as usize == number), "each once");
    assert!(periods.windows(2).all(|two| two[0].valid_to.is_none_or(|end| end == two[1].valid_from)));
    let as_of = async |at| world.cluster.as_of::<Account>(&context, &permit, account.id, at).await.expect("reads");
    for number in [0, 499, 500, 700, VERSIONS - 1] {
        let row = as_of(periods[number].valid_from).await.expect("was there");
        assert_eq!(row.points as usize, number);
    }
    let newest = as_of(Timestamp::from_micros(i64::MAX)).await.expect("is there");
    assert_eq!(newest.points as usize, VERSIONS + 2);
    // A page that ends with the newest says so.
    let last = page(Some(periods[VERSIONS - 1].valid_from), 3).await;
    assert_eq!((last.periods.len(), last.next), (3, None));
    let full = page(Some(periods[VERSIONS - 1].valid_from), 2).await;
    assert_eq!((full.periods.len(), full.next), (2, Some(periods[VERSIONS + 1].valid_from)));
}
