//! A map that names other servers has everybody use them, and nobody notices: green after blue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::{MapVersion, ShardId, ShardMap};
use pim_data::audit::AuditFilter;
use pim_data::backend::{Db, SecretError, Secrets, ServerSettings, SqlPair, Statement};
use pim_data::cluster::{Access, Cluster, OpenError, PrimaryState};
use pim_data::consistency::Consistency;
use pim_data::fan_out::FanOut;
use pim_data::fence::PublishError;
use pim_data::relocation::{MoveError, MoveStep};
use pim_data::repository::Page;

use super::ensemble::{Ensemble, patient, points, points_on, register, set, until, until_shard};
use super::moving::{at_step, eventually, mover};
use super::world::{Account, Folder, ShopResource, World, cx, policy, read, schema, settings, tell, write};
use crate::maps::{add_third, edited, endpoint};

/// The next map, in which shard 0 is found by another secret.
fn found_by(map: &ShardMap, dsn_ref: &str) -> ShardMap {
    edited(map, |map| {
        let only = endpoint("shard-0-primary", "primary", dsn_ref);
        map["shards"][0]["endpoints"] = vec![only].into();
    })
}

/// Sessions of the application and of the owner on shard 0: with this mark, and without.
async fn sessions(folder: &Folder, mark: &str) -> (u64, u64) {
    let look = "SELECT count(*) FILTER (WHERE application_name = ?), count(*) FILTER (WHERE application_name <> ?) \
                FROM pg_stat_activity WHERE datname = current_database() AND usename LIKE 'pim_test%'";
    let look = Statement::of(SqlPair::generated(look.to_owned())).bind(mark).bind(mark);
    let rows = crate::server::superuser(folder.path(), 0).await.query(look).await.expect("answers");
    (rows[0].count(0).expect("a number"), rows[0].count(1).expect("a number"))
}

/// Makes a database of a folder that has what another one has now; nobody may use that one meanwhile.
async fn copy(folder: &Folder, of: &str, name: &str) {
    let secrets = crate::server::secrets(folder.path());
    let long = Duration::from_secs(120);
    let settings = ServerSettings { transaction_max: long, call_max: long, ..ServerSettings::default() };
    let server = Db::connect("server-super", Arc::new(secrets), settings).await.expect("connects");
    let prefix = folder.path().file_name().expect("a name").to_string_lossy().replace('-', "_");
    let ask = |text: String| Statement::of(SqlPair::generated(text));
    let busy = ask(format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{prefix}_{of}'"));
    // A session ends a little after its connection.
    eventually("nobody uses it", async || {
        server.query(busy.clone()).await.expect("answers")[0].count(0).expect("a number") == 0
    })
    .await;
    let make = format!("CREATE DATABASE \"{prefix}_{name}\" TEMPLATE \"{prefix}_{of}\" OWNER pim_test_owner");
    server.query(ask(make)).await.expect("makes");
}

/// Two processes over one directory, and an account on shard 0.
async fn two() -> (Arc<World>, Cluster, Account) {
    let folder = Folder::new();
    let open = || {
        let mut settings = settings(&folder, 2).with_access(Access::Shared);
        settings.maps_every = Duration::from_millis(100);
        Cluster::open(settings, schema())
    };
    let (cluster, other) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = Arc::new(World { cluster, policy: policy(), folder });
    let account = loop {
        let account = world.register().await;
        if world.cluster.router().route(&account.id).shard == ShardId(0) {
            break account;
        }
    };
    (world, other, account)
}

/// Guard: servers are exchanged under writers, in the process that publishes and in the one that is told nothing; what had the
/// place before has no connection left when they are at it, and may be taken back to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_exchanged_and_taken_back_while_everybody_writes() {
    let (world, other, account) = two().await;
    let written = Arc::new(AtomicU64::new(0));
    let writing = tokio::spawn({
        let (world, written, id) = (Arc::clone(&world), Arc::clone(&written), account.id);
        async move {
            while written.load(Ordering::SeqCst) < u64::MAX / 2 {
                world.change(id, |account| account.points += 1).await.expect("no write fails");
                written.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let go_on = async || {
        let before = written.load(Ordering::SeqCst);
        eventually("writes go on", async || written.load(Ordering::SeqCst) > before + 20).await;
    };
    go_on().await;
    // Somebody who does not ask again may use it on, and keeps no connection open.
    let kept = world.cluster.database(ShardId(0)).expect("is open");
    for (round, mark) in ["green", "teal"].into_iter().enumerate() {
        let next = found_by(&other.map(), &format!("{mark}.shard-0"));
        other.publish_map(&next).await.expect("publishes");
        go_on().await;
        kept.query(Statement::same("SELECT COUNT(*) FROM key_head")).await.expect("answers");
        eventually("what was before is gone", async || matches!(sessions(&world.folder, mark).await, (1.., 0))).await;
        assert_eq!(world.cluster.map().version(), MapVersion(round as u64 + 2));
        go_on().await;
    }
    other.roll_back_map(MapVersion(2)).await.expect("rolls back");
    eventually("there is a way back", async || matches!(sessions(&world.folder, "green").await, (1.., 0))).await;
    go_on().await;
    let before = written.fetch_or(1 << 63, Ordering::SeqCst);
    writing.await.expect("no write failed");
    let total = i64::try_from(before).expect("a small number") + 1;
    world.change(account.id, |account| assert!((total - 1..=total).contains(&account.points))).await.expect("commits");
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: a write that is under way where nobody is sent any more ends there in its own time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_ends_in_its_own_time() {
    let (world, _other, account) = two().await;
    let keeper: Db = crate::server::superuser(world.folder.path(), 0).await;
    let key = Statement::same("SELECT n FROM key_head WHERE key = ? FOR UPDATE").bind(account.id.uuid());
    let (kept, _) = keeper.begin_with(&[key]).await.expect("holds");
    let writing = tokio::spawn({
        let (world, id) = (Arc::clone(&world), account.id);
        async move { world.change(id, |account| account.points = 7).await.map(drop) }
    });
    let waits = Statement::same(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
    );
    eventually("it waits", async || {
        keeper.query(waits.clone()).await.expect("answers")[0].count(0).expect("a number") == 1
    })
    .await;
    world.cluster.publish_map(&found_by(&world.cluster.map(), "green.shard-0")).await.expect("publishes");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!writing.is_finished(), "it waits where it began");
    kept.rollback().await.expect("lets go");
    writing.await.expect("no panic").expect("it was not cut short");
    world.change(account.id, |account| assert_eq!(account.points, 7)).await.expect("commits");
}

/// Guard: servers that are not the shard's, or not by now, are refused by name before anybody is sent there.
#[tokio::test]
async fn those_that_are_not_the_shards_are_refused_by_name() {
    let (world, other, account) = two().await;
    drop(other);
    let World { cluster, policy, folder } = Arc::into_inner(world).expect("nobody else has it");
    let first = cluster.map();
    drop(cluster);
    copy(&folder, "shard-0", "shard-9").await;
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    cluster.publish_map(&first.fenced().expect("a successor")).await.expect("publishes");
    let world = World { cluster, policy, folder };
    let refusal = async |dsn_ref: &str| {
        let refused = world.cluster.publish_map(&found_by(&world.cluster.map(), dsn_ref)).await;
        let Err(PublishError::Open(error)) = refused else { panic!("{dsn_ref}: {refused:?}") };
        *error
    };
    let error = refusal("shard-1").await;
    assert!(matches!(&error, OpenError::Identity { shard, .. } if shard == "shard 0"), "{error}");
    let error = refusal("shard-9").await;
    assert!(matches!(&error, OpenError::Ownership { shard: ShardId(0), .. }), "{error}");
    let error = refusal("shard-8").await;
    assert!(matches!(&error, OpenError::Database { shard, .. } if shard == "shard 0"), "{error}");
    assert_eq!(world.cluster.map().version(), MapVersion(2), "the running map stays");
    world.change(account.id, |account| account.points += 1).await.expect("commits");
}

/// Secrets of a process that is not told of everything.
#[derive(Debug)]
struct Partial {
    inner: Arc<dyn Secrets>,
    /// What it is told of shard 2 and of green servers.
    told: Arc<Mutex<Told>>,
}

#[derive(Clone, Copy, Debug)]
enum Told {
    Nothing,
    SomebodyElses,
    All,
}

impl Secrets for Partial {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let is_new = name.starts_with("green.") || name.starts_with("shard-2");
        match *self.told.lock().expect("no panic") {
            Told::Nothing if is_new => Err(SecretError::Absent { name: name.to_owned(), place: "the test".to_owned() }),
            Told::SomebodyElses if is_new => self.inner.secret(&name.replace("shard-2", "shard-7")),
            _ => self.inner.secret(name),
        }
    }
}

/// Guard: what one process cannot open is told, and tried again; no database is made a shard's that nobody has introduced.
#[tokio::test]
async fn what_a_process_cannot_open_is_told_and_tried_again() {
    let folder = Folder::new();
    for name in ["shard-2", "shard-7"] {
        crate::server::add(folder.path(), name);
    }
    let told = Arc::new(Mutex::new(Told::Nothing));
    let other = Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema()).await.expect("opens");
    let mut partial = settings(&folder, 2).with_access(Access::Shared);
    partial.maps_every = Duration::from_millis(100);
    let servers = partial.servers.as_mut().expect("servers");
    servers.secrets = Arc::new(Partial { inner: Arc::clone(&servers.secrets), told: Arc::clone(&told) });
    let cluster = Cluster::open(partial, schema()).await.expect("opens");
    let world = World { cluster, policy: policy(), folder };
    let next = edited(&other.map(), |map| {
        map["shards"][0]["endpoints"] = vec![endpoint("shard-0-primary", "primary", "green.shard-0")].into();
        add_third(map);
    });
    other.publish_map(&next).await.expect("publishes");
    eventually("it goes by the map", async || world.cluster.map().version() == MapVersion(2)).await;
    // Shard 0 is as it was, and one is not there.
    for _ in 0..8 {
        world.register().await;
    }
    let missing = world.cluster.health().await.into_iter().find(|it| it.shard == Some(ShardId(2))).expect("is told");
    assert!(!missing.reachable);
    let examined = world.cluster.examine().await;
    for number in [0, 2] {
        let told = examined.iter().find(|it| it.shard == Some(ShardId(number))).expect("is examined");
        assert!(told.findings.iter().any(|it| it.message.contains("could not be opened: ")), "{told:?}");
    }
    let unsure = world.cluster.verify_audit().await;
    assert!(unsure.is_err(), "what is not looked at must not seem to be gone: {unsure:?}");
    let unsure = world.cluster.retained().await;
    assert!(unsure.is_err(), "what is not looked at must not seem to be complete: {unsure:?}");
    let filter = AuditFilter::User("clerk-1".to_owned());
    let unsure =
        world.cluster.audit(&cx(), &read(ShopResource::Account), FanOut::because("a test"), &filter, Page::FIRST).await;
    assert!(unsure.is_err(), "what is not looked at must not seem to be all: {unsure:?}");
    *told.lock().expect("no panic") = Told::SomebodyElses;
    eventually("its servers are taken over", async || matches!(sessions(&world.folder, "green").await, (1.., _))).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.cluster.sources().all(|it| it != ShardId(2)), "nobody has introduced that database");
    *told.lock().expect("no panic") = Told::All;
    eventually("the shard is there", async || world.cluster.sources().any(|it| it == ShardId(2))).await;
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: a move goes on with the servers that a map names by now, or not at all.
#[tokio::test]
async fn a_move_does_not_go_on_with_servers_that_were_left() {
    let (world, other, account) = two().await;
    let (mover, _tap) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], ShardId(1)).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Copying).await;
    other.publish_map(&found_by(&other.map(), "green.shard-0")).await.expect("publishes");
    eventually("it goes by the map", async || world.cluster.map().version() == MapVersion(2)).await;
    let refused = run.step(&cx()).await;
    assert!(matches!(refused, Err(MoveError::Exchanged(ShardId(0)))), "{refused:?}");
    drop(run);
    let done = mover.run(&cx(), planned.id).await.expect("moves");
    assert_eq!(done.step, MoveStep::Done);
    assert_eq!(world.cluster.router().route(&account.id).shard, ShardId(1));
    world.change(account.id, |account| account.points += 1).await.expect("commits");
}

/// Guard: while the primary in use acknowledges writes nobody else's is gone to, whatever its term; once it is lost there is a way.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn servers_that_are_not_written_to_are_no_successors() {
    let ensemble = Ensemble::new();
    ensemble.first.configure(&[("synchronous_standby_names", "")]).expect("waits for nobody");
    let cluster = ensemble.open(&["a"], |_| {}).await;
    let id = register(&cluster).await.id;
    let only_b = edited(&cluster.map(), |map| {
        map["shards"][0]["endpoints"] = vec![endpoint("b", "primary", "b")].into();
    });
    let refused = cluster.publish_map(&only_b).await;
    let Err(PublishError::Open(error)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**error, OpenError::Role { .. }), "a standby: {error}");
    ensemble.second.promote().expect("takes over");
    let refused = cluster.publish_map(&only_b).await;
    let Err(PublishError::Open(error)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**error, OpenError::Elsewhere { shard: ShardId(0) }), "{error}");
    set(&cluster, &patient(), id, 1).await.expect("commits");
    ensemble.first.kill().expect("dies");
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::Silent)).await;
    // Guard: whoever waits for the lost one goes on where the map leads then, without being run again.
    let (permit, fresh) = (write(ShopResource::Account), Account::new(Id::random()));
    let mut unit = cluster.begin(&patient(), fresh.id);
    unit.save(&permit, &fresh).expect("saves");
    tell(&mut unit, "registered");
    let commit = tokio::spawn(unit.commit());
    let (load, past) = (cluster.clone(), cluster.clone());
    let load = tokio::spawn(async move { load.begin(&patient(), id).load::<Account>(&permit, id).await.map(drop) });
    let past = tokio::spawn(async move {
        let at = past.clock().now();
        past.as_of::<Account>(&patient(), &read(ShopResource::Account), id, at).await.map(drop)
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.publish_map(&only_b).await.expect("publishes");
    commit.await.expect("no panic").expect("commits");
    load.await.expect("no panic").expect("loads");
    past.await.expect("no panic").expect("reads");
    assert_eq!(points_on(&ensemble.second, fresh.id), "0");
    set(&cluster, &patient(), id, 2).await.expect("commits");
    assert_eq!(points_on(&ensemble.second, id), "2");
}

/// Guard: a standby that a map brings answers reads and can take over; a map that leads back to the primary of before is refused.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_standby_is_added_and_a_former_primary_is_not_gone_back_to() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a"], |_| {}).await;
    let id = register(&cluster).await.id;
    let both = edited(&cluster.map(), |map| {
        map["shards"][0]["endpoints"] = vec![endpoint("a", "primary", "a"), endpoint("b", "replica", "b")].into();
    });
    cluster.publish_map(&both).await.expect("publishes");
    until(&cluster, "b", |it| it.lag_ms.is_some_and(|lag| lag < 5_000)).await;
    assert_eq!(points(&cluster, id, &Consistency::Eventual).await.expect("answers"), 0);
    ensemble.first.kill().expect("dies");
    ensemble.second.promote().expect("takes over");
    set(&cluster, &patient(), id, 2).await.expect("commits");
    ensemble.first.start().expect("is back");
    let back = edited(&cluster.map(), |map| {
        map["shards"][0]["endpoints"] = vec![endpoint("a", "primary", "a")].into();
    });
    let refused = cluster.publish_map(&back).await;
    let Err(PublishError::Open(error)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**error, OpenError::Term { shard: ShardId(0), found: 1, known: 2 }), "{error}");
    set(&cluster, &patient(), id, 3).await.expect("commits");
    assert_eq!(points(&cluster, id, &Consistency::Strong).await.expect("answers"), 3);
}
