//! A shard whose primary is away keeps no other one from being opened, and is there when it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::shard::ShardId;
use pim_data::backend::{DbError, SecretError, Secrets};
use pim_data::cluster::{Access, Cluster, ClusterSettings, OpenError};
use pim_data::examination::ShardFindingCode;
use pim_data::unit::UnitError;

use super::moving::eventually;
use super::world::{Account, Customer, Folder, ShopResource, ShopRole, World, policy, schema, settings, tell, write};

const AWAY: ShardId = ShardId(1);

/// Leads to where nobody listens while its server is away.
#[derive(Debug)]
struct Leave {
    inner: Arc<dyn Secrets>,
    who: &'static [&'static str],
    is_away: Arc<AtomicBool>,
}

impl Secrets for Leave {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let dsn = self.inner.secret(name)?;
        if !self.is_away.load(Ordering::SeqCst) || !self.who.contains(&name.trim_end_matches("-owner")) {
            return Ok(dsn);
        }
        let (address, database) = dsn.rsplit_once('/').expect("a database");
        let (user, _) = address.rsplit_once('@').expect("a user");
        Ok(format!("{user}@127.0.0.1:1/{database}"))
    }
}

/// Two shards over a directory; some of them may leave.
fn leaving(folder: &Folder, who: &'static [&'static str], is_away: &Arc<AtomicBool>) -> ClusterSettings {
    let mut settings = settings(folder, 2).with_access(Access::Shared);
    settings.maps_every = Duration::from_millis(100);
    let servers = settings.servers.as_mut().expect("servers");
    servers.settings.probe_every = Duration::from_millis(100);
    servers.secrets = Arc::new(Leave { inner: Arc::clone(&servers.secrets), who, is_away: Arc::clone(is_away) });
    settings
}

fn customer_of(cluster: &Cluster, shard: ShardId) -> Id<Customer> {
    let lives_there = |id: &Id<Customer>| cluster.router().route(id).shard == shard;
    std::iter::repeat_with(Id::random).find(lives_there).expect("every second one")
}

/// Writes as somebody who gives up soon.
async fn hurried_write(world: &World, id: Id<Customer>) -> Result<(), UnitError> {
    let actor = Actor::new("u-1".parse().expect("a subject"), ShopRole::Owner);
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_millis(500)));
    let permit = write(ShopResource::Account);
    let mut unit = world.cluster.begin(&cx, id);
    let mut account = unit.load::<Account>(&permit, id).await?.expect("is there");
    account.points += 1;
    unit.save(&permit, &account)?;
    tell(&mut unit, "changed");
    unit.commit().await.map(drop)
}

/// Guard: a shard that this directory has had is awaited, and the others serve meanwhile.
#[tokio::test]
async fn a_shard_that_is_away_keeps_no_other_from_being_opened() {
    let (folder, is_away) = (Folder::new(), Arc::new(AtomicBool::new(false)));
    let open = || Cluster::open(leaving(&folder, &["shard-1"], &is_away), schema());
    let before = open().await.expect("opens");
    let (here, there) = (customer_of(&before, ShardId(0)), customer_of(&before, AWAY));
    let world = World { cluster: before, policy: policy(), folder };
    for id in [here, there] {
        world.register_as(Account::new(id)).await;
    }
    let World { cluster, folder, .. } = world;
    drop(cluster);

    is_away.store(true, Ordering::SeqCst);
    let cluster = Cluster::open(leaving(&folder, &["shard-1"], &is_away), schema()).await.expect("opens without it");
    let world = World { cluster, policy: policy(), folder };
    world.change(here, |account| account.points += 1).await.expect("the others serve");
    let refused = hurried_write(&world, there).await;
    assert!(matches!(refused, Err(UnitError::UnknownShard(AWAY))), "{refused:?}");
    let health = world.cluster.health().await;
    assert_eq!(health.iter().map(|it| it.reachable).collect::<Vec<_>>(), [true, false, true]);
    let told = world.cluster.examine().await;
    let finding = &told[1].findings[0];
    assert_eq!((told[1].shard, finding.code), (Some(AWAY), ShardFindingCode::Unreachable));
    for word in ["shard-1", "check that it runs"] {
        assert!(finding.message.contains(word), "{}", finding.message);
    }
    assert!(!finding.message.contains("only-for-tests"), "{}", finding.message);
    // Whatever must see all of them says that it does not.
    let trail = world.cluster.verify_audit().await.map(drop);
    assert!(trail.is_err(), "{trail:?}");

    is_away.store(false, Ordering::SeqCst);
    eventually("it comes", async || hurried_write(&world, there).await.is_ok()).await;
    assert!(world.cluster.health().await.iter().all(|it| it.reachable));
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
    assert!(world.cluster.examine().await.iter().all(|it| it.findings.is_empty()));
}

/// A program without a single shard, or without the control database, says why at once.
#[tokio::test]
async fn nothing_is_opened_without_any_shard_or_without_the_control_database() {
    let folder = Folder::new();
    let open = |who: &'static [&'static str], is_away: bool| {
        Cluster::open(leaving(&folder, who, &Arc::new(AtomicBool::new(is_away))), schema())
    };
    drop(open(&[], false).await.expect("opens"));
    for (who, shard) in [(&["shard-0", "shard-1"] as &[_], "shard 0"), (&["control"], "the control database")] {
        let refused = open(who, true).await;
        let Err(OpenError::Database { shard: named, source: DbError::Unreachable { .. } }) = &refused else {
            panic!("{refused:?}")
        };
        assert_eq!(named, shard);
    }
}

/// Guard: a publication that was interrupted is finished when the last shard is there, although nobody opens anything then.
#[tokio::test]
async fn an_interrupted_publication_is_finished_when_the_last_shard_comes() {
    let (folder, is_away) = (Folder::new(), Arc::new(AtomicBool::new(false)));
    let cluster = Cluster::open(leaving(&folder, &["shard-1"], &is_away), schema()).await.expect("opens");
    let next = cluster.map().fenced().expect("a successor");
    // What a publisher has done when it dies between fence and publication: the map is kept, one shard is fenced.
    std::fs::write(folder.path().join("maps").join("2.toml"), next.to_toml()).expect("writes");
    let mut tx = crate::server::superuser(folder.path(), 1).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET epoch = 2, map_version = 2").await.expect("runs");
    tx.commit().await.expect("commits");
    drop(cluster);
    is_away.store(true, Ordering::SeqCst);
    let cluster = Cluster::open(leaving(&folder, &["shard-1"], &is_away), schema()).await.expect("opens without it");
    assert_eq!(cluster.map().version().0, 1);
    is_away.store(false, Ordering::SeqCst);
    eventually("it is finished", async || cluster.map().version().0 == 2).await;
    let world = World { cluster, policy: policy(), folder };
    for _ in 0..8 {
        world.register().await;
    }
}
