//! What services are given where another program migrates, and what they may not do with it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use pim_core::clock::{Clock, Timestamp};
use pim_data::backend::{SecretError, Secrets};
use pim_data::cluster::{Access, Cluster};
use pim_data::retention::{RetentionError, RetentionPolicy};

use super::world::{ShopResource, World, cx, schema, settings, write};

/// What services are given: no owner's connection string.
#[derive(Debug)]
pub(crate) struct WithoutOwner(pub(crate) Arc<dyn Secrets>);

impl Secrets for WithoutOwner {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        if name.ends_with("-owner") {
            return Err(SecretError::Absent { name: name.to_owned(), place: "nowhere".to_owned() });
        }
        self.0.secret(name)
    }
}

/// Guard: without the owner's rights history shows no row, so nothing would seem to go; and nothing is signed that is not done.
#[tokio::test]
async fn retention_is_refused_before_anything_is_signed() {
    let clock = Clock::manual(Timestamp::from_micros(1_000_000));
    let world = World::with(2, |mut settings| {
        settings.clock = clock.clone();
        settings.with_access(Access::Shared)
    })
    .await;
    let account = world.register().await;
    for points in 1..=3 {
        clock.advance(Duration::from_secs(1));
        world.change(account.id, |account| account.points = points).await.expect("commits");
    }
    clock.advance(Duration::from_secs(400 * 24 * 60 * 60));
    world.cluster.checkpoint_audit().await.expect("signs");
    let policy = RetentionPolicy::default();
    let planned = world.cluster.plan_retention(&policy).await.expect("counts").rows();
    assert_eq!(planned, 3 + 3, "records and periods");

    let mut less = settings(&world.folder, 2).with_access(Access::Shared);
    less.clock = clock;
    let servers = less.servers.as_mut().expect("servers");
    servers.secrets = Arc::new(WithoutOwner(Arc::clone(&servers.secrets)));
    let service = Cluster::open(less, schema()).await.expect("opens");
    let signed = || fs::read(world.folder.path().join("audit-checkpoints.jsonl")).expect("is there");
    let before = signed();
    let plan = service.plan_retention(&policy).await.map(|plan| plan.rows());
    assert!(matches!(plan, Err(RetentionError::NotOwner(_))), "{plan:?}");
    let run = service.run_retention(&cx(), &write(ShopResource::Account), &policy).await.map(|run| run.rows());
    assert!(matches!(run, Err(RetentionError::NotOwner(_))), "{run:?}");
    assert_eq!(signed(), before);
    let gone = world.cluster.run_retention(&cx(), &write(ShopResource::Account), &policy).await.expect("the owner may");
    assert_eq!(gone.rows(), planned);
}
