//! A data directory that does not fit is refused by name, and left as it was.

use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbSettings, SqlPair, Statement};
use pim_data::cluster::{Access, CONTROL, Cluster, ClusterSettings, DirectoryError, OpenError};
use pim_data::migration::{MigrateError, Migration};
use pim_data::schema::Schema;

#[cfg(feature = "postgres")]
use super::ENGINE;
use super::world::{Folder, World, policy, schema, settings};
use crate::lines::Lines;

/// A step that both engines understand.
fn step(version: u32, name: &'static str, sql: &str) -> Migration {
    Migration::new(version, name, sql.to_owned()).with_postgres(sql.to_owned())
}

async fn refused(settings: ClusterSettings) -> OpenError {
    Cluster::open(settings, schema()).await.expect_err("must be refused")
}

#[tokio::test]
async fn another_number_of_shards() {
    let folder = Folder::new();
    drop(Cluster::open(settings(&folder, 2), schema()).await.expect("opens"));
    let error = refused(settings(&folder, 3)).await;
    assert!(matches!(error, OpenError::Directory(DirectoryError::OtherShards { found: 2, asked: 3, .. })), "{error:?}");
    Cluster::open(settings(&folder, 2), schema()).await.expect("still opens");
}

#[tokio::test]
async fn a_second_exclusive_owner() {
    let folder = Folder::new();
    let _first = Cluster::open(settings(&folder, 1), schema()).await.expect("opens");
    for access in [Access::Exclusive, Access::Shared] {
        let error = refused(settings(&folder, 1).with_access(access)).await;
        assert!(matches!(error, OpenError::Directory(DirectoryError::InUse { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn several_shared_owners_are_let_in_and_keep_an_exclusive_one_out() {
    let folder = Folder::new();
    let shared = || settings(&folder, 1).with_access(Access::Shared);
    let _one = Cluster::open(shared(), schema()).await.expect("opens");
    let _two = Cluster::open(shared(), schema()).await.expect("opens");
    let error = refused(settings(&folder, 1)).await;
    assert!(matches!(error, OpenError::Directory(DirectoryError::InUse { .. })), "{error:?}");
}

#[tokio::test]
async fn a_newer_format_and_a_damaged_layout() {
    let folder = Folder::new();
    drop(Cluster::open(settings(&folder, 1), schema()).await.expect("opens"));
    let layout = folder.path().join("layout.toml");
    std::fs::write(&layout, "format = 99\nshards = 1\n").expect("writes");
    let error = refused(settings(&folder, 1)).await;
    assert!(matches!(error, OpenError::Directory(DirectoryError::Newer { found: 99, .. })), "{error:?}");
    std::fs::write(&layout, "nonsense").expect("writes");
    let error = refused(settings(&folder, 1)).await;
    assert!(matches!(error, OpenError::Directory(DirectoryError::Damaged { .. })), "{error:?}");
}

#[tokio::test]
async fn nothing_there_and_no_map_to_make_it_with() {
    let folder = Folder::new();
    let error = refused(ClusterSettings::at(folder.path().join("nowhere"))).await;
    assert!(matches!(error, OpenError::Directory(DirectoryError::Absent { .. })), "{error:?}");
    assert!(!folder.path().join("nowhere").exists(), "nothing was made");
}

#[tokio::test]
async fn swapped_databases() {
    let folder = Folder::new();
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    let world = World { cluster, policy: policy(), folder };
    // What the database of another shard would say.
    let mut tx = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    tx.script("UPDATE pim_identity SET shard = 1").await.expect("runs");
    tx.commit().await.expect("commits");
    let World { cluster, folder, .. } = world;
    drop(cluster);
    let error = refused(settings(&folder, 2)).await;
    let OpenError::Identity { place, .. } = &error else { panic!("{error:?}") };
    assert!(place.contains("shard-0") && error.to_string().contains(place), "{error}");
}

#[tokio::test]
async fn a_schema_newer_than_the_program() {
    let folder = Folder::new();
    let newer = Schema::builder().everywhere(&[step(20_000, "future", "CREATE TABLE later (x INTEGER)")]);
    drop(Cluster::open(settings(&folder, 1), newer.build().expect("sound")).await.expect("opens"));
    let error = refused(settings(&folder, 1)).await;
    let OpenError::Schema { source: MigrateError::Newer { found: 20_000, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

/// Guard: `pending` looks at every step that was applied. A newer release of a library numbers its steps below the program's.
#[tokio::test]
async fn a_schema_newer_in_the_middle() {
    let folder = Folder::new();
    let step = |version, table| step(version, "step", &format!("CREATE TABLE {table} (x INTEGER)"));
    let newer = Schema::builder().everywhere(&[step(999, "earlier"), step(20_000, "last")]).build().expect("sound");
    drop(Cluster::open(settings(&folder, 1), newer).await.expect("opens"));
    let older = Schema::builder().everywhere(&[step(20_000, "last")]).build().expect("sound");
    let error = Cluster::open(settings(&folder, 1), older).await.expect_err("must be refused");
    let OpenError::Schema { source: MigrateError::Newer { found: 999, known: 20_000, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

/// What a database is made of, and which steps have made it, and when.
async fn made_of(db: &Db) -> Vec<String> {
    const PARTS: SqlPair = SqlPair::of(
        "SELECT c.oid::text || c.relname || c.relkind::text || coalesce(c.relacl::text, '') AS part FROM pg_class c \
           WHERE c.relnamespace = 'public'::regnamespace \
         UNION ALL SELECT a.attrelid::text || a.attname || a.atttypid || a.attnotnull FROM pg_attribute a \
           JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 \
         UNION ALL SELECT p.oid::text || p.xmin || p.proname || md5(p.prosrc) FROM pg_proc p \
           WHERE p.pronamespace = 'public'::regnamespace \
         UNION ALL SELECT t.oid::text || t.tgname FROM pg_trigger t UNION ALL SELECT p.oid::text || p.polname FROM pg_policy p \
         UNION ALL SELECT m::text FROM pim_migration m UNION ALL SELECT r::text FROM pim_routine r ORDER BY 1",
        "SELECT name || coalesce(sql, '') AS part FROM sqlite_master \
         UNION ALL SELECT version || name || hex(digest) || applied_at FROM pim_migration ORDER BY 1",
    );
    let rows = db.query(Statement::of(PARTS)).await.expect("reads");
    rows.iter().map(|row| row.text(0).expect("text").to_owned()).collect()
}

#[tokio::test]
async fn migrations_run_twice_over_change_nothing() {
    let (lines, _listening) = Lines::listen();
    let (mut folder, mut found) = (Folder::new(), Vec::new());
    for _ in 0..2 {
        let cluster = Cluster::open(settings(&folder, 1), schema()).await.expect("opens");
        let world = World { cluster, policy: policy(), folder };
        let all = [ShardId(0), CONTROL].map(|id| world.cluster.database(id).expect("is there"));
        found.push((made_of(&all[0]).await, made_of(&all[1]).await));
        // Not for want of rights.
        let older = pim_data::migration::migrate(&world.powerful(ShardId(0)).await, &[]).await;
        assert!(matches!(older, Err(MigrateError::Newer { .. })), "older programs are refused: {older:?}");
        folder = world.folder;
    }
    assert!(found[0].0.len() > 20 && found[0].1.len() > 20, "{found:?}");
    assert_eq!(found[0], found[1]);
    // Told of each database to which a step was applied.
    assert_eq!(lines.of("shard.migrated").len(), 2, "only the first time");
}

#[tokio::test]
async fn a_migration_that_was_edited_after_it_had_been_applied() {
    let folder = Folder::new();
    let with = |sql: &str| Schema::builder().everywhere(&[step(1000, "facts", sql)]).build().expect("a sound schema");
    drop(Cluster::open(settings(&folder, 1), with("CREATE TABLE fact (n INTEGER)")).await.expect("opens"));
    let error =
        Cluster::open(settings(&folder, 1), with("CREATE TABLE fact (m INTEGER)")).await.expect_err("must be refused");
    let OpenError::Schema { source: MigrateError::Edited { version: 1000, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

/// A database of its own, with nothing in it.
async fn own(folder: &Folder) -> Db {
    #[cfg(feature = "postgres")]
    if ENGINE == pim_data::backend::Engine::Postgres {
        crate::server::add(folder.path(), "shard-9");
        return crate::server::superuser(folder.path(), 9).await;
    }
    Db::open(&folder.path().join("own.db"), DbSettings::default()).await.expect("opens")
}

#[tokio::test]
async fn a_failing_migration_leaves_the_database_as_it_was() {
    let folder = Folder::new();
    let db = own(&folder).await;
    let steps = [step(1, "good", "CREATE TABLE good (x INTEGER)"), step(2, "bad", "CREATE TABLE good (x INTEGER)")];
    let failed = pim_data::migration::migrate(&db, &steps).await;
    assert!(matches!(failed, Err(MigrateError::Step { version: 2, .. })), "{failed:?}");
    assert!(db.query(Statement::same("SELECT * FROM good")).await.is_err());
}
