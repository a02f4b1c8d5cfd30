//! What the promises of a queue need: a shard with one place, somebody who has it and waits, and others behind.

use std::future::ready;
use std::pin::Pin;
use std::time::{Duration, Instant};

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_data::backend::{Db, SqlPair, Statement, Transaction};
use pim_data::cluster::ClusterSettings;
use pim_data::signals::DataSignals;
use pim_data::unit::{Committed, Unit, UnitError};
use serde_json::json;

use super::world::{Account, Customer, CustomerNote, ShopResource, World, cx, tell, within, write};

pub(crate) type Commit = Pin<Box<dyn Future<Output = Result<Committed, UnitError>> + Send>>;

/// A shard with one place for those who write, and accounts; `held` keeps the first of them from being written.
pub(crate) struct Queue {
    pub(crate) world: World,
    pub(crate) accounts: Vec<Id<Customer>>,
    pub(crate) onlooker: Db,
    pub(crate) held: Transaction,
    pub(crate) first: Commit,
}

impl Queue {
    /// The first account's unit has the place, and waits.
    pub(crate) async fn new() -> Self {
        Self::of(one_place().await).await
    }

    pub(crate) async fn of(world: World) -> Self {
        let mut accounts = Vec::new();
        for _ in 0..5 {
            accounts.push(world.register().await.id);
        }
        // In the order in which a batch takes them.
        accounts.sort_by_key(|id| id.bucket().lane().get());
        let onlooker = world.all_powerful(accounts[0]).await;
        let held = hold(&world, accounts[0]).await;
        let mut first = waiting(change(&world, &cx(), accounts[0]).await).await;
        until(&mut first, async || keys_waited_for(&onlooker).await == 1).await;
        Self { world, accounts, onlooker, held, first }
    }

    pub(crate) async fn change(&self, account: usize) -> Unit {
        change(&self.world, &cx(), self.accounts[account]).await
    }

    /// Units of three other accounts, which wait.
    pub(crate) async fn three_more(&self) -> Vec<Commit> {
        self.changes(1..=3).await
    }

    /// Units of these accounts, which wait in this order.
    pub(crate) async fn changes(&self, accounts: impl IntoIterator<Item = usize>) -> Vec<Commit> {
        let mut others = Vec::new();
        for account in accounts {
            others.push(waiting(self.change(account).await).await);
        }
        others
    }

    /// A unit of an account that writes so many notes, and not its row.
    pub(crate) fn notes(&self, account: usize, rows: usize) -> Unit {
        let account = self.accounts[account];
        let mut unit = self.world.cluster.begin(&cx(), account);
        save_notes(&mut unit, account, rows);
        tell(&mut unit, "noted");
        unit
    }

    /// Lets the first account's unit go, and all others; how each ends.
    pub(crate) async fn go(
        self,
        others: impl IntoIterator<Item = Commit>,
    ) -> (World, Vec<Result<Committed, UnitError>>) {
        let others: Vec<_> = others.into_iter().map(tokio::spawn).collect();
        self.held.rollback().await.expect("rolls back");
        self.first.await.expect("commits");
        let mut ends = Vec::new();
        for other in others {
            ends.push(other.await.expect("runs"));
        }
        (self.world, ends)
    }
}

pub(crate) async fn one_place() -> World {
    places(1, 6).await
}

pub(crate) async fn places(writers_max: usize, connections_max: usize) -> World {
    gathering(writers_max, connections_max, Duration::ZERO).await
}

/// Where a unit waits so long for those who are on their way.
pub(crate) async fn gathering(writers_max: usize, connections_max: usize, gather_max: Duration) -> World {
    World::with(1, |settings| shaped(settings, writers_max, connections_max, gather_max)).await
}

/// Where signals are told what happens, and one place is.
pub(crate) async fn telling(signals: DataSignals) -> World {
    World::with(1, |mut settings| {
        settings.signals = signals;
        shaped(settings, 1, 6, Duration::ZERO)
    })
    .await
}

fn shaped(
    mut settings: ClusterSettings,
    writers_max: usize,
    connections_max: usize,
    gather_max: Duration,
) -> ClusterSettings {
    let servers = settings.servers.as_mut().expect("servers");
    servers.settings.writers_max = writers_max;
    servers.settings.gather_max = gather_max;
    servers.settings.connections_max = connections_max;
    // Longer than any request here: whoever waits for a lock waits until its deadline.
    servers.settings.transaction_max = Duration::from_secs(60);
    settings
}

/// Somebody else who is on a home key.
pub(crate) async fn hold(world: &World, key: Id<Customer>) -> Transaction {
    hold_in(&world.all_powerful(key).await, key).await
}

pub(crate) async fn hold_in(shard: &Db, key: Id<Customer>) -> Transaction {
    let mut held = shard.begin().await.expect("begins");
    let lock = format!("SELECT pg_advisory_xact_lock(uuid_hash_extended('{}', 7461))", key.uuid());
    held.script(&lock).await.expect("locks");
    held
}

/// A unit that adds a point.
pub(crate) async fn change(world: &World, cx: &RequestContext, id: Id<Customer>) -> Unit {
    changing(world, cx, id).await.expect("loads")
}

/// Such a unit, of a request that may have been answered already.
pub(crate) async fn changing(world: &World, cx: &RequestContext, id: Id<Customer>) -> Result<Unit, UnitError> {
    let mut unit = world.cluster.begin(cx, id);
    let permit = write(ShopResource::Account);
    let mut account = unit.load::<Account>(&permit, id).await?.expect("is there");
    account.points += 1;
    unit.save(&permit, &account)?;
    tell(&mut unit, "changed");
    if cx.idempotency().is_some() {
        unit.answer(200, &json!({"points": account.points}));
    }
    Ok(unit)
}

/// Adds notes of a customer to a unit.
pub(crate) fn save_notes(unit: &mut Unit, customer: Id<Customer>, rows: usize) {
    for _ in 0..rows {
        let id = Id::child_of(customer.bucket(), unit.at());
        let note = CustomerNote { id, version: 0, customer, account: customer, text: "x".to_owned() };
        unit.save(&write(ShopResource::Note), &note).expect("saves");
    }
}

/// Of somebody who does not wait long.
pub(crate) fn soon() -> RequestContext {
    within(Duration::from_secs(2))
}

/// Has it take its place in the queue.
pub(crate) async fn waiting(unit: Unit) -> Commit {
    let mut commit: Commit = Box::pin(unit.commit());
    tokio::select! {
        biased;
        end = &mut commit => panic!("nobody waits: {end:?}"),
        () = ready(()) => {}
    }
    commit
}

/// Goes on with a commit until something is seen of it.
pub(crate) async fn until(commit: &mut Commit, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < give_up, "it did not come to pass");
        tokio::select! {
            biased;
            end = &mut *commit => panic!("did not wait: {end:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
}

pub(crate) async fn number(db: &Db, sql: &str) -> u64 {
    let rows = db.query(Statement::of(SqlPair::generated(sql.to_owned()))).await.expect("runs");
    rows[0].count(0).expect("a number")
}

/// How many calls wait for a home key.
pub(crate) async fn keys_waited_for(db: &Db) -> u64 {
    const WAITING: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1 \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    number(db, WAITING).await
}

/// How many transactions wrote these keys last.
pub(crate) async fn transactions(db: &Db, keys: &[Id<Customer>]) -> u64 {
    let keys: Vec<_> = keys.iter().map(|key| format!("'{}'", key.uuid())).collect();
    number(db, &format!("SELECT count(DISTINCT xmin::text) FROM key_head WHERE key IN ({})", keys.join(", "))).await
}

pub(crate) async fn points(world: &World, key: Id<Customer>) -> u64 {
    number(&world.all_powerful(key).await, &format!("SELECT points FROM account_row WHERE id = '{}'", key.uuid())).await
}
