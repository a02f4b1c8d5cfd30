//! On a server many write at once: a relay skips nobody who commits late, waits for nobody, and shares lanes with others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use pim_core::shard::{HomeKey, ShardId};
use pim_data::backend::{Db, SqlPair, Statement, Transaction, Value};
use pim_events::{Ack, BusError, DomainEvent as _, NewRecord, Origin, Publisher, Relay, RelaySettings, Source};
use serde_json::json;
use uuid::Uuid;

use super::rig::{Folder, Happened, Journal, Rig, Running, eventually, patient, powerful, powerful_of, relay_settings};

/// The first event of a key, as the arguments of `pim_outbox_append`.
pub(super) fn first_event(home: HomeKey) -> (String, String) {
    let context = json!({
        "bucket": home.bucket().get(), "epoch": 1, "home": home.uuid(), "at": 1, "user_id": "u-1", "role": "person",
        "request": Uuid::new_v4(), "trace": pim_core::context::TraceContext::root().to_string(),
    });
    let payload = serde_json::to_string(&Happened { thing: Uuid::nil(), step: 1 }).unwrap();
    let event = json!([{
        "id": Uuid::now_v7(), "topic": "domain.v1", "type": Happened::TYPE, "version": 1, "aggregate": Happened::AGGREGATE,
        "aggregate_id": Uuid::nil(), "aggregate_version": 1, "payload": payload,
    }]);
    (context.to_string(), event.to_string())
}

/// The same, written by a transaction that stays open.
async fn open_with_event(db: &Db, home: HomeKey) -> Transaction {
    const APPEND: &str = "SELECT pim_outbox_append(jsonb_populate_record(NULL::pim_context, ?), ?, 1)";
    let (context, event) = first_event(home);
    let append = Statement::of(SqlPair::postgres(APPEND)).bind(Value::Json(context)).bind(Value::Json(event));
    let (tx, _none) = db.begin_with(&[append]).await.unwrap();
    tx
}

/// Two keys of one shard.
fn neighbours(rig: &Rig) -> (HomeKey, HomeKey) {
    let shard = |home: &HomeKey| rig.cluster.router().route(home).shard;
    let one = patient();
    let other = std::iter::repeat_with(patient).find(|other| shard(other) == shard(&one)).unwrap();
    (one, other)
}

async fn number(db: &Db, text: &'static str) -> u64 {
    db.query(Statement::of(SqlPair::postgres(text))).await.unwrap()[0].count(0).unwrap()
}

/// Guard: a window looks up what was in progress when the one before it was taken (`pim_outbox_next`). A cursor that went
/// by seq alone would skip the event whose number was taken first and which was committed last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_commits_late_is_sent_and_keeps_nobody_waiting() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    let (late, swift) = neighbours(&rig);
    let db = powerful(&rig, late).await;
    let open = open_with_event(&db, late).await;
    for step in 1..=20 {
        rig.write(swift, Uuid::new_v4(), &[step]).await;
    }
    eventually("the others are applied", || async { rig.order_of(swift).await.len() == 20 }).await;
    assert!(rig.order_of(late).await.is_empty());
    eventually("the cursors know it", || async {
        number(
            &db,
            "SELECT count(*) FROM outbox_event e JOIN outbox_cursor c ON c.lane = e.lane
            WHERE pg_visible_in_snapshot(e.xid, c.low)",
        )
        .await
            == 20
    })
    .await;
    open.commit().await.unwrap();
    eventually("the late one too", || async { rig.order_of(late).await == [1] }).await;
}

/// Guard: the same for a relay that starts anew from what is written, with the transaction still open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_commits_late_is_sent_by_the_next_relay() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (late, swift) = neighbours(&rig);
    let db = powerful(&rig, late).await;
    let open = open_with_event(&db, late).await;
    let relay = Running::relay(rig.relay());
    rig.write(swift, Uuid::new_v4(), &[1, 2, 3]).await;
    eventually("sent", || async { sent(&rig).await == 3 }).await;
    relay.end().await;
    open.commit().await.unwrap();
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("the late one too", || async { rig.order_of(late).await == [1] }).await;
    assert_eq!(sent(&rig).await, 4, "and nothing is sent twice");
}

/// How many events are on the bus.
pub(super) async fn sent(rig: &Rig) -> u64 {
    use pim_events::Subscriber as _;
    let mut total = 0;
    for partition in 0..rig.bus.partitions(pim_events::DOMAIN_TOPIC).await.unwrap() {
        total += rig.bus.end_offset(pim_events::DOMAIN_TOPIC, partition).await.unwrap();
    }
    total
}

/// Guard: a backlog is cut into windows at transactions, none of them empty (`pim_outbox_end`), and each event is in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_cut_between_transactions() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (one, other) = neighbours(&rig);
    let db = powerful(&rig, one).await;
    let open = open_with_event(&db, other).await;
    for steps in [[1, 2, 3, 4].as_slice(), &[5], &[6], &[7, 8]] {
        rig.write(one, Uuid::new_v4(), steps).await;
    }
    let (mut low, mut sizes, mut seen) = ("1:1:".to_owned(), Vec::new(), Vec::new());
    while seen.len() < 8 {
        let end = Statement::of(SqlPair::postgres("SELECT pim_outbox_end(CAST(? AS text)::pg_snapshot, 2)::text"));
        let high = db.query(end.bind(low.as_str())).await.unwrap()[0].text(0).unwrap().to_owned();
        let lanes = Value::Json(json!((0..64).collect::<Vec<_>>()).to_string());
        let next = Statement::of(SqlPair::postgres("SELECT n FROM pim_outbox_next(?, ?, ?, 0, 100)"));
        let rows = db.query(next.bind(lanes).bind(low.as_str()).bind(high.as_str())).await.unwrap();
        let found: Vec<u64> = rows.iter().filter_map(|row| row.count(0).ok()).collect();
        assert!(!found.is_empty(), "behind {low} up to {high}");
        sizes.push(found.len());
        seen.extend(found);
        low = high;
    }
    assert_eq!((seen, sizes), ((1..=8).collect(), vec![4, 2, 2]));
    open.commit().await.unwrap();
    let _relay = Running::relay(rig.relay());
    eventually("all nine", || async { sent(&rig).await == 9 }).await;
}

/// Guard: `pim_outbox_lasts`. Who had them may have died before the clock was set back, and is counted no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_clock_that_was_set_back() {
    const DEAD: &str = "WITH dead AS (INSERT INTO outbox_relay (owner, until_ms, lease_ms)
        VALUES (gen_random_uuid(), pim_now_ms() + 600000, 2000) RETURNING owner, until_ms, lease_ms)
        UPDATE outbox_cursor c SET owner = d.owner, lease_until_ms = d.until_ms, lease_ms = d.lease_ms FROM dead d";
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let db = powerful(&rig, patient()).await;
    db.begin().await.unwrap().commit_with(vec![Statement::of(SqlPair::postgres(DEAD))]).await.unwrap();
    let relay = Running::relay(rig.relay());
    eventually("it has all lanes", || async {
        number(&db, "SELECT count(*) FROM outbox_cursor WHERE owner IS NOT NULL AND lease_ms <> 2000").await == 64
    })
    .await;
    relay.end().await;
}

/// Guard: `pim_outbox_lease` passes over relays that are at their own row. After a clock was set back each takes the others for dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_take_each_other_for_dead_do_not_wait() {
    const FAR: &str = "INSERT INTO outbox_relay (owner, until_ms, lease_ms) VALUES (?, pim_now_ms() + 600000, 2000)";
    const LEASE: &str = "SELECT share FROM pim_outbox_lease(?, 2000, 0)";
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let db = powerful(&rig, patient()).await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    for owner in [one, other] {
        let far = Statement::of(SqlPair::postgres(FAR)).bind(owner);
        db.begin().await.unwrap().commit_with(vec![far]).await.unwrap();
    }
    let own = "UPDATE outbox_relay SET until_ms = until_ms WHERE owner = ?";
    let (open, _) = db.begin_with(&[Statement::of(SqlPair::postgres(own)).bind(one)]).await.unwrap();
    let impatient = Statement::of(SqlPair::postgres("SELECT set_config('lock_timeout', '1s', true)"));
    let lease = Statement::of(SqlPair::postgres(LEASE)).bind(other);
    let (leased, _) = db.begin_with(&[impatient, lease]).await.expect("it waits for nobody");
    leased.commit().await.unwrap();
    open.rollback().await.unwrap();
}

/// Answers once, and never again.
struct Once(std::sync::atomic::AtomicBool);

#[async_trait]
impl Publisher for Once {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        if self.0.swap(true, Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(batch.iter().map(|_| Ack::Stored { partition: 0, offset: 0 }).collect())
    }
}

/// Guard: `Windows::lease` says that a relay with new lanes is not idle. What stands behind them is cut as any backlog is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_lanes_that_are_taken_over_is_cut_too() {
    const OTHER: &str = "WITH other AS (INSERT INTO outbox_relay (owner, until_ms)
        VALUES (gen_random_uuid(), pim_now_ms() + 3600000) RETURNING owner, until_ms)
        UPDATE outbox_cursor c SET owner = o.owner, lease_until_ms = o.until_ms FROM other o WHERE c.lane >= 32";
    const GONE: &str =
        "WITH other AS (DELETE FROM outbox_relay WHERE until_ms > pim_now_ms() + 1000000 RETURNING owner)
        UPDATE outbox_cursor c SET owner = NULL FROM other o WHERE c.owner = o.owner";
    const BACKLOG: &str = "INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type,
        schema_version, aggregate, aggregate_id, aggregate_version, correlation, traceparent, actor, role, at, payload)
        SELECT b.bucket, b.bucket & 63, 1, b.key, 1, gen_random_uuid(), 'domain.v1', 'thing.happened', 1, 'thing', b.key, 1, b.key,
          '00-' || replace(b.key::text, '-', '') || '-0123456789abcdef-01', 'u-1', 'person', 0, '{}'
        FROM (SELECT k.key, pim_bucket_of(k.key) AS bucket FROM (SELECT gen_random_uuid() AS key FROM generate_series(1, 20000)) k) b
          JOIN pim_bucket_owned o ON o.bucket = b.bucket WHERE b.bucket & 63 >= 32 AND o.state = 'owned' LIMIT 1000";
    const WINDOW: &str = "SELECT count(*) FROM outbox_event e JOIN outbox_cursor c ON c.lane = e.lane
        WHERE c.high IS NOT NULL AND pg_visible_in_snapshot(e.xid, c.high) AND NOT pg_visible_in_snapshot(e.xid, c.low)";
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let source = Source::all(&rig.cluster).remove(0);
    let db = powerful_of(&rig, ShardId(0)).await;
    assert_eq!(source.origin, Origin::Shard(ShardId(0)));
    let run = async |text: &'static str| {
        let text = Statement::of(SqlPair::postgres(text));
        db.begin().await.unwrap().commit_with(vec![text]).await.unwrap();
    };
    run(OTHER).await;
    for _ in 0..13 {
        run(BACKLOG).await;
    }
    let once: Arc<dyn Publisher> = Arc::new(Once(false.into()));
    let settings = RelaySettings { lease_ms: 300, ..relay_settings() };
    let relay = Running::relay(Relay::new(vec![source], &once, &settings).unwrap());
    eventually("it has found nothing", || async {
        number(&db, "SELECT count(*) FROM outbox_cursor WHERE lane < 32 AND low::text <> '1:1:'").await == 32
    })
    .await;
    run(GONE).await;
    eventually("it is in the midst of a window", || async { number(&db, WINDOW).await > 0 }).await;
    assert_eq!(number(&db, WINDOW).await, 10_000);
    relay.crash().await;
}

/// Guard: living relays have equal shares of the lanes, and what one gives up another takes (`pim_outbox_lease`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_have_equal_shares_of_the_lanes() {
    const SHARES: &str = "SELECT coalesce(max(lanes), 0) * 1000 + coalesce(min(lanes), 0) FROM
        (SELECT count(*) AS lanes FROM outbox_cursor WHERE owner IS NOT NULL GROUP BY owner) s";
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let db = powerful(&rig, patient()).await;
    let one = Running::relay(rig.relay());
    eventually("one has all", || async { number(&db, SHARES).await == 64_064 }).await;
    let two = Running::relay(rig.relay());
    eventually("two have halves", || async { number(&db, SHARES).await == 32_032 }).await;
    one.crash().await;
    eventually("the other has all", || async { number(&db, SHARES).await == 64_064 }).await;
    two.end().await;
    assert_eq!(number(&db, SHARES).await, 0);
}

/// A relay that does not ask for its lanes again for minutes.
fn with_long_leases(rig: &Rig) -> Running {
    let settings = RelaySettings { lease_ms: 600_000, ..relay_settings() };
    Running::relay(Relay::new(Source::all(&rig.cluster), &rig.publisher(), &settings).unwrap())
}

/// Guard: `window::SAVE` checks owner and epoch of every lane. A relay that was taken for dead moves no cursor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_relay_moves_no_cursor() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let db = powerful(&rig, home).await;
    // It does not ask for its lanes again meanwhile, and so does not hear that it has lost them.
    let relay = with_long_leases(&rig);
    eventually("leased", || async { number(&db, "SELECT count(owner) FROM outbox_cursor").await == 64 }).await;
    let mut tx = db.begin().await.unwrap();
    tx.script(
        "UPDATE outbox_cursor SET epoch = 1000, lease_until_ms = pim_now_ms() + 600000, low = '1:1:', high = NULL",
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    eventually("it sends all the same", || async { sent(&rig).await >= 1 }).await;
    // At the latest now it writes how far it is.
    relay.end().await;
    // Once it has heard that, it may have taken them anew, by another epoch.
    let moved = "SELECT count(*) FROM outbox_cursor WHERE low::text <> '1:1:' AND epoch = 1000";
    assert_eq!(number(&db, moved).await, 0);
}

/// Has a shard refuse to have cursors written, and count who tries.
const REFUSED: &str = "CREATE SEQUENCE public.refused;
GRANT USAGE ON SEQUENCE public.refused TO PUBLIC;
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.refused'); RAISE 'not now'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON outbox_cursor FOR EACH STATEMENT EXECUTE FUNCTION public.refuse()";

async fn change(db: &Db, script: &str) {
    let mut tx = db.begin().await.unwrap();
    tx.script(script).await.unwrap();
    tx.commit().await.unwrap();
}

/// Guard: `window::OWN`. A relay that could neither write how far it is nor give its lanes back waits for nobody's lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_was_cut_off_goes_on_with_its_own_lanes() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let db = powerful(&rig, home).await;
    let _relay = with_long_leases(&rig);
    eventually("leased", || async { number(&db, "SELECT count(owner) FROM outbox_cursor").await == 64 }).await;
    change(&db, REFUSED).await;
    rig.write(home, Uuid::new_v4(), &[1]).await;
    // It may not write, not at the end either, and not take anything anew.
    eventually("it tries in vain", || async { number(&db, "SELECT last_value FROM public.refused").await >= 3 }).await;
    change(&db, "DROP TRIGGER refuse ON outbox_cursor").await;
    let before = sent(&rig).await;
    rig.write(home, Uuid::new_v4(), &[2]).await;
    eventually("it goes on", || async { sent(&rig).await > before }).await;
}

/// The end of windows as a server told it that had given out many more ids, and whose successor does not know of them.
const AHEAD: &str = "CREATE SEQUENCE public.told;
GRANT USAGE ON SEQUENCE public.told TO PUBLIC;
CREATE OR REPLACE FUNCTION pim_outbox_end(low pg_snapshot, most bigint) RETURNS pg_snapshot LANGUAGE plpgsql STABLE AS $$
DECLARE
  ahead text := pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 100000;
BEGIN
  PERFORM nextval('public.told');
  RETURN (ahead || ':' || ahead || ':')::pg_snapshot;
END $$";

/// Lets a relay believe that it has sent more than there has been yet; to what has windows end as they do.
async fn lead_astray(db: &Db, looks: u64) -> String {
    let defined = Statement::of(SqlPair::postgres("SELECT pg_get_functiondef('pim_outbox_end'::regproc)"));
    let defined = db.query(defined).await.unwrap()[0].text(0).unwrap().to_owned();
    change(db, AHEAD).await;
    eventually("it has looked", || async { number(db, "SELECT last_value FROM public.told").await >= looks }).await;
    defined
}

/// What is left of an era after a recovery.
const RECOVERED: &str = "DELETE FROM outbox_era";

/// Guard: what a server has said before it lost ids is not compared with what it says afterwards (`Windows::next`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_are_given_out_again_are_sent() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let db = powerful(&rig, home).await;
    // Nothing but what another era ends makes it ask for its lanes again meanwhile.
    let relay = with_long_leases(&rig);
    let defined = lead_astray(&db, 3).await;
    let mut successor = open_with_event(&db, home).await;
    successor.script(&defined).await.unwrap();
    successor.script(RECOVERED).await.unwrap();
    successor.commit().await.unwrap();
    eventually("sent", || async { sent(&rig).await == 1 }).await;
    relay.end().await;
    assert_eq!(number(&db, "SELECT count(owner) FROM outbox_cursor").await, 0, "and its lanes are free");
}

/// Guard: nor is it written (`window::SAVE`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_of_before_a_recovery_is_not_written() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let db = powerful(&rig, patient()).await;
    // After its eighth look it rests for longer than this takes, and writes when it is told to end.
    let settings = RelaySettings { lease_ms: 60_000, pause_max_ms: 20_000, ..relay_settings() };
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &rig.publisher(), &settings).unwrap());
    let defined = lead_astray(&db, 8).await;
    let mut recovery = db.begin().await.unwrap();
    recovery.script(&defined).await.unwrap();
    recovery.script(RECOVERED).await.unwrap();
    recovery.commit().await.unwrap();
    relay.end().await;
    const AHEAD: &str =
        "SELECT count(*) FROM outbox_cursor WHERE pg_snapshot_xmax(low) > pg_snapshot_xmax(pg_current_snapshot())";
    assert_eq!(number(&db, AHEAD).await, 0);
}
