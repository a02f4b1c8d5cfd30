//! Writers wait for a move as briefly as can be: what can be brought over before the fence or beside the outbox is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pim_data::relocation::{MoveRecord, MoveSettings, MoveStep};

use super::moving::{at_step, filled, home_of, mover, note, rows_on};
use super::world::{Account, World, cx};

/// A move about to be fenced, in which somebody writes while the outlet is asked for this time; the move then.
async fn written_at_ask(world: &World, account: &Account, ask: u64, lull_max: Duration) -> MoveRecord {
    let (mover, tap) = mover(&world.cluster);
    let mover = mover.with_settings(MoveSettings { lull_max, ..MoveSettings::default() });
    let planned = mover.plan(&cx(), [account.id.bucket()], home_of(world, account).1).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Copying).await;
    tap.silent_at.store(ask, Ordering::SeqCst);
    let between = async {
        tap.is_asked(ask).await;
        world.change(account.id, |account| account.points = 7).await.expect("commits");
        note(world, account.id).await.expect("commits");
        tap.silent_at.store(0, Ordering::SeqCst);
    };
    let context = cx();
    let (stepped, ()) = tokio::join!(run.step(&context), between);
    assert_eq!(stepped.expect("goes on"), MoveStep::Fenced);
    run.step(&cx()).await.expect("compares");
    drop(run);
    mover.run(&cx(), planned.id).await.expect("moves")
}

/// Guard: what is written between the last copy and the fence goes along.
#[tokio::test]
async fn a_change_between_copy_and_fence_is_brought_over() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let done = written_at_ask(&world, &account, 2, Duration::ZERO).await;
    assert_eq!(done.report.keys_copied_fenced, 1);
    assert_eq!(rows_on(&world, done.target, &account).await, [1, 5, 4, 4, 1, 10, 1]);
}

/// Guard: writers do not wait for what could be brought over before the fence, be there a lull or none.
#[tokio::test]
async fn a_change_before_the_last_copy_costs_no_writer_a_wait() {
    for lull_max in [Duration::ZERO, Duration::from_secs(10)] {
        let world = World::new(2).await;
        let account = filled(&world).await;
        let done = written_at_ask(&world, &account, 1, lull_max).await;
        assert_eq!(done.report.keys_copied_fenced, 0);
        assert_eq!(rows_on(&world, done.target, &account).await, [1, 5, 4, 4, 1, 10, 1]);
    }
}

/// Guard: a moment in which something has to be brought over is no lull; one in which nothing has is.
#[tokio::test]
async fn a_lull_is_a_moment_with_nothing_to_bring_over() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let done = written_at_ask(&world, &account, 1, Duration::from_secs(10)).await;
    // One for all, one that finds the change, one that finds nothing, and the last one.
    assert_eq!(done.report.passes, 4);
}

/// Guard: under the fence nothing waits for the outbox that does not have to.
#[tokio::test]
async fn changes_are_brought_over_while_the_outbox_drains() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, tap) = mover(&world.cluster);
    let patient =
        MoveSettings { lull_max: Duration::ZERO, pause_max: Duration::from_secs(10), ..MoveSettings::default() };
    let mover = mover.with_settings(patient);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Copying).await;
    tap.silent_at.store(2, Ordering::SeqCst);
    let between = async {
        tap.is_asked(2).await;
        world.change(account.id, |account| account.points = 7).await.expect("commits");
        tap.waiting.store(true, Ordering::SeqCst);
        tap.silent_at.store(0, Ordering::SeqCst);
    };
    let context = cx();
    let (stepped, ()) = tokio::join!(run.step(&context), between);
    assert_eq!(stepped.expect("goes on"), MoveStep::Fenced);
    let arrives = async {
        while rows_on(&world, to, &account).await != [1, 5, 3, 3, 1, 9, 1] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tap.waiting.store(false, Ordering::SeqCst);
    };
    let (stepped, ()) = tokio::join!(run.step(&context), arrives);
    assert_eq!(stepped.expect("arrives before the outbox is dry"), MoveStep::Activating);
}
