//! A connection that breaks around the commit: whether it took place is found out, not guessed.

use std::sync::Arc;
use std::time::Duration;

use pim_core::context::{IdempotencyScope, RequestContext};
use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_core::signal::SignalRegistry;
use pim_data::backend::{Db, DbError, ServerSettings, SqlPair, Statement, Value};
use pim_data::signals::DataSignals;
use pim_data::unit::{Committed, Tries, Unit, UnitError};
use serde_json::json;

use super::queueing::{Commit, changing, hold, hold_in, keys_waited_for, number, save_notes, soon, until};
use super::world::{Account, Customer, ShopResource, World, cx, keyed, tell, uuid, within, write};
use crate::wire::{Cut, Trip, Wanted, Wire};

/// How long a lock is waited for where somebody holds it for longer.
const LOCK_MAX: Duration = Duration::from_secs(2);

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

/// A unit that adds a point and so many notes.
async fn loaded(world: &World, cx: &RequestContext, id: Id<Customer>, notes: usize) -> Result<Unit, UnitError> {
    let mut unit = changing(world, cx, id).await?;
    save_notes(&mut unit, id, notes);
    Ok(unit)
}

/// One run of such a unit; the connection breaks with its last trip.
async fn run(
    world: &World,
    cx: &RequestContext,
    id: Id<Customer>,
    notes: usize,
    wire: &Wire,
    cut: Option<Cut>,
) -> Result<Committed, UnitError> {
    let unit = loaded(world, cx, id, notes).await?;
    match cut {
        Some(cut) if notes == 0 => wire.cut_next(cut, |trip| *trip == Trip::Run),
        Some(cut) => wire.cut_next(cut, |trip| *trip == Trip::Script("COMMIT".to_owned())),
        None => {}
    }
    unit.commit().await
}

/// Guard: `without_effect`. What was cut off before COMMIT was sent wrote nothing, so it is sent again and nobody need wonder.
#[tokio::test]
async fn what_is_cut_off_before_its_commit_is_sent_again() {
    let (world, wire, id) = behind_wire().await;
    let mut points = 2;
    for cut in [Cut::Unseen, Cut::Unanswered] {
        let with_enter: Wanted = |trip| matches!(trip, Trip::Script(text) if text.starts_with("BEGIN"));
        for wanted in [with_enter, |trip| *trip == Trip::Run] {
            let unit = loaded(&world, &cx(), id, 2).await.expect("loads");
            wire.cut_next(cut, wanted);
            unit.commit().await.expect("no idempotency record is needed to know");
            assert!(wire.has_cut(), "{cut:?}");
            points += 1;
            assert_eq!(world.count(id, "SELECT points FROM account_row").await, points, "{cut:?}");
        }
    }
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: `without_effect`, of a time that runs out.
#[tokio::test]
async fn whoever_waited_for_a_busy_key_in_vain_knows_that_nothing_was_written() {
    let world = World::new(1).await;
    let id = world.register().await.id;
    let unit = loaded(&world, &soon(), id, 2).await.expect("loads");
    let held = hold(&world, id).await;
    let end = unit.commit().await;
    assert!(matches!(end, Err(UnitError::Deadline)), "{end:?}");
    held.rollback().await.expect("rolls back");
    assert_eq!(world.count(id, "SELECT points FROM account_row").await, 0);
}

/// Guard: `without_effect`, of a connection that is not there yet.
#[tokio::test]
async fn a_connection_that_is_lost_while_it_is_opened_leaves_no_doubt() {
    let (world, wire, _) = behind_wire().await;
    let secrets = wire.secrets(Arc::new(crate::server::secrets(world.folder.path())), "shard-0-owner");
    let db = Db::connect("shard-0-owner", secrets, ServerSettings::default()).await.expect("connects");
    let _only = db.read().await.expect("a connection");
    wire.cut_next(Cut::Unseen, |trip| *trip == Trip::Prepare);
    let error = db.read().await.expect_err("is cut");
    assert!(wire.has_cut());
    assert!(matches!(error, DbError::Closed), "{error:?}");
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

/// Guard: whoever asks what became of a commit is told its own number, and told of one that has none.
#[tokio::test]
async fn the_record_tells_the_number_of_its_own_unit() {
    let world = World::new(1).await;
    let key = Id::<Customer>::random();
    let home = uuid(key.uuid());
    let head = format!("INSERT INTO key_head VALUES ({home}, {}, 7)", key.bucket().get());
    world.raw(key, &head).await.expect("others have written since");
    let other = Id::<Customer>::random();
    for (id, n, digit) in [(key, 6, "06"), (other, 0, "07")] {
        let (digest, request) =
            (format!("decode(repeat('{digit}', 32), 'hex')"), uuid(Id::<Customer>::random().uuid()));
        let record = format!(
            "INSERT INTO idempotency VALUES ({digest}, {}, {digest}, 200, '{{}}', {n}, {request}, 1)",
            id.bucket().get()
        );
        world.raw(id, &record).await.expect("is recorded");
        let home = id.uuid();
        let context =
            json!({"home": home, "bucket": id.bucket().get(), "submission": format!("\\x{}", digit.repeat(32))});
        let ask = "SELECT n FROM pim_outcome(jsonb_populate_record(NULL::pim_context, ?))";
        let ask = Statement::of(SqlPair::postgres(ask)).bind(Value::Json(context.to_string()));
        let told = world.all_powerful(id).await.query(ask).await.expect("answers");
        assert_eq!(told.first().map(|row| row.count(0).expect("a number")), Some(n));
    }
}

/// Guard: an answer is settled where it is. A server that takes over between the two may never have had it.
#[tokio::test]
async fn an_answer_that_is_gone_when_it_is_settled_is_not_given() {
    let world = World::new(1).await;
    let id = world.register().await.id;
    let request = keyed("once", "{}");
    loaded(&world, &request, id, 0).await.expect("loads").commit().await.expect("commits");
    let again = loaded(&world, &request, id, 0).await.map(drop);
    assert!(matches!(again, Err(UnitError::Replay(_))), "{again:?}");
    // Whoever looks sees it once, and not again.
    let once = "CREATE SEQUENCE public.looks; GRANT USAGE ON SEQUENCE public.looks TO pim_app;
        ALTER TABLE idempotency ENABLE ROW LEVEL SECURITY;
        CREATE POLICY once ON idempotency USING (nextval('public.looks') = 1)";
    world.raw(id, once).await.expect("runs");
    let again = loaded(&world, &request, id, 0).await.map(drop);
    assert!(matches!(again, Err(UnitError::Conflict)), "{again:?}");
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

/// Guard: rows of a bulk may be there although its end was not answered; a seeder that ran again would write all of them twice.
#[tokio::test]
async fn of_a_bulk_that_was_not_answered_nobody_knows() {
    let (world, wire, _) = behind_wire().await;
    for (cut, rows) in [(Cut::Unseen, 1), (Cut::Unanswered, 2)] {
        let id = Id::random();
        let mut unit = world.cluster.begin(&cx(), id);
        unit.save(&write(ShopResource::Account), &Account::new(id)).expect("saves");
        tell(&mut unit, "registered");
        wire.cut_next(cut, |trip| *trip == Trip::Script("COMMIT".to_owned()));
        let outcome = world.cluster.commit_bulk(ShardId(0), vec![unit]).await;
        let Err(error @ UnitError::Unknown(_)) = outcome else { panic!("{cut:?}: {outcome:?}") };
        assert!(wire.has_cut() && !error.is_retryable(), "{cut:?}");
        assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, rows, "{cut:?}");
    }
}

/// Guard: whoever is on the home key longer than a lock is waited for is waited for again while there is time.
#[tokio::test]
async fn what_became_of_a_commit_is_asked_until_the_deadline() {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(1, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
        servers.settings.transaction_max = LOCK_MAX;
        settings
    })
    .await;
    let id = world.register().await.id;
    let onlooker = world.all_powerful(id).await;
    for (key, patience, is_told) in [("long", Duration::from_secs(20), true), ("short", 2 * LOCK_MAX, false)] {
        let request = within(patience);
        let request = request.with_idempotency(IdempotencyScope::new("u-1", "POST", "/accounts", key, b"{}"));
        let unit = loaded(&world, &request, id, 2).await.expect("loads");
        // Its row keeps the unit from its end until somebody else waits for the home key.
        let mut row = onlooker.begin().await.expect("begins");
        row.script("SELECT FROM account_row FOR UPDATE").await.expect("locks");
        wire.cut_next(Cut::Unanswered, |trip| *trip == Trip::Script("COMMIT".to_owned()));
        let (next, key) = (world.all_powerful(id).await, id);
        let mut commit: Commit = Box::pin(unit.commit());
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        until(&mut commit, async || number(&onlooker, waits).await > 0).await;
        let next = tokio::spawn(async move {
            let held = hold_in(&next, key).await;
            tokio::time::sleep(LOCK_MAX * 5 / 2).await;
            held.rollback().await.expect("rolls back");
        });
        until(&mut commit, async || keys_waited_for(&onlooker).await > 0).await;
        row.rollback().await.expect("rolls back");
        let ended = commit.await;
        assert!(wire.has_cut());
        assert!(if is_told { ended.is_ok() } else { matches!(ended, Err(UnitError::Unknown(_))) }, "{key}: {ended:?}");
        next.await.expect("held it");
    }
    assert_eq!(world.count(id, "SELECT points FROM account_row").await, 2);
}
