//! A server keeps no session of whoever has given up: a program has as many as its settings say, whatever its calls wait for.

use std::time::Duration;

use futures_util::future::join_all;
use pim_core::shard::ShardId;
use pim_data::unit::{Unit, UnitError};
use tokio::time::timeout;

use super::moving::eventually;
use super::queueing::{hold, number, places, save_notes};
use super::world::{tell, within};

const CONNECTIONS_MAX: usize = 2;

/// Guard: `client_connection_check_interval`. A session that waits for a lock reads nothing, and waits on for nobody.
#[tokio::test]
async fn also_where_they_wait_for_a_lock() {
    let world = places(1, CONNECTIONS_MAX).await;
    let key = world.register().await.id;
    let (onlooker, held) = (world.all_powerful(key).await, hold(&world, key).await);
    for _ in 0..15 {
        let hurried = (0..CONNECTIONS_MAX).map(|_| {
            let mut unit = world.cluster.begin(&within(Duration::from_millis(100)), key);
            save_notes(&mut unit, key, 2);
            tell(&mut unit, "noted");
            Unit::commit(unit)
        });
        for end in join_all(hurried).await {
            assert!(matches!(end, Err(UnitError::Deadline)), "{end:?}");
        }
    }
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'pim_test_app'";
    // Those of its two pools, and the one that probes.
    let bound = 2 * CONNECTIONS_MAX as u64 + 1;
    let few = eventually("no more sessions than connections", async || number(&onlooker, sessions).await <= bound);
    // Sooner than whoever holds the key is made to let go.
    timeout(Duration::from_secs(15), few).await.expect("sessions of nobody wait for the key");
    held.rollback().await.expect("lets go");
    // None is being opened any more: whoever drops a database waits for it, and it for whoever drops.
    let database = world.cluster.database(ShardId(0)).expect("a shard");
    let all = join_all((0..CONNECTIONS_MAX).map(|_| database.read())).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}
