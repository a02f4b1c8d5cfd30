//! A connection that breaks around the commit: whether it took place is found out, not guessed.

use std::sync::Arc;

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::signal::SignalRegistry;
use pim_data::signals::DataSignals;
use pim_data::unit::{Committed, Tries, UnitError};
use serde_json::json;

use super::world::{Account, Customer, CustomerNote, ShopResource, World, cx, keyed, tell, write};
use crate::wire::{Cut, Trip, Wire};

async fn behind_wire() -> (World, Wire, Id<Customer>) {
    behind_wire_told(DataSignals::default()).await
}

async fn behind_wire_told(signals: DataSignals) -> (World, Wire, Id<Customer>) {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(1, |mut settings| {
        settings.signals = signals;
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
        settings
    })
    .await;
    let id = world.register().await.id;
    for rows in [0, 2] {
        run(&world, &cx(), id, rows, &wire, None).await.expect("everything is prepared now");
    }
    (world, wire, id)
}

/// One run of a unit that adds a point and so many notes; the connection breaks with its last trip.
async fn run(
    world: &World,
    cx: &RequestContext,
    id: Id<Customer>,
    notes: usize,
    wire: &Wire,
    cut: Option<Cut>,
) -> Result<Committed, UnitError> {
    let mut unit = world.cluster.begin(cx, id);
    let permit = write(ShopResource::Account);
    let mut account = unit.load::<Account>(&permit, id).await?.expect("is there");
    account.points += 1;
    unit.save(&permit, &account)?;
    for _ in 0..notes {
        let child = Id::child_of(id.bucket(), unit.at());
        let note = CustomerNote { id: child, version: 0, customer: id, account: id, text: "x".to_owned() };
        unit.save(&write(ShopResource::Note), &note)?;
    }
    tell(&mut unit, "changed");
    if cx.idempotency().is_some() {
        unit.answer(200, &json!({"points": account.points}));
    }
    match cut {
        Some(cut) if notes == 0 => wire.cut_next(cut, |trip| *trip == Trip::Run),
        Some(cut) => wire.cut_next(cut, |trip| *trip == Trip::Script("COMMIT".to_owned())),
        None => {}
    }
    unit.commit().await
}

#[tokio::test]
async fn the_idempotency_record_tells_and_there_is_one_effect() {
    let (world, wire, id) = behind_wire().await;
    let mut points = 2;
    for notes in [0, 2] {
        for cut in [Cut::Unseen, Cut::Unanswered] {
            let key = format!("k-{notes}-{cut:?}");
            let request = keyed(&key, "{}");
            let first = run(&world, &request, id, notes, &wire, Some(cut)).await;
            assert!(wire.has_cut(), "{key}");
            if cut == Cut::Unanswered {
                // The server had done it: found out without another run.
                assert!(first.is_ok(), "{key}: {first:?}");
            } else {
                let Err(error) = first else { panic!("{key}: {first:?}") };
                assert!(Tries::of(&world.cluster, &request).again(&error).await, "{key}: {error:?}");
                run(&world, &request, id, notes, &wire, None).await.expect("the second run commits");
            }
            points += 1;
            let again = run(&world, &keyed(&key, "{}"), id, notes, &wire, None).await;
            let Err(UnitError::Replay(answer)) = again else { panic!("{key}: {again:?}") };
            assert_eq!(answer.body, json!({"points": points}), "{key}");
            assert_eq!(world.count(id, "SELECT points FROM account_row").await, points, "{key}");
            assert_eq!(world.count(id, "SELECT n FROM key_head").await, points + 1, "{key}");
        }
    }
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

#[tokio::test]
async fn without_a_record_it_is_said_that_nobody_knows() {
    let mut registry = SignalRegistry::new();
    let signals = DataSignals::bind(&mut registry).expect("binds");
    let (world, wire, id) = behind_wire_told(signals).await;
    for (cut, points) in [(Cut::Unseen, 2), (Cut::Unanswered, 3)] {
        let outcome = run(&world, &cx(), id, 0, &wire, Some(cut)).await;
        let Err(error @ UnitError::Unknown(_)) = outcome else { panic!("{cut:?}: {outcome:?}") };
        assert!(!error.is_retryable(), "running it again could do it twice");
        assert_eq!(world.count(id, "SELECT points FROM account_row").await, points, "{cut:?}");
    }
    // Nobody's mistake, and not known to be a failure either.
    let told = registry.encode();
    assert!(told.contains("pim_data_units_total{store=\"shard\",outcome=\"unknown\"} 2"), "{told}");
    assert!(told.contains("pim_data_units_total{store=\"shard\",outcome=\"refused\"} 0"), "{told}");
}
