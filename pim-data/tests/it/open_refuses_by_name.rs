//! A data directory that does not fit is refused by name, and left as it was.

use pim_data::backend::{Db, DbSettings};
use pim_data::cluster::{Access, Cluster, ClusterSettings, DirectoryError, OpenError};
use pim_data::migration::{MigrateError, Migration};
use pim_data::schema::Schema;

use crate::world::{Folder, schema, settings};

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

/// Guard: the engine refuses one of two connections that bring a new file into WAL, without waiting; we wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_make_a_file_at_once_wait_for_each_other() {
    let folder = Folder::new();
    for round in 0..200 {
        let path = folder.path().join(format!("{round}.db"));
        let opening = (0..8).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { Db::open(&path, DbSettings::default()).await })
        });
        for opened in futures_util::future::join_all(opening).await {
            opened.expect("runs").expect("opens");
        }
    }
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
async fn swapped_database_files() {
    let folder = Folder::new();
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    // What the file of another shard would say.
    let mut tx = cluster.database(pim_core::shard::ShardId(0)).expect("a shard").begin().await.expect("begins");
    tx.script("UPDATE pim_identity SET shard = 1").await.expect("runs");
    tx.commit().await.expect("commits");
    drop(cluster);
    let error = refused(settings(&folder, 2)).await;
    assert!(matches!(error, OpenError::Identity { .. }), "{error:?}");
}

#[tokio::test]
async fn a_schema_newer_than_the_program() {
    let folder = Folder::new();
    let newer = Schema::builder().everywhere(&[Migration::new(20_000, "future", "CREATE TABLE later (x)")]);
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
    let step = |version, table| Migration::new(version, "step", format!("CREATE TABLE {table} (x)"));
    let newer = Schema::builder().everywhere(&[step(999, "earlier"), step(20_000, "last")]).build().expect("sound");
    drop(Cluster::open(settings(&folder, 1), newer).await.expect("opens"));
    let older = Schema::builder().everywhere(&[step(20_000, "last")]).build().expect("sound");
    let error = Cluster::open(settings(&folder, 1), older).await.expect_err("must be refused");
    let OpenError::Schema { source: MigrateError::Newer { found: 999, known: 20_000, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

#[tokio::test]
async fn migrations_run_twice_over_change_nothing() {
    let folder = Folder::new();
    for _ in 0..2 {
        let cluster = Cluster::open(settings(&folder, 1), schema()).await.expect("opens");
        let db = cluster.database(pim_core::shard::ShardId(0)).expect("a shard");
        assert_eq!(
            pim_data::migration::migrate(db, &[]).await.err().map(|_| ()),
            Some(()),
            "older programs are refused"
        );
    }
}

#[tokio::test]
async fn a_migration_that_was_edited_after_it_had_been_applied() {
    let folder = Folder::new();
    let with = |sql: &str| {
        Schema::builder().everywhere(&[Migration::new(1000, "facts", sql)]).build().expect("a sound schema")
    };
    drop(Cluster::open(settings(&folder, 1), with("CREATE TABLE fact (n)")).await.expect("opens"));
    let error = Cluster::open(settings(&folder, 1), with("CREATE TABLE fact (m)")).await.expect_err("must be refused");
    let OpenError::Schema { source: MigrateError::Edited { version: 1000, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

#[tokio::test]
async fn a_failing_migration_leaves_the_database_as_it_was() {
    let folder = Folder::new();
    let file = folder.path().join("own.db");
    let db = Db::open(&file, DbSettings::default());
    let db = db.await.expect("opens");
    let steps = [Migration::new(1, "good", "CREATE TABLE good (x)"), Migration::new(2, "bad", "CREATE TABLE good (x)")];
    let failed = pim_data::migration::migrate(&db, &steps).await;
    assert!(matches!(failed, Err(MigrateError::Step { version: 2, .. })), "{failed:?}");
    assert!(db.query(pim_data::backend::Statement::sqlite("SELECT * FROM good")).await.is_err());
}
