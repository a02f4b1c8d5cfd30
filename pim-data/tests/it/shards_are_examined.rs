//! Whatever is not as it should be in a shard's database is found while it serves, and named with the fix.

use pim_core::id::Id;
use pim_core::shard::{Severity, ShardId};
use pim_data::backend::Engine;
use pim_data::examination::{Examination, ShardFindingCode};

use super::ENGINE;
use super::world::{Account, Customer, World, bytes, uuid};

/// An account that lives on the second of two shards.
async fn neighbour(world: &World) -> Id<Customer> {
    let lives_there = |id: &Id<Customer>| world.cluster.router().route(id).shard == ShardId(1);
    let id = std::iter::repeat_with(Id::random).find(lives_there).expect("every second one");
    world.register_as(Account::new(id)).await.id
}

async fn second(world: &World) -> Examination {
    let mut all = world.cluster.examine().await;
    assert_eq!(all.len(), 3, "two shards and the control database");
    for sound in [&all[0], &all[2]] {
        assert!(sound.findings.is_empty(), "{:?}", sound.findings);
    }
    all.remove(1)
}

/// Examines the second of two shards after something was done to it by hand.
async fn after(sql: &str) -> Examination {
    let world = World::new(2).await;
    world.raw(neighbour(&world).await, sql).await.expect("runs");
    second(&world).await
}

fn only(told: &Examination) -> (ShardFindingCode, &str) {
    let [finding] = &told.findings[..] else { panic!("{:?}", told.findings) };
    assert!(!finding.fix.is_empty());
    (finding.code, &finding.message)
}

#[tokio::test]
async fn a_sound_shard_has_no_findings_and_tells_its_schema() {
    let world = World::new(2).await;
    neighbour(&world).await;
    let told = second(&world).await;
    assert!(told.findings.is_empty(), "{:?}", told.findings);
    assert_eq!((told.shard, told.schema_version, told.schema_version_known), (Some(ShardId(1)), Some(10_001), 10_001));
    assert_eq!((told.buckets_owned, told.sampled), (2048, 1));
}

#[tokio::test]
async fn a_schema_that_is_older_or_newer_is_told_with_both_versions() {
    let told = after("DELETE FROM pim_migration WHERE version = 10001").await;
    let (code, message) = only(&told);
    assert_eq!((code, told.schema_version), (ShardFindingCode::SchemaOlder, Some(10_000)));
    assert!(message.contains("10001"), "{message}");

    let future = format!(
        "INSERT INTO pim_migration (version, name, digest) VALUES (30000, 'future', {})",
        bytes(&"ab".repeat(32))
    );
    let told = after(&future).await;
    assert_eq!((only(&told).0, told.schema_version), (ShardFindingCode::SchemaNewer, Some(30_000)));

    let edited = format!("UPDATE pim_migration SET digest = {} WHERE version = 10000", bytes(&"ab".repeat(32)));
    assert_eq!(only(&after(&edited).await).0, ShardFindingCode::SchemaEdited);
}

#[tokio::test]
async fn a_database_that_says_it_is_another_shard_is_found() {
    let told = after("UPDATE pim_identity SET shard = 0").await;
    let (code, message) = only(&told);
    assert_eq!(code, ShardFindingCode::Identity);
    assert!(message.contains("shard 0"), "{message}");
    let server = (ENGINE == Engine::Postgres).then_some("shard-1-primary");
    assert_eq!(told.findings[0].endpoint.as_deref(), server, "a file is no server");
}

#[tokio::test]
async fn buckets_that_the_map_does_not_say_are_named() {
    let world = World::new(2).await;
    let id = neighbour(&world).await;
    let bucket = id.bucket().get();
    let higher = format!("UPDATE pim_bucket_owned SET epoch = 7 WHERE bucket = {bucket}");
    world.raw(id, &higher).await.expect("runs");
    let told = second(&world).await;
    let (code, message) = only(&told);
    assert_eq!(code, ShardFindingCode::Ownership);
    assert!(message.contains("1 buckets") && message.contains(&bucket.to_string()), "{message}");

    // One that is about to leave is still its own, and what is coming is not yet.
    let moving = format!("UPDATE pim_bucket_owned SET epoch = 1, state = 'draining' WHERE bucket = {bucket}");
    world.raw(id, &moving).await.expect("runs");
    assert!(second(&world).await.findings.is_empty());
    let foreign = world.cluster.map().buckets_of(ShardId(0)).next().expect("has some").0.get();
    let insert = |state: &str| {
        format!("INSERT INTO pim_bucket_owned (bucket, epoch, state, map_version) VALUES ({foreign}, 1, '{state}', 1)")
    };
    world.raw(id, &insert("incoming")).await.expect("runs");
    assert!(second(&world).await.findings.is_empty());
    let surplus = format!("UPDATE pim_bucket_owned SET state = 'owned' WHERE bucket = {foreign}");
    world.raw(id, &surplus).await.expect("runs");
    assert_eq!(only(&second(&world).await).0, ShardFindingCode::Ownership);
}

#[tokio::test]
async fn a_map_that_was_never_published_is_found() {
    let told = after("UPDATE pim_bucket_owned SET map_version = 9").await;
    let (code, message) = only(&told);
    assert_eq!(code, ShardFindingCode::Unpublished);
    assert!(message.contains("map 9"), "{message}");
}

#[tokio::test]
async fn rows_of_a_bucket_that_lives_elsewhere_are_found() {
    let world = World::new(2).await;
    let id = neighbour(&world).await;
    let foreign = world.cluster.map().buckets_of(ShardId(0)).next().expect("has some").0.get();
    let elsewhere = |id: &Id<Customer>| id.bucket().get() == foreign;
    let key = uuid(std::iter::repeat_with(Id::random).find(elsewhere).expect("one is drawn").uuid());
    // A server lets nobody do so, unless its triggers are turned off.
    let off = if ENGINE == Engine::Postgres { "SET LOCAL session_replication_role = replica;" } else { "" };
    let insert = format!("{off} INSERT INTO key_head (key, bucket, n) VALUES ({key}, {foreign}, 1)");
    world.raw(id, &insert).await.expect("runs");
    let told = second(&world).await;
    let (code, message) = only(&told);
    assert_eq!((code, told.findings[0].severity), (ShardFindingCode::Stray, Severity::Warning));
    assert!(message.contains("of 2 home keys 1"), "{message}");
    assert!(message.ends_with(&foreign.to_string()), "{message}");
}

#[tokio::test]
async fn a_database_that_cannot_be_read_is_a_finding_and_not_the_end() {
    let told = after("ALTER TABLE pim_identity RENAME TO pim_somebody").await;
    let (code, message) = only(&told);
    assert_eq!((code, told.schema_version), (ShardFindingCode::Unreachable, None));
    assert!(message.contains("shard-1"), "{message}");
}

/// Guard: `shard::PROBE` reads no table of rows. To count millions of keys takes longer than a probe may, and a shard that answers
/// was told to be out of reach.
#[tokio::test]
async fn whether_a_shard_answers_does_not_depend_on_how_much_it_has() {
    let world = World::new(1).await;
    let account = world.register().await;
    // A probe that looks into a table which is not there would fail.
    world.raw(account.id, "ALTER TABLE key_head RENAME TO elsewhere").await.expect("runs");
    let health = world.cluster.health().await;
    assert!(health.iter().all(|shard| shard.reachable), "{health:?}");
    assert_eq!(health[0].buckets_owned, 4096);
}
