//! Full write and one-row read against hand-written sqlx on the same SQLite file, at equal durability, in one run; and what
//! they cost with more shards and more rows (`-- --rows N`), on servers beside what statements written by hand do. `-- --only files|files-growth|server|server-growth` runs a part.
//!
//! Prints one JSON object a line: `name ours peer ratio spread goal holds`. Writes are per second, reads in microseconds.

#![expect(clippy::expect_used, reason = "a benchmark that cannot go on must stop")]

#[path = "ratios/awake.rs"]
mod awake;
#[cfg(feature = "postgres")]
#[path = "ratios/far.rs"]
mod far;
#[path = "ratios/growth.rs"]
mod growth;
#[cfg(feature = "postgres")]
#[path = "ratios/server.rs"]
mod server;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::context::{IdempotencyScope, RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Read, SystemScope, Write};
use pim_core::shard::{ShardId, ShardMap};
use pim_data::backend::Statement;
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::consistency::Consistency;
use pim_data::entity::{Column, ColumnKind};
use pim_data::migration::Migration;
use pim_data::schema::Schema;
use pim_data::unit::{CommitFacts, PartCall, PartError, UnitPart};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

pim_core::id_kinds! { /** A customer. */ Customer = "customer" }
pim_core::roles! { enum BenchRole { Clerk = "clerk" } }
pim_core::actions! { enum BenchAction { Look = "look": Read, Change = "change": Write } }
pim_core::resources! { enum BenchResource { Account = "account" } }

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Account {
    id: Id<Customer>,
    version: u64,
    facility: Option<Uuid>,
    given_name: String,
    family_name: String,
    birth_date: String,
    state: String,
    mail: String,
    points: i64,
}

pim_data::entity! {
    impl Entity for Account {
        kind: Customer,
        resource: BenchResource::Account,
        table: "account",
        home: id,
        facility: facility,
        columns: [
            Column::new("given_name", ColumnKind::Text),
            Column::new("family_name", ColumnKind::Text),
            Column::new("birth_date", ColumnKind::Text),
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("mail", ColumnKind::Text),
            Column::new("points", ColumnKind::Int).shown(),
        ],
    }
}

impl Account {
    fn example(id: Id<Customer>) -> Self {
        let text = |text: &str| text.to_owned();
        Self {
            id,
            version: 0,
            facility: Some(Uuid::from_u128(9)),
            given_name: text("Ada"),
            family_name: text("Example"),
            birth_date: text("1815-12-10"),
            state: text("open"),
            mail: text("ada@example.org"),
            points: 0,
        }
    }

    /// The audit record of a change of points, as somebody would build it by hand.
    fn record(&self, cx: &RequestContext, points: i64, n: i64, at: i64) -> String {
        let all = serde_json::json!({"given_name": self.given_name, "family_name": self.family_name,
            "birth_date": self.birth_date, "state": self.state, "mail": self.mail, "points": points});
        let digest = Sha256::digest(all.to_string().as_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = serde_json::json!({"action": "change", "after": {"state": self.state, "points": points},
            "after_digest": digest, "at": at, "before": {"state": self.state, "points": self.points},
            "entity": "account", "home": self.id.to_string(), "id": self.id.to_string(), "n": n,
            "request": cx.request_id().to_string(), "role": "clerk", "trace": cx.trace().trace_id().to_string(),
            "user": "u-1", "version": self.version + 1});
        body.to_string()
    }
}

/// One outbox row of about 512 bytes.
#[derive(Debug, Default)]
struct Fact(Option<String>);

const FACT: &str = "INSERT INTO fact (key, n, bucket, payload) VALUES (?, ?, ?, ?)";

impl UnitPart for Fact {
    fn facts(&self) -> u64 {
        u64::from(self.0.is_some())
    }
    fn statements(&mut self, facts: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError> {
        let insert = Statement::sqlite(FACT).bind(facts.home.uuid()).bind(facts.n_first);
        // Not taken out: a unit that is refused by the fence composes again.
        Ok(self.0.iter().map(|payload| insert.clone().bind(facts.route.bucket.get()).bind(payload.as_str())).collect())
    }
    fn call(&mut self, _facts: &CommitFacts<'_>) -> Result<Option<PartCall>, PartError> {
        let call = |payload: &String| PartCall { part: "fact", data: serde_json::json!({"payload": payload}) };
        Ok(self.0.as_ref().map(call))
    }
}

fn schema() -> Schema {
    let table = "CREATE TABLE fact (seq INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, n INTEGER NOT NULL, \
                 bucket INTEGER NOT NULL, payload TEXT NOT NULL, UNIQUE (key, n))";
    let schema = Schema::builder().everywhere(&[Migration::new(1000, "facts", table)]).entity::<Account>(10_000);
    schema.build().expect("a sound schema")
}

/// A connection of somebody else to a shard's file, as durable as ours.
async fn connect(cluster: &Cluster, shard: ShardId) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(cluster.database(shard).expect("a shard").path().expect("a file"))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(30))
        .statement_cache_capacity(256)
        .disable_statement_logging();
    SqliteConnection::connect_with(&options).await.expect("connects")
}

/// Loads an account, changes it, tells of that, and answers.
async fn full_write(cluster: &Cluster, id: Id<Customer>, payload: &str) {
    let mut unit = cluster.begin(&context(Some(Uuid::new_v4())), id);
    let permit = write_permit();
    let mut account = unit.load::<Account>(&permit, id).await.expect("loads").expect("is there");
    account.points += 1;
    unit.save(&permit, &account).expect("saves");
    unit.part::<Fact>().0 = Some(payload.to_owned());
    unit.answer(200, &serde_json::json!({"points": account.points}));
    unit.commit().await.expect("commits");
}

struct Bench {
    cluster: Cluster,
    accounts: Vec<Id<Customer>>,
    payload: String,
    folder: PathBuf,
}

impl Bench {
    async fn open() -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("ratios-{}", std::process::id()));
        let settings = ClusterSettings::at(&folder).with_map(ShardMap::even(1).expect("one shard"));
        let cluster = Cluster::open(settings, schema()).await.expect("opens");
        let mut bench = Self { cluster, accounts: Vec::new(), payload: "x".repeat(512), folder };
        for _ in 0..200 {
            let id = Id::random();
            let mut unit = bench.cluster.begin(&context(None), id);
            unit.save(&write_permit(), &Account::example(id)).expect("saves");
            unit.part::<Fact>().0 = Some(bench.payload.clone());
            unit.commit().await.expect("commits");
            bench.accounts.push(id);
        }
        bench
    }

    async fn our_read(&self, cx: &RequestContext, permit: &Permit<Read>, id: Id<Customer>) {
        let row = self.cluster.read::<Account>(cx, permit, id, &Consistency::Strong).await.expect("reads");
        std::hint::black_box(row.expect("is there"));
    }

    async fn peer_read(conn: &mut SqliteConnection, id: Id<Customer>) -> Account {
        const SELECT: &str = "SELECT version, facility_id, given_name, family_name, birth_date, state, mail, points \
                              FROM account_row WHERE id = ?";
        let row = sqlx::query(SELECT).bind(id.uuid().as_bytes().to_vec()).fetch_one(conn).await;
        let row = row.expect("is there");
        Account {
            id,
            version: row.get::<i64, _>(0) as u64,
            facility: row.get::<Option<Vec<u8>>, _>(1).and_then(|bytes| Uuid::from_slice(&bytes).ok()),
            given_name: row.get(2),
            family_name: row.get(3),
            birth_date: row.get(4),
            state: row.get(5),
            mail: row.get(6),
            points: row.get(7),
        }
    }

    /// The same statements, one after another, as somebody would write them by hand.
    async fn peer_write(&self, conn: &mut SqliteConnection, id: Id<Customer>) {
        let cx = context(Some(Uuid::new_v4()));
        let scope = cx.idempotency().expect("a key").clone();
        let (key, bucket) = (id.uuid().as_bytes().to_vec(), i64::from(id.bucket().get()));
        let lane = bucket & 63;
        let looked_up = "SELECT body, status, answer FROM idempotency WHERE scope = ?";
        let head_of = "SELECT n FROM key_head WHERE key = ?";
        let found = sqlx::query(looked_up).bind(scope.scope().to_vec()).fetch_optional(&mut *conn).await;
        assert!(found.expect("runs").is_none());
        let row = sqlx::query(head_of).bind(key.clone()).fetch_one(&mut *conn).await.expect("is there");
        let seen: i64 = row.get(0);
        let account = Self::peer_read(conn, id).await;
        let at = self.cluster.clock().now().as_micros();

        let run = async |query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
                         conn: &mut SqliteConnection| {
            query.execute(conn).await.expect("runs").rows_affected()
        };
        run(sqlx::query("BEGIN IMMEDIATE"), conn).await;
        let owned = sqlx::query("SELECT epoch, state FROM pim_bucket_owned WHERE bucket = ?").bind(bucket);
        assert_eq!(owned.fetch_one(&mut *conn).await.expect("is there").get::<i64, _>(0), 1);
        let found = sqlx::query(looked_up).bind(scope.scope().to_vec()).fetch_optional(&mut *conn).await;
        assert!(found.expect("runs").is_none());
        let head = sqlx::query(head_of).bind(key.clone()).fetch_one(&mut *conn).await.expect("is there");
        assert_eq!(head.get::<i64, _>(0), seen);
        let last = "SELECT seq, hash FROM audit WHERE lane = ? ORDER BY seq DESC LIMIT 1";
        let last = sqlx::query(last).bind(lane).fetch_one(&mut *conn).await.expect("is there");
        let (seq, previous): (i64, Vec<u8>) = (last.get(0), last.get(1));
        let update = "UPDATE account_row SET version = ?, updated_at = ?, facility_id = ?, given_name = ?, \
                      family_name = ?, birth_date = ?, state = ?, mail = ?, points = ? WHERE id = ? AND version = ?";
        let update = sqlx::query(update)
            .bind(account.version as i64 + 1)
            .bind(at)
            .bind(account.facility.map(|facility| facility.as_bytes().to_vec()))
            .bind(&account.given_name)
            .bind(&account.family_name)
            .bind(&account.birth_date)
            .bind(&account.state)
            .bind(&account.mail)
            .bind(account.points + 1)
            .bind(key.clone())
            .bind(account.version as i64);
        assert_eq!(run(update, conn).await, 1);
        let fact = sqlx::query(FACT).bind(key.clone()).bind(seen + 1).bind(bucket).bind(&self.payload);
        run(fact, conn).await;
        let advance = sqlx::query("UPDATE key_head SET n = ? WHERE key = ?").bind(seen + 1).bind(key.clone());
        run(advance, conn).await;
        let record = "INSERT INTO idempotency (scope, bucket, body, status, answer, n, request_id, created_at) \
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let record = sqlx::query(record)
            .bind(scope.scope().to_vec())
            .bind(bucket)
            .bind(scope.body().to_vec())
            .bind(200)
            .bind(serde_json::json!({"points": account.points + 1}).to_string())
            .bind(seen + 1)
            .bind(cx.request_id().uuid().as_bytes().to_vec())
            .bind(at);
        run(record, conn).await;
        let body = account.record(&cx, account.points + 1, seen + 1, at);
        let hash = Sha256::new().chain_update(&previous).chain_update(body.as_bytes()).finalize().to_vec();
        let audit = "INSERT INTO audit (lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity, entity_id) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let audit = sqlx::query(audit)
            .bind(lane)
            .bind(seq + 1)
            .bind(previous)
            .bind(hash)
            .bind(body)
            .bind(at)
            .bind(cx.request_id().uuid().as_bytes().to_vec())
            .bind("u-1")
            .bind(key.clone())
            .bind("account")
            .bind(key);
        run(audit, conn).await;
        run(sqlx::query("COMMIT"), conn).await;
    }
}

/// How the peer's tasks get at the file.
enum Peer {
    /// Each has a connection of its own, and waits in the engine's busy handler.
    Own(Vec<Mutex<SqliteConnection>>),
    /// They take turns at one.
    Shared(Mutex<SqliteConnection>),
}

impl Peer {
    async fn own(bench: &Bench, clients: usize) -> Self {
        let mut all = Vec::with_capacity(clients);
        for _ in 0..clients {
            all.push(Mutex::new(connect(&bench.cluster, ShardId(0)).await));
        }
        Self::Own(all)
    }

    const fn of(&self, client: usize) -> &Mutex<SqliteConnection> {
        match self {
            Self::Own(all) => &all.as_slice()[client],
            Self::Shared(one) => one,
        }
    }
}

/// Full writes a second of so many clients, each on accounts of its own; ours unless there is a peer.
async fn writes_per_second(bench: &Arc<Bench>, peer: Option<&Arc<Peer>>, clients: usize, each: usize) -> f64 {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (bench, peer) = (Arc::clone(bench), peer.map(Arc::clone));
        tasks.spawn(async move {
            let ids = bench.accounts.iter().skip(client).step_by(clients);
            for id in ids.cycle().take(each) {
                match &peer {
                    None => full_write(&bench.cluster, *id, &bench.payload).await,
                    Some(peer) => bench.peer_write(&mut *peer.of(client).lock().await, *id).await,
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("every write commits");
    }
    (clients * each) as f64 / begun.elapsed().as_secs_f64()
}

fn context(key: Option<Uuid>) -> RequestContext {
    let actor = Actor::new("u-1".parse().expect("a subject"), BenchRole::Clerk);
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(30)));
    match key {
        Some(key) => cx.with_idempotency(IdempotencyScope::new("u-1", "POST", "/a", &key.to_string(), b"{}")),
        None => cx,
    }
}

fn write_permit() -> Permit<Write> {
    Permit::system(SystemScope::new("bench"), BenchAction::Change, BenchResource::Account)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of both sides and the spread of their ratio over the rounds.
struct Measure {
    rounds: Vec<(f64, f64)>,
}

impl Measure {
    fn print(&self, name: &str, goal: f64, at_least: bool) {
        let ratios: Vec<_> = self.rounds.iter().map(|(ours, peer)| ours / peer).collect();
        let ratio = median(ratios.clone());
        let spread = ratios.iter().fold(0.0, |most: f64, it| most.max((it - ratio).abs())) / ratio;
        let holds = if at_least { ratio >= goal } else { ratio <= goal };
        let round = |value: f64| (value * 100.0).round() / 100.0;
        let line = serde_json::json!({
            "name": name,
            "ours": round(median(self.rounds.iter().map(|it| it.0).collect())),
            "peer": round(median(self.rounds.iter().map(|it| it.1).collect())),
            "ratio": round(ratio),
            "spread": round(spread),
            "goal": goal,
            "holds": holds,
        });
        let written = writeln!(std::io::stdout(), "{line}");
        written.expect("standard output takes a line");
    }
}

/// Whether a part was asked for: all of them are unless `--only` names one.
fn is_wanted(part: &str) -> bool {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--only").skip(1);
    arguments.next().is_none_or(|only| only == part)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let bench = Arc::new(Bench::open().await);
    if is_wanted("files") {
        measure_files(&bench).await;
    }
    if is_wanted("files-growth") {
        growth::measure(&bench.folder).await;
    }
    #[cfg(feature = "postgres")]
    server::measure().await;

    let verified = bench.cluster.verify_audit().await.expect("reads").verified;
    assert!(verified, "both sides wrote one sound trail");
    let folder = bench.folder.clone();
    drop(bench);
    let _gone = std::fs::remove_dir_all(folder);
}

async fn measure_files(bench: &Arc<Bench>) {
    let ids = bench.accounts.clone();
    let (rounds, reads) = (15, 2_000);

    for (name, clients, each) in [("data/full-write", 1, 60), ("data/full-write-8-clients", 8, 20)] {
        let own = Arc::new(Peer::own(bench, clients).await);
        let shared = Arc::new(Peer::Shared(Mutex::new(connect(&bench.cluster, ShardId(0)).await)));
        let mut measure = Measure { rounds: Vec::new() };
        for _ in 0..rounds {
            let ours = writes_per_second(bench, None, clients, each).await;
            let in_turn = writes_per_second(bench, Some(&shared), clients, each).await;
            // Whichever way is the faster one for the peer; alone, both are the same.
            let apart = if clients == 1 { 0.0 } else { writes_per_second(bench, Some(&own), clients, each).await };
            measure.rounds.push((ours, in_turn.max(apart)));
        }
        measure.print(name, 1.5, true);
    }

    // A request has its context and permit before it reads.
    let permit = Permit::<Read>::system(SystemScope::new("bench"), BenchAction::Look, BenchResource::Account);
    let mut peer_conn = connect(&bench.cluster, ShardId(0)).await;
    let mut measure = Measure { rounds: Vec::new() };
    for _ in 0..rounds {
        let cx = context(None);
        let (mut ours, mut peer) = (Vec::with_capacity(reads), Vec::with_capacity(reads));
        // Medians, because where the machine puts two threads matters more than either side's work.
        for number in 0..reads {
            let begun = Instant::now();
            bench.our_read(&cx, &permit, ids[number % ids.len()]).await;
            ours.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        for number in 0..reads {
            let begun = Instant::now();
            std::hint::black_box(Bench::peer_read(&mut peer_conn, ids[number % ids.len()]).await);
            peer.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        measure.rounds.push((median(ours), median(peer)));
    }
    measure.print("data/one-row-read", 1.15, false);
}
