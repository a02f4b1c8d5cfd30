//! A delayed replica is used where staleness is allowed, and never where it is not.

use std::time::Duration;

use pim_core::id::Id;
use pim_data::consistency::{Consistency, ConsistencyToken};
use pim_data::repository::Page;

use super::world::{Account, CustomerNote, ShopResource, World, cx, read, tell, write};

async fn lagging() -> World {
    World::with(2, |mut settings| {
        settings.replica_delay = Duration::from_secs(10);
        settings
    })
    .await
}

async fn points(world: &World, account: &Account, consistency: &Consistency) -> Option<i64> {
    let permit = read(ShopResource::Account);
    let row = world.cluster.read::<Account>(&cx(), &permit, account.id, consistency).await.expect("reads");
    row.map(|row| row.points)
}

#[tokio::test]
async fn a_delayed_replica_serves_the_past_only_to_those_who_allow_it() {
    let world = lagging().await;
    let account = world.register().await;
    assert_eq!(points(&world, &account, &Consistency::Eventual).await, Some(0), "the snapshot is taken here");
    let token = world.change(account.id, |account| account.points = 5).await.expect("commits").token;
    assert_eq!(points(&world, &account, &Consistency::Eventual).await, Some(0));
    assert_eq!(points(&world, &account, &Consistency::Bounded(Duration::from_secs(10))).await, Some(0));
    assert_eq!(points(&world, &account, &Consistency::Bounded(Duration::from_secs(1))).await, Some(5));
    assert_eq!(points(&world, &account, &Consistency::Strong).await, Some(5));
    assert_eq!(points(&world, &account, &Consistency::ReadYourWrites(token)).await, Some(5));
    let nothing_seen = ConsistencyToken::default();
    assert_eq!(points(&world, &account, &Consistency::ReadYourWrites(nothing_seen)).await, Some(0));
}

#[tokio::test]
async fn a_row_that_the_replica_does_not_know_yet_is_read_by_its_writer() {
    let world = lagging().await;
    let first = world.register().await;
    assert_eq!(points(&world, &first, &Consistency::Eventual).await, Some(0));
    let mut unit = world.cluster.begin(&cx(), first.id);
    let note = CustomerNote {
        id: Id::child_of(first.id.bucket(), unit.at()),
        version: 0,
        customer: first.id,
        account: first.id,
        text: "new".to_owned(),
    };
    unit.save(&write(ShopResource::Note), &note).expect("saves");
    tell(&mut unit, "noted");
    let token = unit.commit().await.expect("commits").token;
    let permit = read(ShopResource::Note);
    let get = async |consistency| world.cluster.read::<CustomerNote>(&cx(), &permit, note.id, &consistency).await;
    assert_eq!(get(Consistency::Eventual).await.expect("reads"), None);
    assert!(get(Consistency::ReadYourWrites(token.clone())).await.expect("reads").is_some());
    let page = Page { after: None, limit: 10 };
    let own = Consistency::ReadYourWrites(token);
    let listed = world.cluster.list::<CustomerNote>(&cx(), &permit, first.id, page, &own).await.expect("lists");
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn the_snapshot_is_let_go_when_its_time_is_up() {
    let world = World::with(1, |mut settings| {
        settings.replica_delay = Duration::from_millis(30);
        settings
    })
    .await;
    let account = world.register().await;
    assert_eq!(points(&world, &account, &Consistency::Eventual).await, Some(0));
    world.change(account.id, |account| account.points = 5).await.expect("commits");
    let give_up = std::time::Instant::now() + Duration::from_secs(5);
    while points(&world, &account, &Consistency::Eventual).await != Some(5) {
        assert!(std::time::Instant::now() < give_up, "the replica never caught up");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn lists_are_paged_by_id_and_stay_with_their_home() {
    let world = World::new(2).await;
    let (mine, other) = (world.register().await, world.register().await);
    for (owner, count) in [(&mine, 5), (&other, 2)] {
        let mut unit = world.cluster.begin(&cx(), owner.id);
        for _ in 0..count {
            let id = Id::child_of(owner.id.bucket(), unit.at());
            let note = CustomerNote { id, version: 0, customer: owner.id, account: owner.id, text: String::new() };
            unit.save(&write(ShopResource::Note), &note).expect("saves");
        }
        tell(&mut unit, "noted");
        unit.commit().await.expect("commits");
    }
    let permit = read(ShopResource::Note);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = Page { after, limit: 2 };
        let listed = world
            .cluster
            .list::<CustomerNote>(&cx(), &permit, mine.id, page, &Consistency::Strong)
            .await
            .expect("lists");
        let Some(last) = listed.last() else { break };
        after = Some(last.id.uuid());
        seen.extend(listed.iter().map(|note| note.id));
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted());
}
