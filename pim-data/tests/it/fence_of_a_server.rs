//! The fence as the server itself holds it: lock first, epoch afterwards, and nobody types around it.

use std::time::{Duration, Instant};

use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::shard::{Bucket, ShardId};
use pim_data::backend::{Db, DbError, SqlPair, Statement};
use pim_data::unit::UnitError;
use serde_json::{Value as Json, json};

use super::world::{Account, Customer, ShopResource, World, cx, tell, uuid, write};

/// What a unit would enter with.
fn entry(id: Id<Customer>, epoch: u64) -> Json {
    json!({"bucket": id.bucket().get(), "epoch": epoch, "home": id.uuid(), "head": 1, "user_id": "u-1", "role": "owner",
        "request": uuid::Uuid::new_v4(), "trace": "", "at": 1})
}

const ENTER: SqlPair =
    SqlPair::postgres("SELECT n, replay FROM pim_enter(jsonb_populate_record(NULL::pim_context, ?))");

async fn enter(db: &Db, entry: &Json) -> Result<(), DbError> {
    let call = Statement::of(ENTER);
    let entered = db.query(call.bind(pim_data::backend::Value::Json(entry.to_string()))).await;
    entered.map(drop)
}

async fn number(db: &Db, sql: &str) -> u64 {
    let rows = db.query(Statement::of(SqlPair::generated(sql.to_owned()))).await.expect("runs");
    rows[0].count(0).expect("a number")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < give_up, "{what} did not come to pass");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_waited_for_the_fence_sees_what_it_did() {
    let world = World::new(1).await;
    let account = world.register().await;
    let bucket = account.id.bucket().get();
    let (fencer, onlooker) = (world.all_powerful(account.id).await, world.all_powerful(account.id).await);
    let mut fence = fencer.begin().await.expect("begins");
    fence.script(&format!("SELECT pg_advisory_xact_lock(7461, {bucket})")).await.expect("locks");
    let change = format!("UPDATE pim_bucket_owned SET epoch = 2, map_version = 2 WHERE bucket = {bucket}");
    fence.script(&change).await.expect("fences");
    let mut unit = world.cluster.begin(&cx(), account.id);
    let permit = write(ShopResource::Account);
    let mut seen = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is there");
    seen.points = 7;
    unit.save(&permit, &seen).expect("saves");
    tell(&mut unit, "changed");
    let writer = tokio::spawn(unit.commit());
    let waiting = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = 7461 AND objid = {bucket} \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    until("the writer's wait", async || number(&onlooker, &waiting).await == 1).await;
    fence.commit().await.expect("commits");
    // It had sent its whole unit before the fence was there; one statement that locks and reads would let it through.
    let outcome = writer.await.expect("runs");
    assert!(matches!(outcome, Err(UnitError::Fence { newest, .. }) if newest.0 == 2), "{outcome:?}");
    assert_eq!(number(&onlooker, "SELECT points FROM account_row").await, 0);
    assert_eq!(number(&onlooker, "SELECT n FROM key_head").await, 1);
}

#[tokio::test]
async fn a_refusal_names_the_newer_map_and_the_owner() {
    let world = World::new(1).await;
    let account = world.register().await;
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    enter(&db, &entry(account.id, 1)).await.expect("is let in");
    let owned = |change: &str| format!("UPDATE pim_bucket_owned SET map_version = 7, {change}");
    for (change, epoch, owner) in [
        ("epoch = 5", 1, None),
        ("epoch = 5, state = 'moved', moved_to = 3", 5, Some(3)),
        ("state = 'draining', moved_to = 4", 5, Some(4)),
        ("state = 'incoming', moved_to = NULL", 5, None),
    ] {
        world.raw(account.id, &owned(change)).await.expect("runs");
        let refused = enter(&db, &entry(account.id, epoch)).await;
        let Err(DbError::Fence { newest: 7, owner: found, draining }) = refused else {
            panic!("{change}: {refused:?}")
        };
        assert_eq!((found, draining), (owner, change.contains("draining") || change.contains("incoming")), "{change}");
    }
}

#[tokio::test]
async fn whoever_reads_an_older_snapshot_is_not_let_in() {
    let world = World::new(1).await;
    let account = world.register().await;
    let db = world.cluster.database(ShardId(0)).expect("a shard");
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut tx = db.begin().await.expect("begins");
        tx.script(&format!("SET TRANSACTION ISOLATION LEVEL {level}")).await.expect("runs");
        let call = Statement::of(ENTER);
        let refused = tx.query(call.bind(pim_data::backend::Value::Json(entry(account.id, 1).to_string()))).await;
        let Err(DbError::Refused { rule, .. }) = refused else { panic!("{level}: {refused:?}") };
        assert!(rule.contains("pim:isolation-must-be-read-committed"), "{rule}");
    }
}

/// A row as somebody would type it.
pub(crate) fn typed(id: Id<Customer>, bucket: Bucket) -> String {
    format!(
        "INSERT INTO account_row (id, home_key, bucket, version, created_at, updated_at, name, state, points, vip, tags) \
         VALUES ({0}, {0}, {1}, 1, 1, 1, 'x', 'open', 0, false, '[]')",
        uuid(id.uuid()),
        bucket.get()
    )
}

/// A record of a request as somebody would type it.
fn record(bucket: Bucket) -> String {
    let (digest, id) = ("decode(repeat('07', 32), 'hex')", uuid(Id::<Customer>::random().uuid()));
    let bucket = bucket.get();
    format!("INSERT INTO idempotency VALUES ({digest}, {bucket}, {digest}, 201, '{{}}', 1, {id}, 1)")
}

#[tokio::test]
async fn hand_typed_rows_live_where_their_bucket_does() {
    let world = World::new(2).await;
    let mut mine = world.register().await.id;
    while world.cluster.router().route(&mine).shard != ShardId(0) {
        mine = world.register().await.id;
    }
    let mut theirs = Id::<Customer>::random();
    while world.cluster.router().route(&theirs).shard == ShardId(0) {
        theirs = Id::random();
    }
    let elsewhere = theirs.bucket();
    // Even from somebody whom row-level security does not bind.
    for (sql, rule) in [
        (typed(theirs, elsewhere), "pim:bucket-not-owned"),
        (typed(theirs, mine.bucket()), "account_bucket"),
        (format!("UPDATE account_row SET bucket = {}", elsewhere.get()), "pim:bucket-not-owned"),
        (format!("UPDATE account_row SET id = {}, bucket = {}", uuid(theirs.uuid()), elsewhere.get()), "not-owned"),
        (format!("INSERT INTO key_head VALUES ({}, {}, 1)", uuid(theirs.uuid()), elsewhere.get()), "not-owned"),
        ("UPDATE key_head SET n = n - 1".to_owned(), "pim:key-head-must-rise"),
        (format!("INSERT INTO key_head VALUES ({}, {}, 0)", uuid(theirs.uuid()), mine.bucket().get()), "must-rise"),
        (format!("INSERT INTO key_head VALUES ({}, {}, 1)", uuid(theirs.uuid()), mine.bucket().get()), "of_bucket"),
        (record(elsewhere), "pim:bucket-not-owned"),
    ] {
        let refused = world.raw(mine, &sql).await;
        let Err(DbError::Refused { rule: found, .. }) = &refused else { panic!("{sql}: {refused:?}") };
        assert!(found.contains(rule), "{sql}: {found}");
    }
    let free = loop {
        let id = Id::<Customer>::random();
        if world.cluster.router().route(&id).shard == ShardId(0) {
            break id;
        }
    };
    world.raw(mine, &typed(free, free.bucket())).await.expect("a row at home is nobody's business");
    world.raw(mine, &record(free.bucket())).await.expect("nor is a record");
}

/// Guard: what looks like an owner in a snapshot from before the lock may be none any more.
#[tokio::test]
async fn nor_by_an_older_snapshot() {
    let world = World::new(1).await;
    let mine = world.register().await.id;
    let new = Id::<Customer>::random();
    let db = world.powerful(ShardId(0)).await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut tx = db.begin().await.expect("begins");
        tx.script(&format!("SET TRANSACTION ISOLATION LEVEL {level}; SELECT 1 FROM pim_identity")).await.expect("runs");
        let gone = format!("UPDATE pim_bucket_owned SET state = 'moved' WHERE bucket = {}", new.bucket().get());
        world.raw(mine, &gone).await.expect("says so");
        let refused = tx.script(&typed(new, new.bucket())).await;
        let Err(DbError::Refused { rule, .. }) = refused else { panic!("{level}: {refused:?}") };
        assert!(rule.contains("pim:isolation-must-be-read-committed"), "{rule}");
    }
}

/// Guard: a row stays in its bucket, also where both are this shard's: it would leave one that may be fenced.
#[tokio::test]
async fn nor_by_going_to_another_key() {
    let world = World::new(1).await;
    let mine = world.register().await.id;
    let mut others = std::iter::repeat_with(Id::<Customer>::random);
    let new = others.find(|it| it.bucket() != mine.bucket()).expect("another bucket");
    let (id, bucket) = (uuid(new.uuid()), new.bucket().get());
    let sql = format!("UPDATE account_row SET id = {id}, home_key = {id}, bucket = {bucket}, version = version + 1");
    let refused = world.raw(mine, &sql).await;
    let Err(DbError::Refused { rule, .. }) = refused else { panic!("{refused:?}") };
    assert!(rule.contains("pim:bucket-changed"), "{rule}");
}

/// A bucket on its way in takes rows, one that leaves or has left takes none.
#[tokio::test]
async fn and_not_where_it_leaves_or_has_left() {
    let world = World::new(1).await;
    let mine = world.register().await.id;
    let new = Id::<Customer>::random();
    for (state, is_taken) in [("draining", false), ("moved", false), ("incoming", true)] {
        let say = format!("UPDATE pim_bucket_owned SET state = '{state}' WHERE bucket = {}", new.bucket().get());
        world.raw(mine, &say).await.expect("says so");
        let typed = world.raw(mine, &typed(new, new.bucket())).await;
        match typed {
            Ok(_) => assert!(is_taken, "{state}"),
            Err(DbError::Refused { rule, .. }) => assert!(!is_taken && rule.contains("not-owned"), "{state}: {rule}"),
            Err(error) => panic!("{state}: {error}"),
        }
    }
}

/// A unit asks for its bucket once, when it enters. That is worth something to that bucket only, and until the unit ends.
#[tokio::test]
async fn nor_by_what_a_unit_has_been_told() {
    let world = World::new(1).await;
    let mine = world.register().await.id;
    let mut others = std::iter::repeat_with(Id::<Customer>::random);
    let left = others.find(|it| it.bucket() != mine.bucket()).expect("another bucket");
    let leave = |bucket: Bucket| format!("UPDATE pim_bucket_owned SET state = 'moved' WHERE bucket = {}", bucket.get());
    world.raw(mine, &leave(left.bucket())).await.expect("has left");
    let db = world.powerful(ShardId(0)).await;
    let is_refused = |outcome: Result<(), DbError>| {
        let Err(DbError::Refused { rule, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(rule.contains("pim:bucket-not-owned"), "{rule}");
    };
    let mut unit = db.begin().await.expect("begins");
    let call = Statement::of(ENTER).bind(pim_data::backend::Value::Json(entry(mine, 1).to_string()));
    unit.query(call.clone()).await.expect("is let in");
    is_refused(unit.script(&typed(left, left.bucket())).await);
    drop(unit);
    let mut unit = db.begin().await.expect("begins");
    unit.query(call).await.expect("is let in");
    unit.commit().await.expect("commits");
    world.raw(mine, &leave(mine.bucket())).await.expect("leaves");
    // On the connection that the unit was on.
    let again = Id::<Customer>::child_of(mine.bucket(), Timestamp::from_micros(1));
    let mut typist = db.begin().await.expect("begins");
    is_refused(typist.script(&typed(again, mine.bucket())).await);
}

#[tokio::test]
async fn a_fence_waits_for_hand_typed_rows_too() {
    let world = World::new(1).await;
    let id = Id::<Customer>::random();
    let (typist, fencer) = (world.powerful(ShardId(0)).await, world.powerful(ShardId(0)).await);
    let mut typing = typist.begin().await.expect("begins");
    typing.script(&typed(id, id.bucket())).await.expect("runs");
    let free = format!("SELECT pg_try_advisory_xact_lock(7461, {})::int", id.bucket().get());
    assert_eq!(number(&fencer, &free).await, 0, "a row that is not committed yet holds its bucket");
    typing.commit().await.expect("commits");
    assert_eq!(number(&fencer, &free).await, 1);
}

#[tokio::test]
async fn a_transaction_of_several_rows_ends_in_time() {
    let wire = crate::wire::Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(1, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(std::sync::Arc::clone(&servers.secrets), "shard-0");
        servers.settings.transaction_max = Duration::from_secs(4);
        settings
    })
    .await;
    let account = world.register().await;
    let mut unit = world.cluster.begin(&cx(), account.id);
    tell(&mut unit, "an event without a row takes three trips");
    wire.fall_silent_after(|trip| matches!(trip, crate::wire::Trip::Script(text) if text.starts_with("BEGIN;")));
    // The deadline of the request is twenty seconds away.
    let begun = Instant::now();
    let outcome = unit.commit().await;
    let Err(UnitError::Database(error @ DbError::Cancelled { .. })) = outcome else { panic!("{outcome:?}") };
    assert!(error.is_retryable(), "nothing was written, and there is time left");
    assert!(begun.elapsed() < Duration::from_secs(15), "the transaction has a bound of its own");
    let onlooker = world.powerful(ShardId(0)).await;
    let free = format!("SELECT pg_try_advisory_xact_lock(7461, {})::int", account.id.bucket().get());
    until("the end of its locks", async || number(&onlooker, &free).await == 1).await;
    assert_eq!(number(&onlooker, "SELECT n FROM key_head").await, 1);
}
