//! A server that has no connection left is named, with what helps, and nobody waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbError, NotLetIn, ServerSettings, Statement};
use pim_data::cluster::{Cluster, OpenError};
use pim_data::consistency::Consistency;
use pim_data::repository::ReadError;
use pim_data::unit::UnitError;

use super::moving::eventually;
use super::places_that_fail::told;
use super::world::{Account, ShopResource, World, read, schema, settings, tell, within, write};
use crate::lines::Lines;

/// Longer than any of these takes, and what a request is given.
const LONG: Duration = Duration::from_secs(20);

/// Lets so many into a shard's database; -1 are as many as there are.
async fn let_in(world: &World, shard: ShardId, most: i32) {
    let above = world.powerful(shard).await;
    let name = above.query(Statement::same("SELECT current_database()::text")).await.expect("runs");
    let name = name[0].text(0).expect("a name").to_owned();
    let mut tx = above.begin().await.expect("begins");
    tx.script(&format!("ALTER DATABASE \"{name}\" CONNECTION LIMIT {most}")).await.expect("limits");
    tx.commit().await.expect("commits");
}

/// Lets nobody into a shard's database any more, and ends the sessions of those who are in.
async fn fill(world: &World, shard: ShardId) {
    let_in(world, shard, 0).await;
    let end = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename LIKE 'pim_test_%'";
    world.powerful(shard).await.query(Statement::same(end)).await.expect("ends");
}

/// Whether this says that the server behind a connection string is full, and what to do.
fn is_full(error: &DbError, name: &str) -> bool {
    let text = error.to_string();
    matches!(error, DbError::NotLetIn { place, why: NotLetIn::TooMany } if place == name)
        && text.contains(name)
        && text.contains("lower `connections_max` or raise the limit")
}

#[tokio::test]
async fn too_many_connections_are_named_and_waited_for_by_nobody() {
    let world = World::new(1).await;
    let account = world.register().await;
    let_in(&world, ShardId(0), 1).await;
    let secrets = Arc::new(crate::server::secrets(world.folder.path()));
    let refused = Db::connect("shard-0", secrets, ServerSettings::default()).await.expect_err("is full");
    assert!(is_full(&refused, "shard-0") && refused.is_retryable(), "{refused:?}");
    world.change(account.id, |account| account.points = 1).await.expect("those who are in go on");
}

/// Guard: a request that would need a connection says so within its deadline, and the log names shard, server and fix.
#[tokio::test]
async fn a_request_that_gets_no_connection_says_why() {
    let (lines, _listening) = Lines::listen();
    let world = World::new(1).await;
    let account = world.register().await;
    fill(&world, ShardId(0)).await;

    let (begun, permit) = (Instant::now(), write(ShopResource::Account));
    let mut unit = world.cluster.begin(&within(LONG), account.id);
    let refused = unit.load::<Account>(&permit, account.id).await;
    let Err(UnitError::Database(error)) = &refused else { panic!("{refused:?}") };
    assert!(is_full(error, "shard-0"), "{error:?}");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());

    // Whoever has read nothing before comes to the server with the commit.
    let begun = Instant::now();
    let mut unit = world.cluster.begin(&within(LONG), account.id);
    tell(&mut unit, "changed");
    let refused = unit.commit().await;
    let Err(UnitError::Database(error)) = &refused else { panic!("{refused:?}") };
    assert!(is_full(error, "shard-0"), "{error:?}");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());

    for consistency in [Consistency::Strong, Consistency::Eventual] {
        let (begun, permit) = (Instant::now(), read(ShopResource::Account));
        let refused = world.cluster.read::<Account>(&within(LONG), &permit, account.id, &consistency).await;
        let Err(ReadError::Database(error)) = &refused else { panic!("{consistency:?}: {refused:?}") };
        assert!(is_full(error, "shard-0"), "{consistency:?}: {error:?}");
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    }

    let told = lines.of("shard.call_failed");
    let line = told.iter().find(|line| line["code"] == "not_let_in").unwrap_or_else(|| panic!("{told:?}"));
    assert_eq!((line["shard_id"].as_str(), line["endpoint"].as_str()), ("0", "0"), "{line:?}");
    assert!(line["fix"].contains("connections_max"), "{line:?}");

    let_in(&world, ShardId(0), -1).await;
    eventually("writes again", async || world.change(account.id, |account| account.points += 1).await.is_ok()).await;
}

/// Guard: a program that finds its only shard full says so.
#[tokio::test]
async fn a_full_server_is_named_at_open() {
    let world = World::new(1).await;
    fill(&world, ShardId(0)).await;
    let World { cluster, folder, .. } = world;
    drop(cluster);
    let begun = Instant::now();
    let refused = Cluster::open(settings(&folder, 1), schema()).await.expect_err("is full");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    let OpenError::Database { shard, source } = &refused else { panic!("{refused:?}") };
    assert!(shard == "shard 0" && is_full(source, "shard-0-owner"), "{refused:?}");
    let text = told(&refused);
    assert!(text.contains("shard 0") && text.contains("shard-0") && text.contains("connections_max"), "{text}");
}

/// Guard: one that has other shards serves them meanwhile, and names the full one to whoever asks.
#[tokio::test]
async fn a_full_server_keeps_no_other_shard_from_being_opened() {
    let world = World::new(2).await;
    fill(&world, ShardId(0)).await;
    let World { cluster, folder, .. } = world;
    drop(cluster);
    let begun = Instant::now();
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens without it");
    let examined = cluster.examine().await;
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    let of_full = examined.iter().find(|it| it.shard == Some(ShardId(0))).expect("is named");
    let [finding] = &of_full.findings[..] else { panic!("{of_full:?}") };
    assert!(finding.message.contains("shard-0") && finding.message.contains("connections_max"), "{finding:?}");
    assert!(!finding.fix.is_empty());
}
