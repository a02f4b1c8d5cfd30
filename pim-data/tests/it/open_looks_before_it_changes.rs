//! Opening looks at every database before it changes the first: when one is refused, all of them are as they were.

use std::sync::Arc;

use pim_core::shard::ShardId;
use pim_data::backend::{Engine, FileSecrets, Statement};
use pim_data::cluster::{Access, Cluster, ClusterSettings, DirectoryError, OpenError, Servers};
use pim_data::migration::{MigrateError, Migration};
use pim_data::schema::Schema;

use super::ENGINE;
use super::world::{Folder, World, policy, schema_builder, settings};

/// The world's schema and one step more, which its databases lack.
fn later() -> Schema {
    let step = Migration::new(20_000, "later", "CREATE TABLE later (x INTEGER)");
    schema_builder().everywhere(&[step.with_postgres("CREATE TABLE later (x bigint)")]).build().expect("a sound schema")
}

/// Two shards that were opened once, and then changed by hand on the second.
async fn changed_by_hand(sql: &str) -> Folder {
    let world = World::new(2).await;
    let mut tx = world.powerful(ShardId(1)).await.begin().await.expect("begins");
    tx.script(sql).await.expect("runs");
    tx.commit().await.expect("commits");
    let World { cluster, folder, .. } = world;
    drop(cluster);
    folder
}

/// Why the directory is refused; whatever that is, the first shard has not been migrated.
async fn refused(folder: Folder, settings: ClusterSettings) -> OpenError {
    let error = Cluster::open(settings, later()).await.expect_err("must be refused");
    let newest = Statement::same("SELECT MAX(version) FROM pim_migration");
    let found = first_shard(&folder).await.query(newest).await.expect("reads")[0].count(0).expect("a number");
    assert_eq!(found, 10_001, "{error:?}");
    drop(folder);
    error
}

async fn first_shard(folder: &Folder) -> pim_data::backend::Db {
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        return crate::server::superuser(folder.path(), 0).await;
    }
    let path = folder.path().join("shards").join("shard-0.db");
    pim_data::backend::Db::open(&path, pim_data::backend::DbSettings::default()).await.expect("opens")
}

/// What an error says a database is called.
fn second() -> &'static str {
    if ENGINE == Engine::Postgres { "shard-1" } else { "shard-1.db" }
}

/// Guard: the survey of all databases comes before the first migration.
#[tokio::test]
async fn a_newer_shard_keeps_those_before_it_from_being_migrated() {
    let sql = format!(
        "INSERT INTO pim_migration (version, name, digest) VALUES (30000, 'future', {})",
        super::world::bytes(&"ab".repeat(32))
    );
    let folder = changed_by_hand(&sql).await;
    let settings = settings(&folder, 2);
    match refused(folder, settings).await {
        OpenError::Schema { shard, source: MigrateError::Newer { file, found: 30_000, .. } } => {
            assert_eq!(shard, "shard 1");
            assert!(file.contains(second()), "{file}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_shard_of_another_build_keeps_those_before_it_from_being_migrated() {
    let sql =
        format!("UPDATE pim_migration SET digest = {} WHERE version = 10000", super::world::bytes(&"ab".repeat(32)));
    let folder = changed_by_hand(&sql).await;
    let settings = settings(&folder, 2);
    let error = refused(folder, settings).await;
    let OpenError::Schema { source: MigrateError::Edited { version: 10_000, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

#[tokio::test]
async fn another_shards_database_keeps_those_before_it_from_being_migrated() {
    let folder = changed_by_hand("UPDATE pim_identity SET shard = 0").await;
    let settings = settings(&folder, 2);
    let error = refused(folder, settings).await;
    assert!(matches!(error, OpenError::Identity { .. }), "{error:?}");
}

/// Takes away whatever the second shard has.
async fn emptied() -> Folder {
    if ENGINE == Engine::Postgres {
        let anew = "DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pim_test_owner; \
                    GRANT USAGE ON SCHEMA public TO PUBLIC";
        return changed_by_hand(anew).await;
    }
    let World { cluster, folder, .. } = World::new(2).await;
    drop(cluster);
    for ending in ["", "-wal", "-shm"] {
        let _none = std::fs::remove_file(folder.path().join("shards").join(format!("shard-1.db{ending}")));
    }
    folder
}

/// Guard: the directory remembers which databases it has had. An empty one in the place of rows is a mistake, not a beginning.
#[tokio::test]
async fn an_empty_database_where_there_was_one_is_no_new_shard() {
    let folder = emptied().await;
    let settings = settings(&folder, 2);
    match refused(folder, settings).await {
        OpenError::Empty { shard, place } => {
            assert_eq!(shard, "shard 1");
            assert!(place.contains(second()), "{place}");
        }
        other => panic!("{other:?}"),
    }
}

/// A first start that was broken off, or a directory of an earlier release, has nothing written down.
#[tokio::test]
async fn a_first_start_that_was_broken_off_is_gone_on_with() {
    let folder = emptied().await;
    std::fs::write(folder.path().join("layout.toml"), "format = 1\nshards = 2\n").expect("writes");
    let cluster = Cluster::open(settings(&folder, 2), later()).await.expect("opens");
    let world = World { cluster, policy: policy(), folder };
    for _ in 0..8 {
        world.register().await;
    }
}

/// Guard: whoever migrates holds the database's lock from looking to committing.
#[tokio::test(flavor = "multi_thread")]
async fn programs_that_start_at_once_migrate_once() {
    let folder = Folder::new();
    let applied = Statement::same("SELECT COUNT(*), MAX(version) FROM pim_migration");
    let mut counts = Vec::new();
    for steps in [super::world::schema, later] {
        let opening = (0..4).map(|_| Cluster::open(settings(&folder, 2).with_access(Access::Shared), steps()));
        let opened = futures_util::future::join_all(opening).await;
        for cluster in opened {
            drop(cluster.expect("opens"));
        }
        let rows = first_shard(&folder).await.query(applied.clone()).await.expect("reads");
        counts.push((rows[0].count(0).expect("a number"), rows[0].count(1).expect("a number")));
    }
    assert_eq!(counts[0].1, 10_001);
    assert_eq!(counts[1], (counts[0].0 + 1, 20_000));
}

#[tokio::test]
async fn rows_are_not_looked_for_where_they_are_not_kept() {
    let World { cluster, folder, .. } = World::new(2).await;
    drop(cluster);
    let mut other = settings(&folder, 2);
    other.servers = match other.servers {
        Some(_) => None,
        None => Some(Servers::new(Arc::new(FileSecrets::in_folder(folder.path())))),
    };
    let error = refused(folder, other).await;
    assert!(matches!(error, OpenError::Directory(DirectoryError::OtherEngine { .. })), "{error:?}");
}
