//! A committed fact reaches every read model once, in the order of its key, across aggregates and restarts.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::rig::{Folder, Journal, Rig, Running, eventually, patient};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_order_across_aggregates() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let relay = Running::relay(rig.relay());
    let projections = Running::projections(rig.projections(&Journal::default()).await);
    let (one, other) = (patient(), patient());
    for step in 1..=10 {
        rig.write(one, Uuid::new_v4(), &[step, step]).await;
        rig.write(other, Uuid::new_v4(), &[step]).await;
    }
    eventually("thirty events", || async { rig.journal().await.len() == 30 }).await;
    assert_eq!(rig.order_of(one).await, (1..=20).collect::<Vec<_>>());
    assert_eq!(rig.order_of(other).await, (1..=10).collect::<Vec<_>>());
    relay.end().await;
    projections.end().await;
    let status = rig.store.status(&rig.bus).await.unwrap();
    assert!(status.iter().flat_map(|consumer| &consumer.partitions).all(|partition| partition.lag == 0));
    for source in pim_events::Source::all(&rig.cluster) {
        let outbox = source.status(rig.cluster.clock().now()).await.unwrap();
        assert_eq!((outbox.backlog, outbox.leased), (0, false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soon_after_the_commit() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let _projections = Running::projections(rig.projections(&Journal::default()).await);
    let home = patient();
    let (mut writes, mut waits) = (Vec::new(), Vec::new());
    for step in 1..=20 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let writes_since = Instant::now();
        rig.write(home, Uuid::new_v4(), &[step]).await;
        writes.push(writes_since.elapsed());
        let begun = Instant::now();
        eventually("the event", || async { rig.journal().await.len() as u64 == step }).await;
        waits.push(begun.elapsed());
    }
    writes.sort_unstable();
    waits.sort_unstable();
    // Bus and read store sync as the write does: how long that takes is up to the disk.
    let soon = Duration::from_millis(200) + 4 * writes[10];
    assert!(waits[10] < soon, "freshness p50 {:?}, of a write {:?}", waits[10], writes[10]);
}
