//! However long a trail has become, signing where it ends and finding what has had its time are statements of a short time.

use std::time::Duration;

use pim_core::clock::{Clock, Timestamp};
use pim_core::shard::ShardId;
use pim_data::backend::{SqlPair, Statement};
use pim_data::retention::RetentionPolicy;

use super::world::World;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Records of one chain, and how many of them are old.
const RECORDS: u64 = 20_000;
const OLD: u64 = 2_500;

/// One chain of many records, and a cluster whose one connection knows what its statements have read.
async fn world() -> World {
    let clock = Clock::manual(Timestamp::from_micros(1_000_000));
    let world = World::with(1, |mut settings| {
        settings.clock = clock.clone();
        settings.servers.as_mut().expect("servers").settings.connections_max = 1;
        settings
    })
    .await;
    let account = world.register().await;
    clock.advance(100 * DAY);
    let digest = |what| format!("sha256(('{what}' || g)::bytea)");
    let fill = format!(
        "INSERT INTO audit SELECT lane, g, {}, {}, body, CASE WHEN g <= {OLD} THEN at ELSE {} END, request_id, user_id, home_key, \
         entity, entity_id FROM audit, generate_series(2, {RECORDS}) g; ANALYZE audit",
        digest("previous"),
        digest("hash"),
        clock.now().as_micros(),
    );
    world.raw(account.id, &fill).await.expect("fills");
    world
}

/// Records that the cluster's connection has read so far, by the table or an index.
async fn records_read(world: &World) -> u64 {
    let read = "SELECT ((SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'audit') \
                + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'audit'))::bigint";
    let db = world.cluster.database(ShardId(0)).expect("a shard");
    // A connection tells what it has read after a while, or when it is asked to.
    db.query(Statement::of(SqlPair::postgres("SELECT 1 FROM pg_stat_force_next_flush()"))).await.expect("tells");
    db.query(Statement::of(SqlPair::postgres(read))).await.expect("reads")[0].count(0).expect("a number")
}

/// Guard: `verify::HEADS` looks up the end of each chain. To compare each record with the last one takes longer than a statement
/// may when there are some millions, and nothing could be signed any more.
#[tokio::test]
async fn signing_reads_the_end_of_each_chain_alone() {
    let world = world().await;
    let before = records_read(&world).await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let read = records_read(&world).await - before;
    assert!((1..100).contains(&read), "{read} of {RECORDS} records were read");
}

/// Guards: `trail::SPANS` looks up both ends of each chain, and `trail::LOOK` goes on page by page as far as something is to go. A
/// trail that is too long for one statement could never become shorter.
#[tokio::test]
async fn retention_reads_what_is_to_go_and_little_more() {
    let world = world().await;
    let before = records_read(&world).await;
    let plan = world.cluster.plan_retention(&RetentionPolicy::default()).await.expect("plans");
    let read = records_read(&world).await - before;
    assert_eq!(plan.rows(), OLD);
    assert!((OLD..OLD + 2_000).contains(&read), "{read} of {RECORDS} records were read");
}
