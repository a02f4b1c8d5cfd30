//! How often a program waits for its server, counted on the wire.

use std::sync::Arc;
use std::time::Duration;

use pim_core::id::Id;
use pim_data::consistency::Consistency;
use pim_data::repository::Page;
use pim_data::unit::UnitError;

use super::world::{Account, Customer, CustomerNote, ShopResource, World, cx, keyed, read, tell, write};
use crate::wire::{Trip, Wire};

/// A world whose one shard is behind the wire, with everything prepared on its one connection.
async fn counted(idle_check_after: Duration) -> (World, Wire, Id<Customer>) {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(1, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
        servers.settings.connections_max = 1;
        servers.settings.idle_check_after = idle_check_after;
        // Probes are trips too, on a connection of their own.
        servers.settings.probe_every = Duration::from_secs(3600);
        settings
    })
    .await;
    let account = world.register().await;
    for _ in 0..2 {
        everything(&world, account.id, async |_| {}).await;
    }
    wire.begin();
    (world, wire, account.id)
}

/// What a program does, with a word after each.
async fn everything(world: &World, id: Id<Customer>, done: impl AsyncFn(&'static str)) {
    let (cluster, permit) = (&world.cluster, write(ShopResource::Account));
    world.register().await;
    done("one new row with its event, history, audit record and number").await;
    let cx = keyed(&uuid::Uuid::new_v4().to_string(), "{}");
    let mut unit = cluster.begin(&cx, id);
    let mut account = unit.load::<Account>(&permit, id).await.expect("loads").expect("is there");
    done("its load, with the idempotency record, context, fence and number").await;
    account.points += 1;
    unit.save(&permit, &account).expect("saves");
    tell(&mut unit, "changed");
    tell(&mut unit, "changed again");
    unit.answer(200, &serde_json::json!({}));
    unit.commit().await.expect("commits");
    done("one changed row with two events and a stored answer").await;
    let mut unit = cluster.begin(&cx, id);
    assert!(matches!(unit.load::<Account>(&permit, id).await, Err(UnitError::Replay(_))));
    done("a retry").await;
    let mut unit = cluster.begin(&super::world::cx(), id);
    for _ in 0..3 {
        let child = Id::child_of(id.bucket(), unit.at());
        let note = CustomerNote { id: child, version: 0, customer: id, account: id, text: "x".to_owned() };
        unit.save(&write(ShopResource::Note), &note).expect("saves");
    }
    tell(&mut unit, "noted");
    unit.commit().await.expect("commits");
    done("three rows").await;
    let permit = read(ShopResource::Account);
    let found = cluster.read::<Account>(&cx, &permit, id, &Consistency::Strong).await.expect("reads");
    assert!(found.is_some());
    done("a read with context, visibility and number").await;
    let page = Page { after: None, limit: 2 };
    let notes = read(ShopResource::Note);
    cluster.list::<CustomerNote>(&cx, &notes, id, page, &Consistency::Strong).await.expect("lists");
    done("a list").await;
    cluster.history::<Account>(&cx, &permit, id, Page::FIRST).await.expect("reads");
    done("a history").await;
}

#[tokio::test]
async fn one_entity_is_one_trip_and_its_load_another() {
    let (world, wire, id) = counted(Duration::from_secs(60)).await;
    let expect = async |what: &'static str| {
        let (trips, pings) = wire.trips();
        wire.begin();
        assert_eq!(pings, 0, "{what}");
        if what == "three rows" {
            let [Trip::Script(first), Trip::Run, Trip::Run, Trip::Run, Trip::Script(last)] = &trips[..] else {
                panic!("{what}: {trips:?}")
            };
            assert!(first.starts_with("BEGIN; SELECT * FROM public.pim_enter("), "{first}");
            assert_eq!(last, "COMMIT");
        } else if what == "a retry" {
            assert_eq!(trips, [Trip::Run, Trip::Run], "the stored answer, and a commit of its own behind it");
        } else {
            assert_eq!(trips, [Trip::Run], "{what}");
        }
    };
    everything(&world, id, expect).await;
}

#[tokio::test]
async fn a_ping_is_the_only_other_trip_and_comes_once_for_each_loan() {
    let (world, wire, id) = counted(Duration::ZERO).await;
    let expect = async |what: &'static str| {
        let (trips, pings) = wire.trips();
        wire.begin();
        let expected = match what {
            "three rows" => (5, 1),
            "a retry" => (2, 2),
            _ => (1, 1),
        };
        assert_eq!((trips.len(), pings), expected, "{what}");
    };
    everything(&world, id, expect).await;
}

#[tokio::test]
async fn a_unit_that_is_dropped_makes_no_trip() {
    let (world, wire, id) = counted(Duration::from_secs(60)).await;
    let mut unit = world.cluster.begin(&cx(), id);
    tell(&mut unit, "never");
    drop(unit);
    assert_eq!(wire.trips(), (Vec::new(), 0));
}
