//! What a request costs one client as there come to be more shards, and more rows on one: turn about, in one run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use pim_core::id::Id;
use pim_core::rbac::{Permit, Read, SystemScope};
use pim_core::shard::{ShardId, ShardMap};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::consistency::Consistency;
use uuid::Uuid;

use super::{BenchAction, BenchResource, Customer, Measure, connect, context, full_write, median, schema};

/// Rows of a shard that is not about how many there are.
pub(super) const ROWS: usize = 10_000;
/// Rows of a shard that is, unless somebody asks for another number.
const ROWS_MANY: usize = 1_000_000;
const SHARDS: [u16; 3] = [1, 4, 16];
/// Most that a request may cost, measured by what it costs in the small.
const GOAL: f64 = 1.1;
const ROUNDS: usize = 11;
const READS: usize = 400;
const WRITES: usize = 30;
/// Of so many rows, chosen by chance, each side's requests are.
const ASKED: usize = 5_000;

/// A cluster with so many rows on each shard.
pub(super) struct Grown {
    pub(super) name: String,
    pub(super) cluster: Cluster,
    pub(super) asked: Vec<Id<Customer>>,
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

/// Reads and full writes of each against those of the first.
pub(super) async fn compare(engine: &str, grown: &[Grown]) {
    let (permit, payload) =
        (Permit::<Read>::system(SystemScope::new("bench"), BenchAction::Look, BenchResource::Account), "x".repeat(512));
    let read = async |it: &Grown, turn: usize| {
        let (cx, id) = (context(None), it.asked[turn % it.asked.len()]);
        let begun = Instant::now();
        let row = it.cluster.read::<super::Account>(&cx, &permit, id, &Consistency::Strong).await.expect("reads");
        std::hint::black_box(row.expect("is there"));
        begun.elapsed().as_secs_f64() * 1e6
    };
    let write = async |it: &Grown, turn: usize| {
        let begun = Instant::now();
        full_write(&it.cluster, it.asked[turn % it.asked.len()], &payload).await;
        begun.elapsed().as_secs_f64() * 1e6
    };
    // Connections are open and statements prepared on every shard before anything is measured.
    for it in grown {
        for turn in 0..200 {
            read(it, turn).await;
            write(it, turn).await;
        }
    }
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut of_reads, mut of_writes) = (Vec::new(), Vec::new());
        for it in grown {
            let mut took = Vec::with_capacity(READS);
            for turn in 0..READS {
                took.push(read(it, round * READS + turn).await);
            }
            of_reads.push(median(took));
            let mut took = Vec::with_capacity(WRITES);
            for turn in 0..WRITES {
                took.push(write(it, round * WRITES + turn).await);
            }
            of_writes.push(median(took));
        }
        reads.push(of_reads);
        writes.push(of_writes);
    }
    for (index, it) in grown.iter().enumerate().skip(1) {
        for (what, rounds) in [("read", &reads), ("write", &writes)] {
            let rounds = rounds.iter().map(|round| (round[index], round[0])).collect();
            Measure { rounds }.print(&format!("{engine}/{what}-of-{}", it.name), GOAL, false);
        }
    }
}

/// On files.
pub(super) async fn measure(folder: &Path) {
    let mut grown = Vec::new();
    for shards in SHARDS {
        grown.push(on_files(folder, format!("{shards}-shards"), shards, ROWS).await);
    }
    compare("data", &grown).await;
    let many = on_files(folder, "many-rows".to_owned(), 1, rows_many()).await;
    compare("data", &[grown.swap_remove(0), many]).await;
}

async fn on_files(folder: &Path, name: String, shards: u16, rows: usize) -> Grown {
    let place: PathBuf = folder.join(&name);
    let settings = ClusterSettings::at(&place).with_map(ShardMap::even(shards).expect("shards"));
    let cluster = Cluster::open(settings, schema()).await.expect("opens");
    let (shares, asked) = spread(&cluster, shards, rows);
    for (shard, share) in (0..).zip(shares) {
        fill_file(&cluster, ShardId(shard), &share).await;
    }
    Grown { name, cluster, asked }
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

    use std::path::Path;
    use std::sync::Arc;

    use pim_core::id::Id;
    use pim_core::shard::ShardMap;
    use sqlx::{Executor as _, PgConnection};
    use uuid::Uuid;

    use super::super::Customer;
    use super::super::server::{BenchSecrets, open};
    use super::{Grown, ROWS, SHARDS, compare, rows_many, spread};

    /// Ids that go to the server at once.
    const BATCH: usize = 50_000;
    const ROW: &str = "INSERT INTO account_row (id, home_key, bucket, facility_id, version, created_at, updated_at, given_name, \
        family_name, birth_date, state, mail, points) SELECT id, id, pim_bucket_of(id), $2, 1, 1, 1, 'Ada', 'Example', \
        '1815-12-10', 'open', 'ada@example.org', 0 FROM unnest($1::uuid[]) AS given(id)";
    /// No trigger runs while it is filled, so history and numbers are told by hand.
    const REST: [&str; 3] = [
        "INSERT INTO account_history (id, home_key, bucket, facility_id, version, created_at, updated_at, given_name, \
         family_name, birth_date, state, mail, points, valid_from) SELECT id, home_key, bucket, facility_id, version, created_at, \
         updated_at, given_name, family_name, birth_date, state, mail, points, updated_at FROM account_row",
        "INSERT INTO key_head (key, bucket, n) SELECT home_key, bucket, 1 FROM account_row",
        "VACUUM ANALYZE",
    ];

    pub(in super::super) async fn measure(run: &str, folder: &Path) {
        let mut grown = Vec::new();
        for shards in SHARDS {
            grown.push(on_servers(run, folder, format!("{shards}-shards"), shards, ROWS).await);
        }
        let many = on_servers(run, folder, "many-rows".to_owned(), 1, rows_many()).await;
        let (grown, all): (Vec<_>, Vec<_>) = grown.into_iter().unzip();
        compare("data/server", &grown).await;
        let small = grown.into_iter().next().expect("one shard");
        compare("data/server", &[small, many.0]).await;
        for (secrets, names) in all.into_iter().chain([many.1]) {
            secrets.drop_databases(&names).await;
        }
    }

    type Databases = (Arc<BenchSecrets>, Vec<String>);

    async fn on_servers(run: &str, folder: &Path, name: String, shards: u16, rows: usize) -> (Grown, Databases) {
        let secrets = Arc::new(BenchSecrets { run: format!("{run}_{name}"), by_way_of: None });
        let names: Vec<_> = (0..shards).map(|shard| format!("shard-{shard}")).chain(["control".to_owned()]).collect();
        secrets.make_databases(&names).await;
        let cluster = open(&secrets, &folder.join(&name), ShardMap::even(shards).expect("shards")).await;
        let (shares, asked) = spread(&cluster, shards, rows);
        for (share, shard) in shares.iter().zip(&names) {
            fill(&mut secrets.connect(None, &secrets.database(shard)).await, share).await;
        }
        (Grown { name, cluster, asked }, (secrets, names))
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
