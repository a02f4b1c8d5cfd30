//! A map with a higher version and new epochs is published while writes run, and no write fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pim_core::id::Id;
use pim_data::cluster::{Access, Cluster};
use pim_data::consistency::Consistency;
use pim_data::unit::Tries;

use super::moving::eventually;
use super::world::{Account, Customer, Folder, ShopResource, World, cx, policy, read, schema, settings};

const WRITERS: usize = 6;
const MAPS: u64 = 10;

/// One more point, in as many runs as a program makes.
async fn add_one(world: &World, id: Id<Customer>) {
    let context = cx();
    let mut tries = Tries::of(&world.cluster, &context);
    loop {
        match world.change(id, |account| account.points += 1).await {
            Ok(_) => return,
            Err(error) if tries.again(&error).await => {}
            Err(error) => panic!("a write failed: {error:?}"),
        }
    }
}

async fn points(world: &World, id: Id<Customer>) -> u64 {
    let permit = read(ShopResource::Account);
    let row = world.cluster.read::<Account>(&cx(), &permit, id, &Consistency::Strong).await;
    row.expect("reads").expect("is there").points.try_into().expect("counts up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_fails_while_maps_are_published_by_another_process() {
    let folder = Folder::new();
    let open = || Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema());
    let (cluster, publisher) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = Arc::new(World { cluster, policy: policy(), folder });
    let stop = Arc::new(AtomicBool::new(false));
    let written: Arc<[AtomicU64]> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let id = world.register().await.id;
        let (world, stop, written) = (Arc::clone(&world), Arc::clone(&stop), Arc::clone(&written));
        writers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                add_one(&world, id).await;
                written[number].fetch_add(1, Ordering::SeqCst);
            }
            (id, number)
        });
    }
    let counts = || written.iter().map(|own| own.load(Ordering::SeqCst)).collect::<Vec<_>>();
    for _ in 0..MAPS {
        let next = publisher.map().fenced().expect("a successor");
        publisher.publish_map(&next).await.expect("publishes");
        let before = counts();
        // The first of them may have begun by the map before.
        let went_on = || counts().iter().zip(&before).all(|(now, before)| *now >= before + 2);
        eventually("every writer goes on", async || went_on()).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut compared = 0;
    while let Some(outcome) = writers.join_next().await {
        let (id, number) = outcome.expect("no write failed");
        let own = written[number].load(Ordering::SeqCst);
        assert_eq!(points(&world, id).await, own, "each write is there, once");
        add_one(&world, id).await;
        assert_eq!(points(&world, id).await, own + 1);
        compared += 1;
    }
    assert_eq!(compared, WRITERS);
    assert_eq!((publisher.map().version().0, world.cluster.map().version().0), (MAPS + 1, MAPS + 1));
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}
