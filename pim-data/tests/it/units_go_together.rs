//! Units that wait while others are written share a transaction, and nobody fares worse for it than alone.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, ServerSettings, SqlPair, Statement, Transaction};
use pim_data::unit::{Committed, Unit, UnitError};
use serde_json::json;

use super::world::{Account, Customer, CustomerNote, DepotRow, ShopResource, ShopRole, World, cx, keyed, tell, write};
use crate::wire::{Cut, Trip, Wire};

type Commit = Pin<Box<dyn Future<Output = Result<Committed, UnitError>> + Send>>;

/// A shard with one place for those who write, and accounts; `held` keeps the first of them from being written.
struct Queue {
    world: World,
    accounts: Vec<Id<Customer>>,
    onlooker: Db,
    held: Transaction,
    first: Commit,
}

impl Queue {
    /// The first account's unit has the place, and waits.
    async fn new() -> Self {
        Self::of(one_place().await).await
    }

    async fn of(world: World) -> Self {
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

    async fn change(&self, account: usize) -> Unit {
        change(&self.world, &cx(), self.accounts[account]).await
    }

    /// Units of three other accounts, which wait.
    async fn three_more(&self) -> Vec<Commit> {
        let mut others = Vec::new();
        for account in 1..4 {
            others.push(waiting(self.change(account).await).await);
        }
        others
    }

    /// Lets the first account's unit go, and all others; how each ends.
    async fn go(self, others: impl IntoIterator<Item = Commit>) -> (World, Vec<Result<Committed, UnitError>>) {
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

async fn one_place() -> World {
    places(1, 6).await
}

async fn places(writers_max: usize, connections_max: usize) -> World {
    World::with(1, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.settings.writers_max = writers_max;
        servers.settings.connections_max = connections_max;
        // Longer than any request here: whoever waits for a lock waits until its deadline.
        servers.settings.transaction_max = Duration::from_secs(60);
        settings
    })
    .await
}

/// Somebody else who is on a home key.
async fn hold(world: &World, key: Id<Customer>) -> Transaction {
    let mut held = world.all_powerful(key).await.begin().await.expect("begins");
    let lock = format!("SELECT pg_advisory_xact_lock(uuid_hash_extended('{}', 7461))", key.uuid());
    held.script(&lock).await.expect("locks");
    held
}

/// A unit that adds a point.
async fn change(world: &World, cx: &RequestContext, id: Id<Customer>) -> Unit {
    let mut unit = world.cluster.begin(cx, id);
    let permit = write(ShopResource::Account);
    let mut account = unit.load::<Account>(&permit, id).await.expect("loads").expect("is there");
    account.points += 1;
    unit.save(&permit, &account).expect("saves");
    tell(&mut unit, "changed");
    if cx.idempotency().is_some() {
        unit.answer(200, &json!({"points": account.points}));
    }
    unit
}

/// Of somebody who does not wait long.
fn soon() -> RequestContext {
    let actor = Actor::new("u-1".parse().expect("a subject"), ShopRole::Owner);
    RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_millis(500)))
}

/// Has it take its place in the queue.
async fn waiting(unit: Unit) -> Commit {
    let mut commit: Commit = Box::pin(unit.commit());
    tokio::select! {
        biased;
        end = &mut commit => panic!("nobody waits: {end:?}"),
        () = ready(()) => {}
    }
    commit
}

/// Goes on with a commit until something is seen of it.
async fn until(commit: &mut Commit, mut holds: impl AsyncFnMut() -> bool) {
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

async fn number(db: &Db, sql: &str) -> u64 {
    let rows = db.query(Statement::of(SqlPair::generated(sql.to_owned()))).await.expect("runs");
    rows[0].count(0).expect("a number")
}

/// How many calls wait for a home key.
async fn keys_waited_for(db: &Db) -> u64 {
    const WAITING: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1 \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    number(db, WAITING).await
}

/// How many transactions wrote these keys last.
async fn transactions(db: &Db, keys: &[Id<Customer>]) -> u64 {
    let keys: Vec<_> = keys.iter().map(|key| format!("'{}'", key.uuid())).collect();
    number(db, &format!("SELECT count(DISTINCT xmin::text) FROM key_head WHERE key IN ({})", keys.join(", "))).await
}

async fn points(world: &World, key: Id<Customer>) -> u64 {
    number(&world.all_powerful(key).await, &format!("SELECT points FROM account_row WHERE id = '{}'", key.uuid())).await
}

#[tokio::test]
async fn those_who_wait_share_a_transaction_and_each_is_told_its_own() {
    let queue = Queue::new().await;
    let (accounts, onlooker, commits) = (queue.accounts.clone(), queue.onlooker.clone(), queue.world.cluster.commits());
    let before = *commits.borrow();
    let others = queue.three_more().await;
    let (world, ends) = queue.go(others).await;
    for (end, key) in ends.into_iter().zip(&accounts[1..4]) {
        let committed = end.expect("commits");
        assert_eq!(committed.n, 2);
        assert_eq!(points(&world, *key).await, 1);
    }
    assert_eq!(transactions(&onlooker, &accounts[1..4]).await, 1);
    assert_eq!(transactions(&onlooker, &accounts[..4]).await, 2);
    assert_eq!(*commits.borrow(), before + 4);
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

#[tokio::test]
async fn those_who_are_ready_at_once_share_the_places_that_are_free() {
    for writers_max in [1, 2, 4] {
        let world = places(writers_max, 6).await;
        let mut units = Vec::new();
        for _ in 0..4 {
            let id = world.register().await.id;
            units.push((id, change(&world, &cx(), id).await));
        }
        let (accounts, units): (Vec<_>, Vec<_>) = units.into_iter().unzip();
        let commits: Vec<_> = units.into_iter().map(|unit| tokio::spawn(unit.commit())).collect();
        for commit in commits {
            commit.await.expect("runs").expect("commits");
        }
        let onlooker = world.all_powerful(accounts[0]).await;
        assert_eq!(transactions(&onlooker, &accounts).await, writers_max as u64);
    }
}

#[tokio::test]
async fn one_that_is_refused_costs_the_others_nothing() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let others = queue.three_more().await;
    let stale = format!("UPDATE account_row SET version = version + 1 WHERE id = '{}'", accounts[2].uuid());
    queue.world.raw(accounts[2], &stale).await.expect("runs");
    let (world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Stale { entity: "account" }), Ok(_)]), "{ends:?}");
    for (key, wanted) in accounts.iter().zip([1, 1, 0, 1]) {
        assert_eq!(points(&world, *key).await, wanted);
    }
}

/// Guard: `pim_hold` tries. Whoever waited in a shared transaction would keep all of it waiting.
#[tokio::test]
async fn whoever_must_wait_keeps_nobody_else_waiting() {
    let queue = Queue::of(places(2, 6).await).await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let other_place = hold(&queue.world, accounts[4]).await;
    let mut second = waiting(queue.change(4).await).await;
    until(&mut second, async || keys_waited_for(&onlooker).await == 2).await;
    let also_held = hold(&queue.world, accounts[1]).await;
    let mut held = waiting(queue.change(1).await).await;
    let others = [waiting(queue.change(2).await).await, waiting(queue.change(3).await).await];
    let (world, ends) = {
        other_place.rollback().await.expect("rolls back");
        second.await.expect("commits");
        queue.go(others).await
    };
    assert!(matches!(&ends[..], [Ok(_), Ok(_)]), "{ends:?}");
    until(&mut held, async || keys_waited_for(&onlooker).await == 1).await;
    assert_eq!(points(&world, accounts[1]).await, 0);
    also_held.rollback().await.expect("rolls back");
    assert_eq!(held.await.expect("commits").n, 2);
}

/// Guard: `State::next` takes one unit of a key. The second cannot win, and would take everybody with it.
#[tokio::test]
async fn no_two_units_of_one_key_go_together() {
    let queue = Queue::new().await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let mut others = Vec::new();
    for account in [1, 1, 2] {
        others.push(waiting(queue.change(account).await).await);
    }
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Conflict), Ok(_)]), "{ends:?}");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 1);
}

#[tokio::test]
async fn an_answer_is_given_again_among_others() {
    let world = one_place().await;
    let id = world.register().await.id;
    let request = || keyed("once", "{}");
    let late = change(&world, &request(), id).await;
    change(&world, &request(), id).await.commit().await.expect("commits");
    let queue = Queue::of(world).await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let others = [waiting(queue.change(1).await).await, waiting(late).await, waiting(queue.change(2).await).await];
    let (_world, ends) = queue.go(others).await;
    let [Ok(_), Err(UnitError::Replay(answer)), Ok(_)] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!(answer.body, json!({"points": 1}));
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 1, "nobody was refused");
}

#[tokio::test]
async fn units_of_two_entities_and_of_several_rows_find_their_way() {
    let queue = Queue::new().await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let note = |of: Id<Customer>, rows: usize| {
        let mut unit = queue.world.cluster.begin(&cx(), of);
        for _ in 0..rows {
            let id = Id::child_of(of.bucket(), unit.at());
            let note = CustomerNote { id, version: 0, customer: of, account: of, text: "x".to_owned() };
            unit.save(&write(ShopResource::Note), &note).expect("saves");
        }
        tell(&mut unit, "noted");
        unit
    };
    let several = note(accounts[3], 2).commit().await;
    assert_eq!(several.expect("does not wait for a place").n, 2);
    let others = [waiting(queue.change(1).await).await, waiting(note(accounts[2], 1)).await];
    let (_world, ends) = queue.go(others).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 2);
}

#[tokio::test]
async fn a_unit_whose_caller_has_left_is_not_sent() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let stays = waiting(queue.change(1).await).await;
    drop(waiting(queue.change(2).await).await);
    let other = waiting(queue.change(3).await).await;
    let (world, ends) = queue.go([stays, other]).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(points(&world, accounts[2]).await, 0);
}

#[tokio::test]
async fn whoever_leaves_before_others_came_along_leaves_nothing_behind() {
    let world = one_place().await;
    let id = world.register().await.id;
    let mut commits = world.cluster.commits();
    drop(waiting(change(&world, &cx(), id).await).await);
    drop(world);
    // A seat in the queue would keep the cluster, and the cluster its queue.
    let gone = async { while commits.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the cluster is gone");
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_told_and_nothing_is_sent() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let hasty = waiting(change(&queue.world, &soon(), accounts[1]).await).await;
    let other = waiting(queue.change(2).await).await;
    let end = hasty.await;
    assert!(matches!(end, Err(UnitError::Deadline)), "{end:?}");
    let (world, ends) = queue.go([other]).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(points(&world, accounts[1]).await, 0);
}

#[tokio::test]
async fn of_a_shared_commit_that_was_not_answered_each_finds_out_its_own() {
    for (cut, written) in [(Cut::Unseen, 0), (Cut::Unanswered, 1)] {
        let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
        let world = World::with(1, |mut settings| {
            let servers = settings.servers.as_mut().expect("servers");
            servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
            servers.settings.writers_max = 1;
            settings
        })
        .await;
        // Everything that is sent below is prepared: a cut is of what runs.
        let queue = Queue::of(world).await;
        let warm = [waiting(queue.change(1).await).await, waiting(queue.change(2).await).await];
        let (world, _ends) = queue.go(warm).await;
        let queue = Queue::of(world).await;
        let accounts = queue.accounts.clone();
        let recorded = waiting(change(&queue.world, &keyed("k", "{}"), accounts[1]).await).await;
        let silent = waiting(queue.change(2).await).await;
        wire.cut_next(cut, |trip| *trip == Trip::Run);
        let commits = queue.world.cluster.commits();
        let before = *commits.borrow();
        let (world, ends) = queue.go([recorded, silent]).await;
        assert!(wire.has_cut(), "{cut:?}");
        let [recorded, silent] = &ends[..] else { panic!("{ends:?}") };
        assert_eq!(recorded.is_ok(), written == 1, "{cut:?}: {recorded:?}");
        assert_eq!(*commits.borrow() - before, 1 + written, "whoever relays is told");
        assert!(matches!(silent, Err(UnitError::Unknown(_))), "{cut:?}: {silent:?}");
        for key in &accounts[1..=2] {
            assert_eq!(points(&world, *key).await, written, "{cut:?}");
        }
    }
}

#[tokio::test]
async fn a_fence_refuses_its_own_and_nobody_else() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let others = queue.three_more().await;
    let bucket = accounts[2].bucket().get();
    let fenced = format!("UPDATE pim_bucket_owned SET epoch = 2, map_version = 2 WHERE bucket = {bucket}");
    queue.world.raw(accounts[2], &fenced).await.expect("runs");
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Fence { .. }), Ok(_)]), "{ends:?}");
}

/// Guard: `go_together` asks again who is still there once it has a connection. What nobody waits for must not happen later.
#[tokio::test]
async fn whoever_leaves_while_there_is_no_connection_is_not_sent() {
    let world = places(1, 1).await;
    let mut accounts = Vec::new();
    for _ in 0..4 {
        accounts.push(world.register().await.id);
    }
    let hasty = change(&world, &soon(), accounts[1]).await;
    let (left, stays) = (change(&world, &cx(), accounts[2]).await, change(&world, &cx(), accounts[3]).await);
    let (onlooker, held) = (world.all_powerful(accounts[0]).await, hold(&world, accounts[0]).await);
    let mut first = waiting(change(&world, &cx(), accounts[0]).await).await;
    until(&mut first, async || keys_waited_for(&onlooker).await == 1).await;
    let [hasty, mut left, mut stays] = [waiting(hasty).await, waiting(left).await, waiting(stays).await];
    // Stands before them in the queue for the one connection.
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    let mut reader = Box::pin(db.read());
    tokio::select! {
        biased;
        _ = &mut reader => panic!("there is one connection"),
        () = ready(()) => {}
    }
    held.rollback().await.expect("rolls back");
    first.await.expect("commits");
    let reader = reader.await.expect("reads");
    let end = hasty.await;
    assert!(matches!(end, Err(UnitError::Deadline)), "{end:?}");
    for commit in [&mut left, &mut stays] {
        tokio::select! {
            biased;
            end = commit => panic!("there is no connection: {end:?}"),
            () = ready(()) => {}
        }
    }
    drop(left);
    drop(reader);
    stays.await.expect("commits");
    for (key, wanted) in accounts.iter().zip([1, 0, 0, 1]) {
        assert_eq!(points(&world, *key).await, wanted);
    }
}

/// Guard: the `lock_timeout` of `pim_enter`. A shared transaction holds a lane while it writes other rows; whoever waits for that
/// lane may hold what it needs, and must not be the deadlock's victim.
#[tokio::test]
async fn a_shared_transaction_gives_way_to_whoever_is_alone() {
    let world = one_place().await;
    let depot = |code: &str| DepotRow { id: Id::random(), version: 0, code: code.to_owned() };
    let mut depots = [depot("east"), depot("west"), depot("north")];
    depots.sort_by_key(|depot| depot.id.bucket().lane().get());
    let settings = ServerSettings { transaction_max: Duration::from_secs(30), ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(world.folder.path()));
    let control = Db::connect("control-super", secrets, settings).await.expect("connects");
    let save = |depot: &DepotRow| {
        let mut unit = world.cluster.begin_control(&cx(), depot.id);
        unit.save(&write(ShopResource::Depot), depot).expect("saves");
        tell(&mut unit, "opened");
        unit
    };
    let mut held = control.begin().await.expect("begins");
    let lock = format!("SELECT pg_advisory_xact_lock(uuid_hash_extended('{}', 7461))", depots[2].id.uuid());
    held.script(&lock).await.expect("locks");
    let mut first = waiting(save(&depots[2])).await;
    until(&mut first, async || keys_waited_for(&control).await == 1).await;
    let others = [waiting(save(&depots[0])).await, waiting(save(&depots[1])).await].map(tokio::spawn);

    let mut alone = control.begin().await.expect("begins");
    let taken = format!(
        "INSERT INTO depot_row (id, home_key, bucket, version, created_at, updated_at, code) \
         SELECT id, id, pim_bucket_of(id), 1, 1, 1, '{}' FROM (SELECT '{}'::uuid) AS new(id)",
        depots[1].code,
        Id::<super::world::Depot>::random().uuid(),
    );
    alone.script(&taken).await.expect("inserts");
    held.rollback().await.expect("rolls back");
    first.await.expect("commits");
    // Longer than a deadlock is looked for: whoever closes the circle later is its victim.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let lane = depots[0].id.bucket().lane().get();
    alone.script(&format!("SELECT pg_advisory_xact_lock(7462, {lane})")).await.expect("is nobody's victim");
    alone.rollback().await.expect("rolls back");
    for other in others {
        other.await.expect("runs").expect("commits");
    }
}
