//! Two workers that own the same partition: they take turns at its checkpoint, and nothing is applied twice.

use uuid::Uuid;

use super::rig::{Folder, Journal, Rig, Running, eventually, patient};

/// Guard: the transaction's first statement takes the checkpoint's row, so that whoever comes second reads the heads behind the
/// first one, and `Head::order` tells it what it need not apply. That a stale position moves no checkpoint back is seen in
/// `consumer::engine::tests::a_stale_position_moves_no_checkpoint`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_both_read_the_same_batch() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let other = Rig::open(folder.path()).await;
    let homes = [patient(), patient(), patient()];
    let relay = Running::relay(rig.relay());
    let one = Running::projections(rig.projections(&Journal::default()).await);
    let two = Running::projections(other.projections(&Journal::default()).await);
    for step in 1..=40 {
        for home in homes {
            rig.write(home, Uuid::new_v4(), &[step]).await;
        }
    }
    eventually("everything", || async { rig.journal().await.len() >= 120 }).await;
    for running in [relay, one, two] {
        running.end().await;
    }
    for home in homes {
        assert_eq!(rig.order_of(home).await, (1..=40).collect::<Vec<_>>());
    }
}
