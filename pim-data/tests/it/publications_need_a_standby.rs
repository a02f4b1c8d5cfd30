//! A map that raises epochs is not published past a standby that commits wait for: that is said by name, and in time.

use std::time::{Duration, Instant};

use pim_data::backend::DbError;
use pim_data::fence::PublishError;

use super::ensemble::{Ensemble, patient, points_on, register, set};
use super::moving::eventually;

/// Guard: whoever publishes keeps neither others who do, nor those who read maps, until the standby is back; then it goes on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn without_one_it_gives_up_by_name_and_with_one_it_goes_on() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    let id = register(&cluster).await.id;
    ensemble.second.kill().expect("dies");
    let next = cluster.map().fenced().expect("a successor");
    // The first finds out by waiting, the second knows.
    for most in [Duration::from_secs(20), Duration::from_secs(5)] {
        let begun = Instant::now();
        let refused = cluster.publish_map(&next).await;
        let is_named = matches!(refused, Err(PublishError::Shard { source: DbError::NoStandby { .. }, .. }));
        assert!(is_named, "{refused:?}");
        assert!(begun.elapsed() < most, "{:?}", begun.elapsed());
    }
    assert_eq!(cluster.map().version().0, 1);
    // Whoever starts now reads, and does not wait for the standby either.
    drop(cluster);
    let mut settings = ensemble.settings(&["a", "b"], |_| {});
    settings.access = pim_data::cluster::Access::Shared;
    let cluster = pim_data::cluster::Cluster::open(settings, super::world::schema()).await.expect("opens");
    assert_eq!(cluster.map().version().0, 1);
    ensemble.second.start().expect("is back");
    eventually("it is in force", async || cluster.map().version().0 == 2).await;
    set(&cluster, &patient(), id, 2).await.expect("commits");
    assert_eq!(points_on(&ensemble.second, id), "2");
}
