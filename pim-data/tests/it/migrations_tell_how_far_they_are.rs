//! Whoever starts a newer program is told which database is migrated, and how far that is.

use pim_data::cluster::Cluster;
use pim_data::migration::Migration;
use pim_data::schema::Schema;

use super::world::{Folder, schema, schema_builder, settings};
use crate::lines::Lines;

/// The world's schema with two steps more.
fn later() -> Schema {
    let step = |version, name, sql: &str| Migration::new(version, name, sql).with_postgres(sql);
    let steps = [
        step(20_000, "later", "CREATE TABLE later (x INTEGER)"),
        step(20_001, "later still", "ALTER TABLE later ADD COLUMN y INTEGER"),
    ];
    schema_builder().everywhere(&steps).build().expect("a sound schema")
}

/// These members of every line of an event, sorted.
fn told<const N: usize>(lines: &Lines, event: &str, members: [&str; N]) -> Vec<[String; N]> {
    let of = |line: &std::collections::BTreeMap<&str, String>| members.map(|it| line[it].clone());
    let mut told: Vec<_> = lines.of(event).iter().map(of).collect();
    told.sort();
    told
}

/// Guard: every step of every database is told when it begins, with its place among those that are to come, and once.
#[tokio::test]
async fn each_step_of_each_database_is_told() {
    let (lines, _listening) = Lines::listen();
    let folder = Folder::new();
    drop(Cluster::open(settings(&folder, 2), schema()).await.expect("opens"));
    assert_eq!(lines.of("shard.migrates"), [], "a new database is made in one go");
    let made = lines.of("shard.migrated").len();
    assert_eq!(made, 3, "two shards and the control database");

    drop(Cluster::open(settings(&folder, 2), later()).await.expect("opens"));
    // The control database has no number.
    let step = |shard, step| match step {
        1 => [shard, "20000", "later", "1", "2"],
        _ => [shard, "20001", "later still", "2", "2"],
    };
    let all: Vec<_> = ["", "0", "1"].iter().flat_map(|shard| [step(*shard, 1), step(*shard, 2)]).collect();
    assert_eq!(told(&lines, "shard.migrates", ["shard_id", "version", "name", "step", "steps"]), all);
    let ended = told(&lines, "shard.migrated", ["steps", "shard_id"]);
    let of_two: Vec<_> = ended.iter().filter(|[steps, _]| steps == "2").map(|[_, shard]| shard.as_str()).collect();
    assert_eq!((ended.len(), of_two), (made + 3, vec!["", "0", "1"]), "{ended:?}");

    // What is applied is not applied again, and nothing is said.
    drop(Cluster::open(settings(&folder, 2), later()).await.expect("opens"));
    assert_eq!((lines.of("shard.migrates").len(), lines.of("shard.migrated").len()), (all.len(), made + 3));
}
