//! Writers wait for a move as briefly as can be: what can be brought over before the fence or beside the outbox is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pim_data::backend::{SqlPair, Statement};
use pim_data::relocation::{MoveError, MoveRecord, MoveSettings, MoveStep, Mover, Run};

use super::moving::{FILLED, Tap, at_step, eventually, filled, go_on_to, home_of, mover, note, rows_on};
use super::world::{Account, World, cx};

/// While a mover that is about to fence asks for this time whether the outbox is dry, somebody else does something.
async fn at_ask(
    run: &mut Run,
    tap: &Tap,
    ask: u64,
    something: impl Future<Output = ()>,
) -> Result<MoveStep, MoveError> {
    tap.silent_at.store(ask, Ordering::SeqCst);
    let between = async {
        tap.is_asked(ask).await;
        something.await;
        tap.silent_at.store(0, Ordering::SeqCst);
    };
    let context = cx();
    tokio::join!(run.step(&context), between).0
}

/// A move of the account's bucket by a mover that is as patient as this.
async fn moving(world: &World, account: &Account, settings: MoveSettings) -> (Mover, Arc<Tap>, Run) {
    let (mover, tap) = mover(&world.cluster);
    let mover = mover.with_settings(settings);
    let planned = mover.plan(&cx(), [account.id.bucket()], home_of(world, account).1).await.expect("plans");
    let run = at_step(&mover, &planned, MoveStep::Copying).await;
    (mover, tap, run)
}

const HASTY: MoveSettings =
    MoveSettings { passes_max: 8, calm_keys: 4, lull_max: Duration::ZERO, pause_max: Duration::from_secs(10) };

async fn write_twice(world: &World, account: &Account) {
    world.change(account.id, |account| account.points = 7).await.expect("commits");
    note(world, account.id).await.expect("commits");
}

/// The move when it is over, in which somebody wrote while the outlet was asked for this time.
async fn written_at_ask(world: &World, account: &Account, ask: u64) -> MoveRecord {
    let (mover, tap, mut run) = moving(world, account, HASTY).await;
    let stepped = at_ask(&mut run, &tap, ask, write_twice(world, account)).await;
    assert_eq!(stepped.expect("goes on"), MoveStep::Fenced);
    let id = run.record().id;
    go_on_to(&mut run, MoveStep::Activating).await;
    drop(run);
    mover.run(&cx(), id).await.expect("moves")
}

/// Guard: what is written between the last copy and the fence goes along.
#[tokio::test]
async fn a_change_between_copy_and_fence_is_brought_over() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let done = written_at_ask(&world, &account, 2).await;
    assert_eq!(done.report.keys_copied_fenced, 1);
    assert_eq!(rows_on(&world, done.target, &account).await, [1, 5, 4, 4, 1, 10, 1]);
}

/// Guard: writers do not wait for what could be brought over right before the fence.
#[tokio::test]
async fn a_change_before_the_last_copy_costs_no_writer_a_wait() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let done = written_at_ask(&world, &account, 1).await;
    assert_eq!(done.report.keys_copied_fenced, 0);
    assert_eq!(rows_on(&world, done.target, &account).await, [1, 5, 4, 4, 1, 10, 1]);
}

/// Guard: a moment in which something waits, or too much has to be brought over, is no lull.
#[tokio::test]
async fn a_lull_is_a_calm_moment_with_a_dry_outbox() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let patient = MoveSettings { calm_keys: 0, passes_max: 1, lull_max: Duration::from_secs(30), ..HASTY };
    let (_mover, tap, mut run) = moving(&world, &account, patient).await;
    tap.waiting.store(true, Ordering::SeqCst);
    let between = async {
        write_twice(&world, &account).await;
        // The next answer but this one.
        tap.dry_from.store(2, Ordering::SeqCst);
    };
    assert_eq!(at_ask(&mut run, &tap, 1, between).await.expect("goes on"), MoveStep::Fenced);
    // One pass for all. In the lull one before something waits, one that finds the change, one that finds nothing; and one more.
    assert_eq!(run.record().report.passes, 1 + 3 + 1);
}

/// Guard: what takes its time is done before the last lull, not behind it: who writes meanwhile is brought over in the lull.
#[tokio::test]
async fn what_is_written_while_the_move_is_noted_down_costs_no_writer_a_wait() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (mover, tap, mut run) = moving(&world, &account, HASTY).await;
    let id = run.record().id;
    let in_the_last_lull = async {
        assert_eq!(mover.find(id).await.expect("reads").step, MoveStep::Fenced);
        assert!(world.folder.path().join("maps/2.toml").exists(), "the map lies ready");
        write_twice(&world, &account).await;
    };
    assert_eq!(at_ask(&mut run, &tap, 2, in_the_last_lull).await.expect("goes on"), MoveStep::Fenced);
}

/// Guard: what cannot move is refused before anybody waits for it, and leaves no map behind.
#[tokio::test]
async fn a_key_that_is_parked_in_the_lull_costs_no_writer_a_wait() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_mover, tap, mut run) = moving(&world, &account, HASTY).await;
    let parked = at_ask(&mut run, &tap, 2, async { tap.parked.store(true, Ordering::SeqCst) }).await;
    assert!(matches!(parked, Err(MoveError::Parked)), "{parked:?}");
    assert_eq!(run.record().step, MoveStep::Copying);
    assert!(!world.folder.path().join("maps/2.toml").exists(), "a map that came to nothing is not kept");
    let written = world.change(account.id, |account| account.points = 7).await.expect("was never fenced");
    assert_eq!(written.fenced, 0);
}

/// Guard: under the fence nothing waits for the outbox that does not have to.
#[tokio::test]
async fn changes_are_brought_over_while_the_outbox_drains() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_mover, tap, mut run) = moving(&world, &account, HASTY).await;
    let between = async {
        write_twice(&world, &account).await;
        tap.waiting.store(true, Ordering::SeqCst);
    };
    assert_eq!(at_ask(&mut run, &tap, 2, between).await.expect("goes on"), MoveStep::Fenced);
    let target = run.record().target;
    let arrives = async {
        eventually("it arrives", async || rows_on(&world, target, &account).await == [1, 5, 4, 4, 1, 10, 1]).await;
        tap.waiting.store(false, Ordering::SeqCst);
    };
    let context = cx();
    let (stepped, ()) = tokio::join!(run.step(&context), arrives);
    assert_eq!(stepped.expect("arrives before the outbox is dry"), MoveStep::Activating);
}

/// Guard: under the fence it is not only counted how many records there are, but looked which.
#[tokio::test]
async fn a_record_in_anothers_stead_is_brought_over() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (source, target) = home_of(&world, &account);
    let (mover, tap, mut run) = moving(&world, &account, HASTY).await;
    let exchange = async {
        let mut tx = world.powerful(source).await.begin().await.expect("begins");
        tx.script("UPDATE idempotency SET scope = body, status = 299").await.expect("runs");
        tx.commit().await.expect("commits");
    };
    assert_eq!(at_ask(&mut run, &tap, 2, exchange).await.expect("goes on"), MoveStep::Fenced);
    go_on_to(&mut run, MoveStep::Activating).await;
    let id = run.record().id;
    drop(run);
    mover.run(&cx(), id).await.expect("moves");
    let look = Statement::of(SqlPair::same("SELECT status FROM idempotency"));
    let rows = world.powerful(target).await.query(look).await.expect("reads");
    assert_eq!(rows.iter().map(|row| row.count(0).expect("a number")).collect::<Vec<_>>(), [299]);
}

/// Guard: records are known to be at the target only as long as it has them. Its own sweep takes what is past its time.
#[tokio::test]
async fn a_record_that_the_target_has_lost_is_brought_again() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    for ask in [1, 2] {
        let (_, target) = home_of(&world, &account);
        let (_mover, tap, mut run) = moving(&world, &account, HASTY).await;
        let sweep = async {
            assert_eq!(rows_on(&world, target, &account).await[6], 1, "it was brought");
            let mut tx = world.powerful(target).await.begin().await.expect("begins");
            tx.script("DELETE FROM idempotency").await.expect("runs");
            tx.commit().await.expect("commits");
        };
        assert_eq!(at_ask(&mut run, &tap, ask, sweep).await.expect("goes on"), MoveStep::Fenced);
        go_on_to(&mut run, MoveStep::Done).await;
        assert_eq!(rows_on(&world, target, &account).await, FILLED);
    }
}

/// Guard: a call that begins when its mover is long gone brings nothing to a shard that does not receive any more.
#[tokio::test]
async fn nothing_is_brought_to_a_shard_that_does_not_receive() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_mover, _tap, mut run) = moving(&world, &account, HASTY).await;
    let target = run.record().target;
    let mut tx = world.powerful(target).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET state = 'owned' WHERE state = 'incoming'").await.expect("runs");
    tx.commit().await.expect("commits");
    assert!(matches!(run.step(&cx()).await, Err(MoveError::Shard { .. })));
    assert_eq!(rows_on(&world, target, &account).await, [0; 7]);
}
