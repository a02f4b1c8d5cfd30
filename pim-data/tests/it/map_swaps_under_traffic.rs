//! A map with a higher version and new epochs is published while writes run, and no write fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pim_data::cluster::{Access, Cluster};
use pim_data::unit::Tries;

use super::world::{Folder, World, cx, policy, schema, settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_fails_while_maps_are_published_by_another_process() {
    let folder = Folder::new();
    let open = || Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema());
    let (cluster, publisher) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = Arc::new(World { cluster, policy: policy(), folder });
    let mut accounts = Vec::new();
    for _ in 0..6 {
        accounts.push(world.register().await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for account in accounts {
        let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
        writers.spawn(async move {
            let mut written = 0;
            while !stop.load(Ordering::SeqCst) {
                let context = cx();
                let mut tries = Tries::of(&world.cluster, &context);
                loop {
                    match world.change(account.id, |account| account.points += 1).await {
                        Ok(_) => break,
                        Err(error) if tries.again(&error).await => {}
                        Err(error) => panic!("a write failed: {error:?}"),
                    }
                }
                written += 1;
            }
            let expected = written;
            let row = world.change(account.id, |account| assert_eq!(account.points, expected)).await;
            row.map(|_| written)
        });
    }
    for _ in 0..10 {
        let next = publisher.map().fenced().expect("a successor");
        publisher.publish_map(&next).await.expect("publishes");
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut written = 0;
    while let Some(outcome) = writers.join_next().await {
        // A last write may meet the last fence; it is not what this promise is about.
        written += outcome.expect("no write failed").unwrap_or(1);
    }
    assert!(written > 0);
    assert_eq!(publisher.map().version().0, 11);
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}
