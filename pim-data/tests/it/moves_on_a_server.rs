//! What a move of buckets must mind on a server: whose rights it takes, how much one statement carries, who is let in meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, SqlPair, Statement};
use pim_data::cluster::{Access, Cluster};
use pim_data::consistency::Consistency;
use pim_data::relocation::{MoveError, MoveStep};

use super::moving::{at_step, eventually, filled, go_on_to, hasty_mover, home_of, mover, rows_on};
use super::queueing::number;
use super::without_owner::WithoutOwner;
use super::world::{Account, Folder, ShopResource, World, cx, read, schema, settings, uuid};
use crate::wire::{Trip, Wire};

/// Guard: what only the owner may is not begun by anybody else, and nobody else is kept from opening by what is left of it.
#[tokio::test]
async fn a_program_without_the_owners_secrets_moves_nothing_and_opens_beside_a_broken_off_move() {
    let folder = Folder::new();
    let cluster = Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema()).await.expect("opens");
    let world = World { cluster, policy: super::world::policy(), folder };
    let account = world.register().await;
    let (_, to) = home_of(&world, &account);
    let (theirs, _) = mover(&world.cluster);
    let planned = theirs.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    for step in [MoveStep::Fenced, MoveStep::Activating] {
        drop(at_step(&theirs, &planned, step).await);
        let mut less = settings(&world.folder, 2).with_access(Access::Shared);
        let servers = less.servers.as_mut().expect("servers");
        servers.secrets = Arc::new(WithoutOwner(Arc::clone(&servers.secrets)));
        let service = Cluster::open(less, schema()).await.expect("opens beside a broken off move");
        let (ours, _) = mover(&service);
        assert!(!ours.may_move());
        assert!(matches!(ours.run(&cx(), planned.id).await, Err(MoveError::NotOwner(_))));
        assert_eq!(theirs.find(planned.id).await.expect("reads").step, step, "nothing was done");
    }
    assert!(theirs.may_move());
    theirs.run(&cx(), planned.id).await.expect("whoever may goes on");
    world.change(account.id, |account| account.points = 7).await.expect("the target takes writes");
}

/// Guard: what is written goes as one parameter, of which a statement has no more than 65,535.
#[tokio::test]
async fn a_key_with_more_rows_than_a_statement_has_parameters_moves() {
    const ROWS: u64 = 12_000;
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    // The last twelve digits say nothing of the bucket.
    let many = format!(
        "INSERT INTO note_row (id, home_key, bucket, version, created_at, updated_at, account, text) \
         SELECT (left({0}, 24) || lpad(to_hex(number), 12, '0'))::uuid, {0}, {1}, 1, 1, 1, {0}, 'one of many' \
         FROM generate_series(1, {ROWS}) AS many(number)",
        uuid(account.id.uuid()),
        account.id.bucket()
    );
    world.raw(account.id, &many).await.expect("runs");
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let done = mover.run(&cx(), planned.id).await.expect("moves");
    assert!(done.report.rows > 2 * ROWS, "each with its history");
    assert_eq!(rows_on(&world, to, &account).await[2..4], [3 + ROWS, 3 + ROWS]);
    assert_eq!(rows_on(&world, from, &account).await, [0; 7]);
}

/// Guard: values arrive as they were, whatever they look like on the way.
#[tokio::test]
async fn values_arrive_as_they_were() {
    let world = World::new(2).await;
    let mut account = Account::new(Id::random());
    account.name = "O'Brien \"\\x00\" \\u0041 \u{1f600}\n{}[]\t?$1".to_owned();
    account.tags = vec!["a\"b".to_owned(), "\\".to_owned(), String::new()];
    account.points = i64::MIN;
    let account = world.register_as(account).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    mover.run(&cx(), planned.id).await.expect("moves");
    assert_eq!(world.cluster.router().route(&account.id).shard, to);
    let look = read(ShopResource::Account);
    let seen = world.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Strong).await.expect("reads");
    assert_eq!(seen, Some(account));
}

/// Guard: an end is cleared in a transaction that keeps whoever would own the bucket again waiting.
#[tokio::test]
async fn whoever_would_own_a_bucket_again_waits_for_its_clearing() {
    let world = World::new(1).await;
    let account = world.register().await;
    let bucket = account.id.bucket();
    world.raw(account.id, "UPDATE pim_bucket_owned SET state = 'moved'").await.expect("runs");
    let (clearing, owning) = (world.powerful(ShardId(0)).await, world.powerful(ShardId(0)).await);
    let mut clears = clearing.begin().await.expect("begins");
    clears.script(&format!("SELECT pim_require('[{bucket}]', 'moved')")).await.expect("holds");
    let mut owns = owning.begin().await.expect("begins");
    owns.script("SET LOCAL lock_timeout = '100ms'").await.expect("runs");
    let takes = format!("UPDATE pim_bucket_owned SET state = 'owned' WHERE bucket = {bucket}");
    assert!(owns.script(&takes).await.is_err(), "it would take the bucket in the middle of its clearing");
    owns.rollback().await.expect("ends");
    clears.commit().await.expect("commits");
    world.raw(account.id, &takes).await.expect("runs now");
    let late = world.raw(account.id, &format!("SELECT pim_require('[{bucket}]', 'moved')")).await;
    assert!(format!("{late:?}").contains("pim:bucket-is-owned"), "{late:?}");
}

/// Guard: while writers wait, each end is asked as little as can be, and nobody else at all.
#[tokio::test]
async fn writers_wait_for_few_trips() {
    let wires = [
        Wire::before(&crate::server::dsn(None, "postgres")).await,
        Wire::before(&crate::server::dsn(None, "postgres")).await,
    ];
    let world = World::with(2, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wires[0].secrets(Arc::clone(&servers.secrets), "shard-0-owner");
        servers.secrets = wires[1].secrets(Arc::clone(&servers.secrets), "shard-1-owner");
        // Probes are trips too.
        servers.settings.probe_every = Duration::from_secs(3600);
        settings
    })
    .await;
    let account = filled(&world).await;
    let (mover, _) = mover(&world.cluster);
    // There and back: from then on both ends have prepared what they are asked.
    for _ in 0..2 {
        let planned = mover.plan(&cx(), [account.id.bucket()], home_of(&world, &account).1).await.expect("plans");
        mover.run(&cx(), planned.id).await.expect("moves");
    }
    let (from, to) = home_of(&world, &account);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Fenced).await;
    wires.iter().for_each(Wire::begin);
    go_on_to(&mut run, MoveStep::Activated).await;
    let trips = |shard: ShardId| wires[usize::from(shard.0)].trips().0;
    // All there is to compare, once, for nothing has changed; and that the bucket goes, or comes. When nobody waits any more:
    // whether each says all of what the map says.
    let few = vec![Trip::Run; 2 + 2];
    assert_eq!((trips(from), trips(to)), (few.clone(), few));
}

/// Until somebody waits for this advisory lock.
async fn is_waited_for(db: &Db, class: u32, object: u64) {
    let give_up = Instant::now() + Duration::from_secs(10);
    let waiting = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = {class} AND objid = {object} \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    loop {
        let rows = db.query(Statement::of(SqlPair::generated(waiting.clone()))).await.expect("reads");
        if rows[0].count(0).expect("a number") > 0 {
            return;
        }
        assert!(Instant::now() < give_up, "nobody waited");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Guard: `pim_lift` takes the fence's locks. A mover that goes while its fence waits for a writer may leave a call behind that goes on,
/// until its server notices.
#[tokio::test]
async fn a_fence_that_nobody_waits_for_any_more_is_lifted_too() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let bucket = account.id.bucket();
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [bucket], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Copying).await;
    let (writer, onlooker) = (world.powerful(from).await, world.powerful(from).await);
    let mut writes = writer.begin().await.expect("begins");
    writes.script(&format!("SELECT pg_advisory_xact_lock_shared(7461, {bucket})")).await.expect("locks");
    let request = cx();
    tokio::select! {
        end = run.step(&request) => panic!("a writer is in flight: {end:?}"),
        () = is_waited_for(&onlooker, 7461, bucket.get().into()) => {}
    }
    drop(run);
    let drain = Statement::of(SqlPair::generated(format!("SELECT pim_drain('[[{bucket}]]')")));
    let goes_on = tokio::spawn(async move { writer.query(drain).await });
    let others = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pim_drain%' AND usename <> current_user \
                  AND datname = current_database() AND state = 'active'";
    eventually("it is noticed", async || number(&onlooker, others).await == 0).await;
    is_waited_for(&onlooker, 7461, bucket.get().into()).await;
    let cancels = tokio::spawn(async move { mover.cancel(planned.id).await });
    is_waited_for(&onlooker, 7461, 4096).await;
    writes.rollback().await.expect("ends");
    goes_on.await.expect("runs").expect("fences");
    cancels.await.expect("runs").expect("cancels");
    world.change(account.id, |account| account.points = 7).await.expect("the source takes writes again");
}

/// Guard: nor is a bucket left between giver and taker by a call that goes on when its mover has gone, and nobody has seen yet.
#[tokio::test]
async fn what_nobody_waits_for_any_more_gives_no_bucket_to_nobody() {
    let world = World::with(2, |mut settings| {
        settings.maps_every = Duration::from_millis(50);
        settings
    })
    .await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let bucket = account.id.bucket();
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [bucket], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Activating).await;
    let (holder, onlooker) = (world.powerful(from).await, world.powerful(from).await);
    let mut holds = holder.begin().await.expect("begins");
    holds.script(&format!("SELECT pg_advisory_xact_lock_shared(7461, {bucket})")).await.expect("locks");
    let request = cx();
    tokio::select! {
        end = run.step(&request) => panic!("somebody holds the bucket: {end:?}"),
        () = is_waited_for(&onlooker, 7461, bucket.get().into()) => {}
    }
    // The server may notice before anybody lifts the fence: the same call of somebody who stays stands behind the mover's.
    let version = mover.find(planned.id).await.expect("reads").map_version;
    let give = format!("SELECT pim_hand_over('[[{bucket}, {to}, true]]', {version})");
    let goes_on = tokio::spawn(async move { holder.query(Statement::of(SqlPair::generated(give))).await });
    is_waited_for(&onlooker, 7461, 4096).await;
    drop(run);
    let others = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pim_hand_over%' AND usename <> current_user \
                  AND datname = current_database() AND state = 'active'";
    eventually("it is noticed", async || number(&onlooker, others).await == 0).await;
    // Whoever lifts the fence has seen by now that no shard follows the new map.
    is_waited_for(&onlooker, 7461, 4096).await;
    holds.rollback().await.expect("ends");
    goes_on.await.expect("runs").expect("gives");
    let write = async || world.change(account.id, |account| account.points = 7).await.is_ok();
    eventually("somebody takes writes", write).await;
    assert_eq!(world.cluster.router().route(&account.id).shard, to);
}

/// Guard: the fence locks first. Whoever is in the middle of a write commits before it, and what they wrote goes along.
#[tokio::test]
async fn a_fence_waits_for_the_write_in_flight_and_takes_it_along() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let bucket = account.id.bucket();
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [bucket], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Copying).await;
    let (writer, onlooker) = (world.powerful(from).await, world.powerful(from).await);
    let mut writing = writer.begin().await.expect("begins");
    let write = format!(
        "SELECT pg_advisory_xact_lock_shared(7461, {bucket}); UPDATE account_row SET points = 99; \
         UPDATE key_head SET n = n + 1"
    );
    writing.script(&write).await.expect("runs");
    let context = cx();
    let (fenced, ()) = tokio::join!(run.step(&context), async {
        is_waited_for(&onlooker, 7461, u64::from(bucket.get())).await;
        writing.commit().await.expect("commits");
    });
    assert_eq!(fenced.expect("fences"), MoveStep::Fenced);
    drop(run);
    mover.run(&cx(), planned.id).await.expect("moves");
    let look = read(ShopResource::Account);
    let seen = world.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Strong).await.expect("reads");
    assert_eq!(seen.expect("is there").points, 99);
}

/// Guard: rows are known by the transactions that wrote them. What somebody types between the last pass and the fence does not
/// change the key's number, and goes along all the same.
#[tokio::test]
async fn a_row_that_somebody_typed_goes_along() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, tap) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Copying).await;
    // The last thing that is asked before the fence.
    tap.silent_at.store(2, Ordering::SeqCst);
    let context = cx();
    let (fenced, ()) = tokio::join!(run.step(&context), async {
        tap.is_asked(2).await;
        let type_it = format!("UPDATE account_row SET points = 99 WHERE id = {}", uuid(account.id.uuid()));
        world.raw(account.id, &type_it).await.expect("runs");
        tap.silent_at.store(0, Ordering::SeqCst);
    });
    assert_eq!(fenced.expect("fences"), MoveStep::Fenced);
    go_on_to(&mut run, MoveStep::Done).await;
    let look = read(ShopResource::Account);
    let seen = world.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Strong).await.expect("reads");
    assert_eq!(seen.expect("is there").points, 99);
    assert_eq!(run.record().report.keys_copied_fenced, 1);
}

/// Guard: one deadline bounds all that is done under the fence: a target that hangs keeps no healthy source's bucket shut.
#[tokio::test]
async fn a_target_that_falls_silent_under_the_fence_has_it_lifted() {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(2, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-1-owner");
        settings
    })
    .await;
    let mut account = filled(&world).await;
    while home_of(&world, &account).0 != ShardId(0) {
        account = filled(&world).await;
    }
    let (mover, _) = hasty_mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], ShardId(1)).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Fenced).await;
    wire.fall_silent();
    let context = cx();
    let stepped = tokio::time::timeout(Duration::from_secs(25), run.step(&context)).await;
    let refused = stepped.expect("it does not wait for the target").expect_err("it cannot be compared");
    assert!(refused.is_retryable(), "{refused:?}");
    assert_eq!(run.record().step, MoveStep::Planned);
    world.change(account.id, |account| account.points = 7).await.expect("the source takes writes again");
    assert_eq!(world.cluster.router().route(&account.id).shard, ShardId(0));
}

/// Guard: the record of a move waits for whoever writes to its lane, as every unit does.
#[tokio::test]
async fn the_record_of_a_move_waits_for_its_lane() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let lane = account.id.bucket().lane().get();
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Activated).await;
    let (writer, onlooker) = (world.powerful(from).await, world.powerful(from).await);
    let mut writing = writer.begin().await.expect("begins");
    writing.script(&format!("SELECT pg_advisory_xact_lock(7462, {lane})")).await.expect("locks");
    let context = cx();
    let (concluded, ()) = tokio::join!(run.step(&context), async {
        is_waited_for(&onlooker, 7462, u64::from(lane)).await;
        writing.commit().await.expect("commits");
    });
    assert_eq!(concluded.expect("concludes"), MoveStep::Done);
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}
