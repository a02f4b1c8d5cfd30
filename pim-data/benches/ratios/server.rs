//! The same on PostgreSQL: against eleven statements and a COMMIT that somebody wrote by hand on the same tables, one trip each;
//! on this machine, where a trip costs next to nothing, and with a quarter of a millisecond for each.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::id::Id;
use pim_core::rbac::{Permit, Read, SystemScope};
use pim_core::shard::{ShardId, ShardMap};
use pim_data::backend::{SecretError, Secrets};
use pim_data::cluster::{Cluster, ClusterSettings, Servers};
use pim_data::consistency::Consistency;
use pim_data::migration::Migration;
use pim_data::schema::Schema;
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Postgres, Row as _};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::awake::Awake;
use super::{
    Account, BenchAction, BenchResource, Customer, Fact, Measure, context, far, full_write, growth, is_wanted, median,
    write_permit,
};

/// How long a message is under way to a server that is not on this machine.
const EACH_WAY: Duration = Duration::from_micros(125);
const VARIABLE: &str = "LAB_TEST_POSTGRES_DSN";
const PASSWORD: &str = "only-for-benches";
const ROLES: &str = "DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pim_app') THEN CREATE ROLE pim_app NOLOGIN; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pim_bench_owner') THEN
    CREATE ROLE pim_bench_owner LOGIN CREATEROLE PASSWORD 'only-for-benches';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pim_bench_app') THEN
    CREATE ROLE pim_bench_app LOGIN PASSWORD 'only-for-benches' IN ROLE pim_app;
  END IF;
END $$";
const FACT_TABLE: &str = "CREATE TABLE fact (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key uuid NOT NULL, \
     n bigint NOT NULL, bucket bigint NOT NULL, payload text NOT NULL, UNIQUE (key, n));
  GRANT SELECT, INSERT ON fact TO pim_app;
  CREATE FUNCTION fact_append(context pim_context, data jsonb, n_first bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.fact (key, n, bucket, payload)
    VALUES (context.home, n_first, context.bucket, data->>'payload'); END $$;
  SELECT pim_register_part('fact', 'fact_append')";

/// Connection strings of this run's two databases.
#[derive(Debug)]
pub(super) struct BenchSecrets {
    pub(super) run: String,
    /// Where the server is to be had, when that is not where it is.
    pub(super) by_way_of: Option<SocketAddr>,
}

/// Where the server is.
fn server_address() -> String {
    let given = std::env::var(VARIABLE).unwrap_or_default();
    let (_, address) = given.split_once('@').expect("a user");
    let address = address.split(['/', '?']).next().unwrap_or_default();
    if address.contains(':') { address.to_owned() } else { format!("{address}:5432") }
}

impl BenchSecrets {
    fn dsn(&self, user: Option<&str>, database: &str) -> String {
        let given = std::env::var(VARIABLE).unwrap_or_default();
        let (_, rest) = given.split_once("://").expect("postgres://…");
        let (login, _) = rest.split_once('@').expect("a user");
        let address = self.by_way_of.map_or_else(server_address, |address| address.to_string());
        let login = user.map_or_else(|| login.to_owned(), |user| format!("{user}:{PASSWORD}"));
        format!("postgres://{login}@{address}/{database}")
    }

    pub(super) fn database(&self, name: &str) -> String {
        format!("{}_{name}", self.run)
    }

    fn options(&self, user: Option<&str>, database: &str) -> PgConnectOptions {
        let options: PgConnectOptions = self.dsn(user, database).parse().expect("a connection string");
        options.options([("jit", "off"), ("plan_cache_mode", "force_generic_plan")]).disable_statement_logging()
    }

    pub(super) async fn connect(&self, user: Option<&str>, database: &str) -> PgConnection {
        self.options(user, database).connect().await.expect("connects")
    }

    /// On the server itself.
    async fn administer(&self, statements: impl IntoIterator<Item = String>) {
        let mut server = self.connect(None, "postgres").await;
        for statement in statements {
            server.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.expect("runs");
        }
    }
}

impl BenchSecrets {
    pub(super) async fn make_databases(&self, names: &[impl AsRef<str>]) {
        let make = |name: &_| format!("CREATE DATABASE \"{}\" OWNER pim_bench_owner", self.database(name));
        let made = names.iter().map(|name| make(name.as_ref()));
        self.administer([ROLES.to_owned()].into_iter().chain(made)).await;
    }

    pub(super) async fn drop_databases(&self, names: &[impl AsRef<str>]) {
        let gone = |name: &_| format!("DROP DATABASE \"{}\" WITH (FORCE)", self.database(name));
        self.administer(names.iter().map(|name| gone(name.as_ref()))).await;
    }
}

impl Secrets for BenchSecrets {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        Ok(match name.strip_suffix("-owner") {
            Some(name) => self.dsn(Some("pim_bench_owner"), &self.database(name)),
            None => self.dsn(Some("pim_bench_app"), &self.database(name)),
        })
    }
}

pub(super) async fn open(secrets: &Arc<BenchSecrets>, folder: &Path, map: ShardMap) -> Cluster {
    let facts = Migration::new(1000, "facts", "SELECT 1").with_postgres(FACT_TABLE);
    let schema = Schema::builder().everywhere(&[facts]).entity::<Account>(10_000).build().expect("a sound schema");
    let servers = Servers::new(Arc::clone(secrets) as Arc<dyn Secrets>);
    let settings = ClusterSettings::at(folder).with_map(map).with_servers(servers);
    Cluster::open(settings, schema).await.expect("opens")
}

pub(super) struct ServerBench {
    pub(super) cluster: Cluster,
    pub(super) accounts: Vec<Id<Customer>>,
    pub(super) payload: String,
}

impl ServerBench {
    async fn open(secrets: &Arc<BenchSecrets>, folder: &Path) -> Self {
        let cluster = open(secrets, folder, ShardMap::even(1).expect("one shard")).await;
        let mut bench = Self { cluster, accounts: Vec::new(), payload: "x".repeat(512) };
        let mut units = Vec::with_capacity(growth::ROWS);
        for _ in 0..growth::ROWS {
            let id = Id::random();
            let mut unit = bench.cluster.begin(&context(None), id);
            unit.save(&write_permit(), &Account::example(id)).expect("saves");
            unit.part::<Fact>().0 = Some(bench.payload.clone());
            units.push(unit);
            bench.accounts.push(id);
        }
        bench.cluster.commit_bulk(ShardId(0), units).await.expect("commits");
        bench
    }

    pub(super) async fn peer_read(conn: &mut PgConnection, id: Id<Customer>) -> Account {
        const SELECT: &str = "SELECT version, facility_id, given_name, family_name, birth_date, state, mail, points \
                              FROM account_row WHERE id = $1";
        let row = sqlx::query(SELECT).bind(id.uuid()).fetch_one(conn).await.expect("is there");
        Account {
            id,
            version: row.get::<i64, _>(0) as u64,
            facility: row.get(1),
            given_name: row.get(2),
            family_name: row.get(3),
            birth_date: row.get(4),
            state: row.get(5),
            mail: row.get(6),
            points: row.get(7),
        }
    }

    /// BEGIN, context with the bucket's lock, fence, idempotency with the key's lock, load, row, outbox, number,
    /// idempotency record, end of the lane, audit record: eleven statements; and COMMIT.
    pub(super) async fn peer_write(&self, conn: &mut PgConnection, id: Id<Customer>) {
        const ENTER: &str = "SELECT set_config('app.user', 'u-1', true), set_config('app.role', 'clerk', true), \
            set_config('app.request', $1, true), set_config('app.scope', 'all', true), pg_advisory_xact_lock_shared(7461, $2)::text";
        const FENCE: &str = "SELECT epoch FROM pim_bucket_owned WHERE bucket = $1 AND state = 'owned'";
        const LOOK: &str = "SELECT k.n, (SELECT i.body FROM idempotency i WHERE i.scope = $2) FROM key_head k \
            WHERE k.key = $1 FOR UPDATE OF k";
        const ROW: &str = "UPDATE account_row SET version = version + 1, updated_at = $1, facility_id = $2, given_name = $3, \
            family_name = $4, birth_date = $5, state = $6, mail = $7, points = $8 WHERE id = $9 AND version = $10";
        const RECORD: &str = "INSERT INTO idempotency (scope, bucket, body, status, answer, n, request_id, created_at) \
            VALUES ($1, $2, $3, 200, $4, $5, $6, $7) RETURNING pg_advisory_xact_lock(7462, $8)::text";
        const LAST: &str = "SELECT seq, hash FROM audit WHERE lane = $1 ORDER BY seq DESC LIMIT 1";
        const AUDIT: &str = "INSERT INTO audit (lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity, \
            entity_id) VALUES ($1, $2, $3, $4, $5, $6, $7, 'u-1', $8, 'account', $8)";
        let cx = context(Some(Uuid::new_v4()));
        let (key, request) = (id.uuid(), cx.request_id().uuid());
        let scope = cx.idempotency().expect("a key").clone();
        let (bucket, at) = (i64::from(id.bucket().get()), self.cluster.clock().now().as_micros());
        let lane = bucket & 63;
        let run = async |query: sqlx::query::Query<'_, Postgres, PgArguments>, conn: &mut PgConnection| {
            query.execute(conn).await.expect("runs").rows_affected()
        };
        conn.execute("BEGIN").await.expect("begins");
        run(sqlx::query(ENTER).bind(request.to_string()).bind(bucket as i32), conn).await;
        let fence = sqlx::query(FENCE).bind(bucket).fetch_one(&mut *conn).await.expect("is owned");
        assert_eq!(fence.get::<i64, _>(0), 1);
        let look =
            sqlx::query(LOOK).bind(key).bind(scope.scope().as_slice()).fetch_one(&mut *conn).await.expect("is there");
        assert!(look.get::<Option<Vec<u8>>, _>(1).is_none());
        let n = look.get::<i64, _>(0) + 1;
        let account = Self::peer_read(conn, id).await;
        let points = account.points + 1;
        let row = sqlx::query(ROW).bind(at).bind(account.facility).bind(&account.given_name).bind(&account.family_name);
        let row = row.bind(&account.birth_date).bind(&account.state).bind(&account.mail).bind(points).bind(key);
        assert_eq!(run(row.bind(account.version as i64), conn).await, 1);
        let fact = sqlx::query("INSERT INTO fact (key, n, bucket, payload) VALUES ($1, $2, $3, $4)");
        run(fact.bind(key).bind(n).bind(bucket).bind(&self.payload), conn).await;
        run(sqlx::query("UPDATE key_head SET n = $1 WHERE key = $2").bind(n).bind(key), conn).await;
        let answer = serde_json::json!({"points": points}).to_string();
        let record = sqlx::query(RECORD).bind(scope.scope().as_slice()).bind(bucket).bind(scope.body().as_slice());
        run(record.bind(answer).bind(n).bind(request).bind(at).bind(lane as i32), conn).await;
        let last = sqlx::query(LAST).bind(lane).fetch_one(&mut *conn).await.expect("is there");
        let (seq, previous): (i64, Vec<u8>) = (last.get(0), last.get(1));
        let body = account.record(&cx, points, n, at);
        let hash = Sha256::new().chain_update(&previous).chain_update(body.as_bytes()).finalize().to_vec();
        let audit = sqlx::query(AUDIT).bind(lane).bind(seq + 1).bind(previous).bind(hash).bind(body).bind(at);
        run(audit.bind(request).bind(key), conn).await;
        conn.execute("COMMIT").await.expect("commits");
    }
}

/// What those who write by hand have their connections from.
#[derive(Clone)]
enum Hand {
    /// Each client keeps one for itself.
    Kept(Vec<Arc<Mutex<PgConnection>>>),
    /// From the driver's pool, as it comes: as services have them, and as ours come from our pool.
    Pooled(PgPool),
}

impl Hand {
    async fn of(secrets: &BenchSecrets, shard: &str, clients: usize) -> [Self; 2] {
        let options = || secrets.options(Some("pim_bench_app"), shard);
        let mut kept = Vec::new();
        for _ in 0..clients {
            kept.push(Arc::new(Mutex::new(options().connect().await.expect("connects"))));
        }
        let most = u32::try_from(clients).expect("few");
        let pool = PgPoolOptions::new().max_connections(most).connect_with(options()).await.expect("connects");
        [Self::Kept(kept), Self::Pooled(pool)]
    }

    async fn write(&self, bench: &ServerBench, client: usize, id: Id<Customer>) {
        match self {
            Self::Kept(conns) => bench.peer_write(&mut *conns[client].lock().await, id).await,
            Self::Pooled(pool) => bench.peer_write(&mut pool.acquire().await.expect("is lent"), id).await,
        }
    }
}

/// Full writes a second of so many clients, each on accounts of its own; ours unless they are written by hand.
async fn writes_per_second(bench: &Arc<ServerBench>, hand: Option<&Hand>, clients: usize, each: usize) -> f64 {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (bench, hand) = (Arc::clone(bench), hand.cloned());
        tasks.spawn(async move {
            for id in bench.accounts.iter().skip(client).step_by(clients).cycle().take(each) {
                match &hand {
                    None => full_write(&bench.cluster, *id, &bench.payload).await,
                    Some(hand) => hand.write(&bench, client, *id).await,
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("every write commits");
    }
    (clients * each) as f64 / begun.elapsed().as_secs_f64()
}

const NAMES: [&str; 2] = ["shard-0", "control"];

/// Measures when a server is named; says so when none is.
pub(super) async fn measure() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    let run = format!("bench_{}", std::process::id());
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&run);
    if is_wanted("server") {
        measure_one_shard(&run, &folder).await;
    }
    if is_wanted("server-growth") {
        growth::measure_servers(&run, &folder).await;
    }
    let _gone = std::fs::remove_dir_all(folder);
}

/// Full writes of one client, of eight, and where there is a third name of 32, against as many hand-written ones.
async fn measure_writes(bench: &Arc<ServerBench>, secrets: &BenchSecrets, names: &[&str]) {
    let shard = secrets.database("shard-0");
    for (name, (clients, each, goal)) in names.iter().zip([(1, 400, 2.0), (8, 100, 1.5), (32, 25, 1.5)]) {
        let [kept, pooled] = Hand::of(secrets, &shard, clients).await;
        for side in [None, Some(&kept), Some(&pooled)] {
            writes_per_second(bench, side, clients, each).await;
        }
        let mut measures = [Measure { rounds: Vec::new() }, Measure { rounds: Vec::new() }];
        for _ in 0..11 {
            let ours = writes_per_second(bench, None, clients, each).await;
            for (measure, hand) in measures.iter_mut().zip([&kept, &pooled]) {
                measure.rounds.push((ours, writes_per_second(bench, Some(hand), clients, each).await));
            }
        }
        measures[0].print(name, goal, true);
        measures[1].print(&format!("{name}-pooled"), goal, true);
    }
}

/// Reads of one row, each of them in turn with a bare select of it.
/// Whom a policy lets see a row.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// Whoever sees all.
    ByAll,
    /// Whose it is, so that each row is asked for it.
    ByItsOwn,
}

impl Seen {
    fn permit(self, id: Id<Customer>) -> Permit<Read> {
        let permit = Permit::system(SystemScope::new("bench"), BenchAction::Look, BenchResource::Account);
        match self {
            Self::ByAll => permit,
            Self::ByItsOwn => permit.narrowed(id.uuid()),
        }
    }
}

async fn measure_reads(bench: Arc<ServerBench>, mut peer: PgConnection, seen: Seen) -> Measure {
    let _awake = Awake::all();
    let mut measure = Measure { rounds: Vec::new() };
    for _ in 0..15 {
        let cx = context(None);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for id in bench.accounts.iter().cycle().take(1_000) {
            let permit = seen.permit(*id);
            let begun = Instant::now();
            let row = bench.cluster.read::<Account>(&cx, &permit, *id, &Consistency::Strong).await.expect("reads");
            std::hint::black_box(row.expect("is there"));
            ours.push(begun.elapsed().as_secs_f64() * 1e6);
            let begun = Instant::now();
            std::hint::black_box(ServerBench::peer_read(&mut peer, *id).await);
            theirs.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        measure.rounds.push((median(ours), median(theirs)));
    }
    peer.close().await.expect("closes");
    measure
}

async fn measure_one_shard(run: &str, folder: &Path) {
    let secrets = Arc::new(BenchSecrets { run: run.to_owned(), by_way_of: None });
    secrets.make_databases(&NAMES).await;
    let bench = Arc::new(ServerBench::open(&secrets, folder).await);
    let shard = secrets.database("shard-0");
    writes_per_second(&bench, None, 8, 50).await;
    secrets.connect(None, &shard).await.execute("ANALYZE").await.expect("runs");

    let near = ["data/server/full-write", "data/server/full-write-8-clients", "data/server/full-write-32-clients"];
    measure_writes(&bench, &secrets, &near).await;
    let by_way_of = Some(far::away_from(&server_address(), EACH_WAY));
    let far_secrets = Arc::new(BenchSecrets { run: run.to_owned(), by_way_of });
    let map = ShardMap::even(1).expect("one shard");
    let cluster = open(&far_secrets, &folder.join("far"), map).await;
    let from_afar = Arc::new(ServerBench { cluster, accounts: bench.accounts.clone(), payload: bench.payload.clone() });
    let far = ["data/server/full-write-from-afar", "data/server/full-write-from-afar-8-clients"];
    measure_writes(&from_afar, &far_secrets, &far).await;
    drop(from_afar);

    for (seen, name) in [(Seen::ByAll, "one-row-read"), (Seen::ByItsOwn, "one-row-read-of-ones-own")] {
        // Somebody whom no policy binds.
        let peer = secrets.connect(None, &shard).await;
        // A task, as a request is in a service.
        let reads = tokio::spawn(measure_reads(Arc::clone(&bench), peer, seen));
        reads.await.expect("reads").print(&format!("data/server/{name}"), 1.15, false);
    }
    assert!(bench.cluster.verify_audit().await.expect("reads").verified, "both sides wrote one sound trail");
    drop(bench);
    secrets.drop_databases(&NAMES).await;
}
