//! What a request costs one client as there come to be more shards, and more rows on one: turn about, in one run.
//!
//! Shards of one server are more connections to it too, and its process at the end of each has a memory of its own, which the processor's
//! cache has to hold. So servers are measured both ways: with one connection to a shard, and with as many in all whatever the number of shards.

use std::path::{Path, PathBuf};
use std::time::Instant;

use async_trait::async_trait;
use pim_core::id::Id;
use pim_core::rbac::{Permit, Read, SystemScope};
use pim_core::shard::{ShardId, ShardMap};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::consistency::Consistency;
use uuid::Uuid;

use super::awake::Awake;
use super::{BenchAction, BenchResource, Customer, Measure, connect, context, full_write, median, schema};

/// Rows of a shard that is not about how many there are.
pub(super) const ROWS: usize = 10_000;
/// Rows of a shard that is, unless somebody asks for another number.
const ROWS_MANY: usize = 1_000_000;
const SHARDS: [u16; 3] = [1, 4, 16];
/// Most that a request may cost, measured by what it costs in the small.
const GOAL: f64 = 1.1;
const ROUNDS: usize = 11;
/// Requests of each kind to each shard before anything is measured: at least as many as it has rows that are asked for, when
/// shards are many.
const WARM: usize = 320;
/// Of so many rows, chosen by chance, each side's requests are.
const ASKED: usize = 5_000;

/// Programs that serve the same shards, with so many rows on each.
pub(super) struct Grown {
    pub(super) name: String,
    /// Each has connections of its own.
    pub(super) programs: Vec<Cluster>,
    /// Of each shard in turn.
    pub(super) asked: Vec<Id<Customer>>,
    pub(super) by_hand: Option<Box<dyn ByHand>>,
}

/// Statements that somebody wrote by hand, on connections of their own to each shard: what they come to cost is the machine's.
#[async_trait]
pub(super) trait ByHand: Send + Sync {
    async fn read(&self, program: usize, shard: ShardId, id: Id<Customer>);
    async fn write(&self, program: usize, shard: ShardId, id: Id<Customer>);
}

/// By way of how many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// One to each shard.
    OneProgram,
    /// As many in all, whatever the number of shards.
    AllPrograms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read,
    Write,
    ReadByHand,
    WriteByHand,
}

impl Request {
    const fn times(self) -> usize {
        match self {
            Self::Read | Self::ReadByHand => 400,
            Self::Write | Self::WriteByHand => 30,
        }
    }

    /// A read is over before a processor that slept has woken; a write waits for the disk, which processes that never rest hold up.
    fn awake(self) -> Option<Awake> {
        matches!(self, Self::Read | Self::ReadByHand).then(Awake::all)
    }
}

/// What `--rows N` says.
pub(super) fn rows_many() -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--rows").skip(1);
    arguments.next().map_or(ROWS_MANY, |rows| rows.parse().expect("--rows takes a number"))
}

/// Ids so that every shard has its share, and some of all to be asked for.
pub(super) fn spread(cluster: &Cluster, shards: u16, rows: usize) -> (Vec<Vec<Id<Customer>>>, Vec<Id<Customer>>) {
    let mut shares = vec![Vec::with_capacity(rows); usize::from(shards)];
    let mut missing = rows * usize::from(shards);
    while missing > 0 {
        let id = Id::random();
        let share = &mut shares[usize::from(cluster.router().route(&id).shard.0)];
        if share.len() < rows {
            share.push(id);
            missing -= 1;
        }
    }
    let asked = ASKED / usize::from(shards);
    let asked = (0..asked).flat_map(|turn| shares.iter().map(move |share| share[turn % share.len()])).collect();
    (shares, asked)
}

impl Grown {
    /// Microseconds that a request takes.
    async fn ask(&self, by: By, request: Request, turn: usize) -> f64 {
        let permit = Permit::<Read>::system(SystemScope::new("bench"), BenchAction::Look, BenchResource::Account);
        let (cx, id, payload) = (context(None), self.asked[turn % self.asked.len()], "x".repeat(512));
        let program = match by {
            By::OneProgram => 0,
            By::AllPrograms => turn / self.programs[0].map().shards().len() % self.programs.len(),
        };
        let cluster = &self.programs[program];
        let shard = cluster.router().route(&id).shard;
        let begun = Instant::now();
        match (request, &self.by_hand) {
            (Request::Read, _) => {
                let row = cluster.read::<super::Account>(&cx, &permit, id, &Consistency::Strong).await;
                std::hint::black_box(row.expect("reads").expect("is there"));
            }
            (Request::Write, _) => full_write(cluster, id, &payload).await,
            (Request::ReadByHand, Some(by_hand)) => by_hand.read(program, shard, id).await,
            (Request::WriteByHand, Some(by_hand)) => by_hand.write(program, shard, id).await,
            (Request::ReadByHand | Request::WriteByHand, None) => {}
        }
        begun.elapsed().as_secs_f64() * 1e6
    }
}

/// Reads and full writes of each against those of the first, and how much more that has become than by hand.
pub(super) async fn compare(engine: &str, by: By, grown: &[Grown]) {
    const OURS: [(&str, Request); 2] = [("read", Request::Read), ("write", Request::Write)];
    const BY_HAND: [(&str, Request); 2] = [("read", Request::ReadByHand), ("write", Request::WriteByHand)];
    let has_peer = grown.iter().all(|it| it.by_hand.is_some());
    let requests: Vec<_> = OURS.into_iter().chain(BY_HAND.into_iter().filter(|_| has_peer)).collect();
    // Connections are open, statements prepared, and what is asked for is touched on every shard before anything is measured: the
    // first change of a page after a checkpoint writes all of it, and more shards have more pages for the same requests.
    for it in grown {
        let warm = WARM * it.programs[0].map().shards().len();
        for (turn, (_, request)) in (0..warm).flat_map(|turn| requests.iter().map(move |request| (turn, request))) {
            it.ask(by, *request, turn).await;
        }
    }
    // Of each kind of request, in each round: what it costs with each.
    let mut costs = vec![Vec::new(); requests.len()];
    for round in 0..ROUNDS {
        for ((_, request), costs) in requests.iter().zip(&mut costs) {
            let _awake = request.awake();
            let mut of_round = Vec::new();
            for it in grown {
                let mut took = Vec::with_capacity(request.times());
                for turn in 0..request.times() {
                    took.push(it.ask(by, *request, round * request.times() + turn).await);
                }
                of_round.push(median(took));
            }
            costs.push(of_round);
        }
    }
    let ways = if by == By::AllPrograms { "-on-as-many-connections" } else { "" };
    for (index, it) in grown.iter().enumerate().skip(1) {
        let pairs = |costs: &[Vec<f64>]| costs.iter().map(|round| (round[index], round[0])).collect::<Vec<_>>();
        for ((what, _), ours) in OURS.iter().zip(&costs) {
            Measure { rounds: pairs(ours) }.print(&format!("{engine}/{what}-of-{}{ways}", it.name), GOAL, false);
        }
        for (((what, _), ours), peer) in OURS.iter().zip(&costs).zip(costs.iter().skip(OURS.len())) {
            let grew = pairs(ours).into_iter().zip(pairs(peer));
            let rounds = grew.map(|(ours, peer)| (ours.0 / ours.1, peer.0 / peer.1)).collect();
            Measure { rounds }.print(&format!("{engine}/{what}-of-{}{ways}-beside-by-hand", it.name), GOAL, false);
        }
    }
}

/// On files.
pub(super) async fn measure(folder: &Path) {
    let mut grown = Vec::new();
    for shards in SHARDS {
        grown.push(on_files(folder, format!("{shards}-shards"), shards, ROWS).await);
    }
    compare("data", By::OneProgram, &grown).await;
    let many = on_files(folder, "many-rows".to_owned(), 1, rows_many()).await;
    compare("data", By::OneProgram, &[grown.swap_remove(0), many]).await;
}

async fn on_files(folder: &Path, name: String, shards: u16, rows: usize) -> Grown {
    let place: PathBuf = folder.join(&name);
    let settings = ClusterSettings::at(&place).with_map(ShardMap::even(shards).expect("shards"));
    let cluster = Cluster::open(settings, schema()).await.expect("opens");
    let (shares, asked) = spread(&cluster, shards, rows);
    for (shard, share) in (0..).zip(shares) {
        fill_file(&cluster, ShardId(shard), &share).await;
    }
    Grown { name, programs: vec![cluster], asked, by_hand: None }
}

/// Rows as if their outbox had been pruned and their trail removed.
async fn fill_file(cluster: &Cluster, shard: ShardId, ids: &[Id<Customer>]) {
    const ROW: &str = "INSERT INTO account_row (id, home_key, bucket, facility_id, version, created_at, updated_at, given_name, \
        family_name, birth_date, state, mail, points) VALUES (?1, ?1, ?2, ?3, 1, 1, 1, 'Ada', 'Example', '1815-12-10', 'open', \
        'ada@example.org', 0)";
    let mut conn = connect(cluster, shard).await;
    let facility = Uuid::from_u128(9).as_bytes().to_vec();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.expect("begins");
    for id in ids {
        let (key, bucket) = (id.uuid().as_bytes().to_vec(), i64::from(id.bucket().get()));
        let row = sqlx::query(ROW).bind(key.clone()).bind(bucket).bind(facility.clone());
        row.execute(&mut conn).await.expect("a row");
        let head = sqlx::query("INSERT INTO key_head (key, bucket, n) VALUES (?, ?, 1)").bind(key).bind(bucket);
        head.execute(&mut conn).await.expect("a number");
    }
    sqlx::query("COMMIT").execute(&mut conn).await.expect("commits");
    sqlx::query("ANALYZE").execute(&mut conn).await.expect("runs");
}

#[cfg(feature = "postgres")]
pub(super) use servers::measure as measure_servers;

#[cfg(feature = "postgres")]
mod servers {
    //! Shards are databases of one server.

    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use async_trait::async_trait;
    use pim_core::id::Id;
    use pim_core::shard::{ShardId, ShardMap};
    use pim_data::cluster::Cluster;
    use sqlx::{Executor as _, PgConnection, Row as _};
    use tokio::sync::Mutex;
    use uuid::Uuid;

    use super::super::Customer;
    use super::super::server::{BenchSecrets, ServerBench, open};
    use super::{By, ByHand, Grown, ROWS, SHARDS, compare, rows_many, spread};

    /// Connections in all, when they are as many whatever the number of shards: one to each of the most.
    const CONNECTIONS: usize = 16;
    /// What a server must take for that: each program has some more to each database, and the hand-written side its own.
    const SERVER_CONNECTIONS: usize = 400;
    /// Ids that go to the server at once.
    const BATCH: usize = 50_000;
    const ROW: &str = "INSERT INTO account_row (id, home_key, bucket, facility_id, version, created_at, updated_at, given_name, \
        family_name, birth_date, state, mail, points) SELECT id, id, pim_bucket_of(id), $2, 1, 1, 1, 'Ada', 'Example', \
        '1815-12-10', 'open', 'ada@example.org', 0 FROM unnest($1::uuid[]) AS given(id)";
    /// No trigger runs while it is filled, so history and numbers are told by hand.
    const REST: [&str; 4] = [
        "INSERT INTO account_history (id, home_key, bucket, facility_id, version, created_at, updated_at, given_name, \
         family_name, birth_date, state, mail, points, valid_from) SELECT id, home_key, bucket, facility_id, version, created_at, \
         updated_at, given_name, family_name, birth_date, state, mail, points, updated_at FROM account_row",
        "INSERT INTO key_head (key, bucket, n) SELECT home_key, bucket, 1 FROM account_row",
        "VACUUM ANALYZE",
        "CHECKPOINT",
    ];

    pub(in super::super) async fn measure(run: &str, folder: &Path) {
        let mut sets = Vec::new();
        for shards in SHARDS {
            sets.push(Set::open(run, folder, &format!("{shards}-shards"), shards, ROWS).await);
        }
        let mut grown = Vec::new();
        for set in &sets {
            grown.push(set.with_programs(1).await);
        }
        compare("data/server", By::OneProgram, &grown).await;
        let many = Set::open(run, folder, "many-rows", 1, rows_many()).await;
        compare("data/server", By::OneProgram, &[grown.swap_remove(0), many.with_programs(1).await]).await;
        drop(grown);
        if sets[0].connections_max().await < SERVER_CONNECTIONS {
            eprintln!("not measured on as many connections: the server takes fewer than {SERVER_CONNECTIONS}");
        } else {
            let mut grown = Vec::new();
            for set in &sets {
                grown.push(set.with_programs(CONNECTIONS / usize::from(set.shards)).await);
            }
            compare("data/server", By::AllPrograms, &grown).await;
        }
        for set in sets.iter().chain([&many]) {
            set.secrets.drop_databases(&set.names).await;
        }
    }

    /// Shards that are there, and filled.
    struct Set {
        name: String,
        place: PathBuf,
        shards: u16,
        secrets: Arc<BenchSecrets>,
        names: Vec<String>,
        first: Cluster,
        asked: Vec<Id<Customer>>,
    }

    impl Set {
        async fn open(run: &str, folder: &Path, name: &str, shards: u16, rows: usize) -> Self {
            let secrets = Arc::new(BenchSecrets { run: format!("{run}_{name}"), by_way_of: None });
            let names: Vec<_> =
                (0..shards).map(|shard| format!("shard-{shard}")).chain(["control".to_owned()]).collect();
            secrets.make_databases(&names).await;
            let place = folder.join(name);
            let first = open(&secrets, &place.join("0"), ShardMap::even(shards).expect("shards")).await;
            let (shares, asked) = spread(&first, shards, rows);
            for (share, shard) in shares.iter().zip(&names) {
                fill(&mut secrets.connect(None, &secrets.database(shard)).await, share).await;
            }
            Self { name: name.to_owned(), place, shards, secrets, names, first, asked }
        }

        /// Served by so many programs.
        async fn with_programs(&self, number: usize) -> Grown {
            let shards = &self.names[..usize::from(self.shards)];
            let mut programs = vec![self.first.clone()];
            let mut connections = vec![connect(&self.secrets, shards).await];
            for program in 1..number {
                let place = self.place.join(program.to_string());
                programs.push(open(&self.secrets, &place, ShardMap::even(self.shards).expect("shards")).await);
                connections.push(connect(&self.secrets, shards).await);
            }
            let bench = ServerBench { cluster: self.first.clone(), accounts: Vec::new(), payload: "x".repeat(512) };
            let by_hand: Option<Box<dyn ByHand>> = Some(Box::new(Connections { bench, connections }));
            Grown { name: self.name.clone(), programs, asked: self.asked.clone(), by_hand }
        }

        async fn connections_max(&self) -> usize {
            let mut conn = self.secrets.connect(None, &self.secrets.database(&self.names[0])).await;
            let row = conn.fetch_one("SELECT setting::bigint FROM pg_settings WHERE name = 'max_connections'").await;
            usize::try_from(row.expect("is told").get::<i64, _>(0)).expect("a number")
        }
    }

    /// Somebody whom no policy binds reads, and the application's role writes.
    type Pair = [Mutex<PgConnection>; 2];

    struct Connections {
        bench: ServerBench,
        /// Of each program, to each shard.
        connections: Vec<Vec<Pair>>,
    }

    #[async_trait]
    impl ByHand for Connections {
        async fn read(&self, program: usize, shard: ShardId, id: Id<Customer>) {
            let [reader, _] = &self.connections[program][usize::from(shard.0)];
            std::hint::black_box(ServerBench::peer_read(&mut *reader.lock().await, id).await);
        }

        async fn write(&self, program: usize, shard: ShardId, id: Id<Customer>) {
            let [_, writer] = &self.connections[program][usize::from(shard.0)];
            self.bench.peer_write(&mut *writer.lock().await, id).await;
        }
    }

    async fn connect(secrets: &BenchSecrets, shards: &[String]) -> Vec<Pair> {
        let mut connections = Vec::with_capacity(shards.len());
        for shard in shards {
            let shard = secrets.database(shard);
            let reader = secrets.connect(None, &shard).await;
            let writer = secrets.connect(Some("pim_bench_app"), &shard).await;
            connections.push([Mutex::new(reader), Mutex::new(writer)]);
        }
        connections
    }

    /// Rows as if their outbox had been pruned and their trail removed.
    async fn fill(conn: &mut PgConnection, ids: &[Id<Customer>]) {
        conn.execute("SET session_replication_role = replica").await.expect("no triggers");
        for some in ids.chunks(BATCH) {
            let some: Vec<_> = some.iter().map(|id| id.uuid()).collect();
            sqlx::query(ROW).bind(some).bind(Uuid::from_u128(9)).execute(&mut *conn).await.expect("rows");
        }
        for statement in REST {
            conn.execute(statement).await.expect("runs");
        }
    }
}
