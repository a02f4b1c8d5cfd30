//! While units are being written, others wait for those who have read and will write; and not for long for whoever does not come.

use std::time::Duration;

use pim_core::id::Id;
use pim_data::unit::{Committed, Unit, UnitError};
use tokio::task::{JoinHandle, JoinSet};

use super::queueing::{Queue, change, gathering, hold, keys_waited_for, save_notes, transactions, until, waiting, within};
use super::world::{Account, ShopResource, cx, tell, write};

/// Longer than any request here.
const LONG: Duration = Duration::from_secs(3_600);
const SHORT: Duration = Duration::from_millis(5);

/// Two places, one of which is taken for as long as the queue holds it, and whoever could go waits so long for others.
async fn queue(gather_max: Duration) -> Queue {
    Queue::of(gathering(2, 6, gather_max).await).await
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

/// Guard: `State::gathers`. Three are on their way, so each of two places has two of them.
#[tokio::test]
async fn while_others_are_written_fuller_calls_are_waited_for() {
    let queue = queue(LONG).await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let (one, other) = (unhurried(&queue, 1).await, unhurried(&queue, 2).await);
    let one = on_its_own(one).await;
    assert!(!one.is_finished());
    other.commit().await.expect("commits");
    one.await.expect("runs").expect("commits");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 1);
}

/// Guard: `Batches::join` departs when `gather_max` is over. The first account's unit is held all the time.
#[tokio::test]
async fn nobody_waits_for_whoever_does_not_come() {
    let queue = queue(SHORT).await;
    let (one, _never_comes) = (unhurried(&queue, 1).await, unhurried(&queue, 2).await);
    assert_eq!(at_once(one.commit()).await.expect("commits").n, 2);
}

/// Guard: half of a unit's time is for being written. Waiting for others does not use up its deadline.
#[tokio::test]
async fn whoever_has_little_time_waits_for_half_of_it() {
    let queue = queue(LONG).await;
    let _never_comes = unhurried(&queue, 2).await;
    // Enough for a slow machine, twice.
    let hasty = change(&queue.world, &within(Duration::from_secs(6)), queue.accounts[1]).await;
    assert_eq!(hasty.commit().await.expect("commits").n, 2);
}

/// Guard: units of several rows go by themselves, and nobody waits for them.
#[tokio::test]
async fn whoever_goes_by_itself_is_not_waited_for() {
    let queue = queue(LONG).await;
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

/// Guard: what was refused among others waits for nobody: it goes alone.
#[tokio::test]
async fn whoever_was_refused_in_company_waits_for_no_other() {
    let queue = queue(LONG).await;
    let accounts = queue.accounts.clone();
    let (one, other, _never_comes) = (unhurried(&queue, 1).await, unhurried(&queue, 2).await, unhurried(&queue, 3).await);
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
