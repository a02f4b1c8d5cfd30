//! While units are being written, and for a little while after, others wait for those who have read and will write; and not for long
//! for whoever does not come.

use std::time::Duration;

use pim_core::context::IdempotencyScope;
use pim_core::id::Id;
use pim_data::backend::{Db, DbError};
use pim_data::unit::{Committed, Unit, UnitError};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, JoinSet};

use super::queueing::{
    Queue, change, gathering, hold, keys_waited_for, number, save_notes, transactions, until, waiting,
};
use super::world::{Account, Customer, ShopResource, World, cx, tell, within, write};

/// Longer than any request here.
const LONG: Duration = Duration::from_secs(3_600);
const SHORT: Duration = Duration::from_millis(5);

/// Two places, one of which is taken for as long as the queue holds it, and whoever could go waits so long for others.
async fn queue(gather_max: Duration) -> Queue {
    Queue::of(gathering(2, 6, gather_max).await).await
}

/// One place, which is free, on a shard whose calls have taken long.
struct Lull {
    world: World,
    accounts: Vec<Id<Customer>>,
    onlooker: Db,
}

impl Lull {
    async fn new(gather_max: Duration) -> Self {
        let queue = Queue::of(gathering(1, 6, gather_max).await).await;
        let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (world, _none) = queue.go([]).await;
        Self { world, accounts, onlooker }
    }

    async fn change(&self, account: usize) -> Unit {
        change(&self.world, &within(2 * LONG), self.accounts[account]).await
    }
}

/// A unit that has more time than it needs.
async fn unhurried(queue: &Queue, account: usize) -> Unit {
    change(&queue.world, &within(2 * LONG), queue.accounts[account]).await
}

/// Ends unless somebody is waited for.
async fn at_once(commit: impl Future<Output = Result<Committed, UnitError>>) -> Result<Committed, UnitError> {
    tokio::time::timeout(Duration::from_secs(30), commit).await.expect("waits for nobody")
}

/// Has it wait, or be sent if nothing keeps it.
async fn on_its_own(unit: Unit) -> JoinHandle<Result<Committed, UnitError>> {
    let commit = tokio::spawn(unit.commit());
    tokio::time::sleep(Duration::from_millis(50)).await;
    commit
}

/// Guard: `State::gathers`. Four are on their way, so each of two places has two of them.
#[tokio::test]
async fn while_others_are_written_fuller_calls_are_waited_for() {
    let queue = queue(LONG).await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let (one, other, _never_comes) =
        (unhurried(&queue, 1).await, unhurried(&queue, 2).await, unhurried(&queue, 3).await);
    let one = on_its_own(one).await;
    assert!(!one.is_finished());
    other.commit().await.expect("commits");
    one.await.expect("runs").expect("commits");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 1);
}

/// Guard: `State::shares`. Of three in two places, one has a place of its own.
#[tokio::test]
async fn nobody_waits_for_more_than_there_are_for_each_place() {
    let queue = queue(LONG).await;
    let (one, _never_comes) = (unhurried(&queue, 1).await, unhurried(&queue, 2).await);
    assert_eq!(at_once(one.commit()).await.expect("commits").n, 2);
}

/// Guard: `Lull::until`. Nobody is being written, and still the first waits for the second: about as long as a call takes.
#[tokio::test]
async fn between_calls_fuller_ones_are_waited_for_too() {
    // A slow machine may miss it; without the guard it never happens.
    for _ in 0..3 {
        let lull = Lull::new(LONG).await;
        let (one, other) = (lull.change(1).await, lull.change(2).await);
        let one = tokio::spawn(one.commit());
        tokio::time::sleep(Duration::from_millis(10)).await;
        other.commit().await.expect("commits");
        one.await.expect("runs").expect("commits");
        if transactions(&lull.onlooker, &lull.accounts[1..=2]).await == 1 {
            return;
        }
    }
    panic!("they went one after the other each time");
}

/// Guard: `Batches::watch`. Each is sent when it has waited in vain.
#[tokio::test]
async fn between_calls_nobody_waits_long_for_whoever_does_not_come() {
    let lull = Lull::new(LONG).await;
    let _never_comes = lull.change(1).await;
    for n in 2..12 {
        assert_eq!(at_once(lull.change(2).await.commit()).await.expect("commits").n, n);
    }
}

/// Guard: `Watch` sends the others even if its runtime ends before the lull.
#[tokio::test]
async fn whoever_waits_between_calls_is_sent_though_the_other_ones_runtime_ends() {
    let lull = Lull::new(LONG).await;
    let (one, other, _never_comes) = (lull.change(1).await, lull.change(2).await, lull.change(3).await);
    let elsewhere = Runtime::new().expect("a runtime");
    elsewhere.spawn(one.commit());
    tokio::time::sleep(Duration::from_millis(10)).await;
    let other = tokio::spawn(other.commit());
    tokio::time::sleep(Duration::from_millis(10)).await;
    elsewhere.shutdown_background();
    at_once(async { other.await.expect("runs") }).await.expect("commits");
}

/// Guard: `Batches::join` knows whether it was sent. It may be that a runtime that ends was to send it.
#[tokio::test]
async fn whoever_was_to_be_sent_by_a_runtime_that_ended_knows_that_it_was_not() {
    let lull = Lull::new(LONG).await;
    let (one, other, third) = (lull.change(1).await, lull.change(2).await, lull.change(3).await);
    let _never_comes = lull.change(4).await;
    let elsewhere = Runtime::new().expect("a runtime");
    elsewhere.spawn(one.commit());
    tokio::time::sleep(Duration::from_millis(10)).await;
    let other = tokio::spawn(other.commit());
    tokio::time::sleep(Duration::from_millis(10)).await;
    elsewhere.spawn(third.commit());
    tokio::time::sleep(Duration::from_millis(10)).await;
    elsewhere.shutdown_background();
    let end = at_once(async { other.await.expect("runs") }).await;
    assert!(matches!(end, Ok(_) | Err(UnitError::Database(DbError::Closed))), "{end:?}");
}

/// Guard: `Batches::join` departs when half of the time is over, whoever was to say that the lull is.
#[tokio::test]
async fn whoever_waits_between_calls_is_sent_though_the_other_ones_runtime_stands_still() {
    let patience = Duration::from_millis(50);
    let lull = Lull::new(patience).await;
    let (one, held_up, _never_comes) = (lull.change(1).await, lull.change(2).await, lull.change(3).await);
    // It has to say when the lull is over, and is left standing.
    let (go_on, stands_still) = std::sync::mpsc::channel::<()>();
    let (left, is_left) = tokio::sync::oneshot::channel();
    let elsewhere = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _late = runtime.block_on(async { tokio::time::timeout(patience / 5, one.commit()).await });
        left.send(()).expect("is waited for");
        let _over = stands_still.recv();
    });
    is_left.await.expect("runs");
    // Waits in vain, so that the next does not.
    at_once(lull.change(0).await.commit()).await.expect("commits");
    let held = hold(&lull.world, lull.accounts[2]).await;
    let mut held_up = waiting(held_up).await;
    until(&mut held_up, async || keys_waited_for(&lull.onlooker).await == 1).await;
    // Enough for a slow machine, twice.
    let hasty = on_its_own(change(&lull.world, &within(Duration::from_secs(6)), lull.accounts[4]).await).await;
    tokio::time::sleep(patience).await;
    held.rollback().await.expect("rolls back");
    held_up.await.expect("commits");
    assert_eq!(hasty.await.expect("runs").expect("commits").n, 2);
    drop(go_on);
    elsewhere.join().expect("ends");
}

/// Guard: `Batches::join` departs when `gather_max` is over. The first account's unit is held all the time.
#[tokio::test]
async fn nobody_waits_for_whoever_does_not_come() {
    let queue = queue(SHORT).await;
    let (one, _never_comes) = (unhurried(&queue, 1).await, [unhurried(&queue, 2).await, unhurried(&queue, 3).await]);
    assert_eq!(at_once(one.commit()).await.expect("commits").n, 2);
}

/// Guard: half of a unit's time is for being written. Waiting for others does not use up its deadline.
#[tokio::test]
async fn whoever_has_little_time_waits_for_half_of_it() {
    let queue = queue(LONG).await;
    let _never_comes = [unhurried(&queue, 2).await, unhurried(&queue, 3).await];
    // Enough for a slow machine, twice.
    let hasty = change(&queue.world, &within(Duration::from_secs(6)), queue.accounts[1]).await;
    assert_eq!(hasty.commit().await.expect("commits").n, 2);
}

/// Guard: units of several rows go by themselves, and nobody waits for them.
#[tokio::test]
async fn whoever_goes_by_itself_is_not_waited_for() {
    let queue = queue(LONG).await;
    let _never_comes = unhurried(&queue, 3).await;
    let mut several = unhurried(&queue, 2).await;
    save_notes(&mut several, queue.accounts[2], 2);
    let held = hold(&queue.world, queue.accounts[2]).await;
    let mut several = waiting(several).await;
    until(&mut several, async || keys_waited_for(&queue.onlooker).await == 2).await;
    at_once(unhurried(&queue, 1).await.commit()).await.expect("commits");
    held.rollback().await.expect("rolls back");
    several.await.expect("commits");
}

/// Guard: the ticket of a unit that is given up, or has been answered, counts no longer.
#[tokio::test]
async fn whoever_has_left_is_not_waited_for() {
    let queue = queue(LONG).await;
    for _ in 0..3 {
        drop(unhurried(&queue, 2).await);
        at_once(unhurried(&queue, 3).await.commit()).await.expect("commits");
    }
    assert_eq!(at_once(unhurried(&queue, 1).await.commit()).await.expect("commits").n, 2);
}

/// Guard: the ticket of a unit whose answer was lost counts no longer while it is found out what became of it.
#[tokio::test]
async fn whoever_finds_out_is_not_waited_for() {
    const ASKS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%pim_outcome(%' \
        AND datname = current_database()";
    let queue = queue(LONG).await;
    let _never_comes = unhurried(&queue, 3).await;
    let held = hold(&queue.world, queue.accounts[2]).await;
    let scope = IdempotencyScope::new("u-1", "POST", "/accounts", "lost", b"body");
    let lost = change(&queue.world, &within(2 * LONG).with_idempotency(scope), queue.accounts[2]).await;
    let mut lost = waiting(lost).await;
    until(&mut lost, async || keys_waited_for(&queue.onlooker).await == 2).await;
    end_the_last_call(&queue.onlooker).await;
    until(&mut lost, async || number(&queue.onlooker, ASKS).await == 1).await;
    at_once(unhurried(&queue, 1).await.commit()).await.expect("commits");
    held.rollback().await.expect("rolls back");
    assert!(matches!(lost.await, Err(UnitError::Conflict)), "it was not written");
}

/// Has whoever has waited for the least time lose its connection.
async fn end_the_last_call(db: &Db) {
    const END: &str = "SELECT count(pg_terminate_backend(last.pid)) FROM (SELECT a.pid FROM pg_stat_activity a \
        WHERE a.wait_event_type = 'Lock' AND a.datname = current_database() ORDER BY a.query_start DESC LIMIT 1) last";
    assert_eq!(number(db, END).await, 1);
}

/// Guard: what was refused among others waits for nobody: it goes alone.
#[tokio::test]
async fn whoever_was_refused_in_company_waits_for_no_other() {
    let queue = queue(LONG).await;
    let accounts = queue.accounts.clone();
    let (one, other, _never_comes) =
        (unhurried(&queue, 1).await, unhurried(&queue, 2).await, unhurried(&queue, 3).await);
    let stale = format!("UPDATE account_row SET version = version + 1 WHERE id = '{}'", accounts[2].uuid());
    queue.world.raw(accounts[2], &stale).await.expect("runs");
    let one = on_its_own(one).await;
    let end = at_once(other.commit()).await;
    assert!(matches!(end, Err(UnitError::Stale { entity: "account" })), "{end:?}");
    let one = at_once(async { one.await.expect("runs") }).await;
    assert_eq!(one.expect("commits").n, 2);
}

/// Guard: what has read nothing is on its way from when it waits.
#[tokio::test]
async fn new_rows_are_on_their_way_too() {
    let queue = queue(SHORT).await;
    let mut keys = Vec::new();
    let mut commits = JoinSet::new();
    for _ in 0..3 {
        let account = Account::new(Id::random());
        let mut unit = queue.world.cluster.begin(&cx(), account.id);
        unit.save(&write(ShopResource::Account), &account).expect("saves");
        tell(&mut unit, "opened");
        keys.push(account.id);
        commits.spawn(unit.commit());
    }
    while let Some(end) = commits.join_next().await {
        end.expect("runs").expect("commits");
    }
    assert_eq!(transactions(&queue.onlooker, &keys).await, 2);
}
