//! A standby answers what it may, by a lag that is known, and nothing that its caller has seen newer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::id::Id;
use pim_core::shard::{EndpointRole, ShardId};
use pim_data::backend::{Db, DbError, Secrets as _, ServerSettings};
use pim_data::cluster::{Cluster, EndpointFinding, EndpointHealth, OpenError, PrimaryState, Servers};
use pim_data::consistency::{Consistency, ConsistencyToken};
use pim_data::examination::ShardFindingCode;
use pim_data::repository::ReadError;

use super::ensemble::{
    DATABASE, Ensemble, PATIENCE, health, patient, points, register, request, set, until, until_shard,
};
use super::fence_of_a_server::typed;
use super::moving::eventually;
use super::world::{Account, Customer, ShopResource, read, schema};

const EVENTUAL: Consistency = Consistency::Eventual;

fn bounded(seconds: u64) -> Consistency {
    Consistency::Bounded(Duration::from_secs(seconds))
}

fn is_fit(endpoint: &EndpointHealth) -> bool {
    endpoint.role == Some(EndpointRole::Replica) && endpoint.finding.is_none() && endpoint.lag_ms.is_some()
}

/// The one finding of a code about an endpoint; it says where, and what helps.
async fn is_examined(cluster: &Cluster, code: ShardFindingCode, endpoint: &str, words: &[&str]) {
    let examined = cluster.examine().await;
    let of_shard = examined.iter().filter(|it| it.shard == Some(ShardId(0)));
    let found: Vec<_> = of_shard.flat_map(|it| &it.findings).filter(|it| it.code == code).collect();
    let [finding] = found[..] else { panic!("{code:?}: {examined:?}") };
    assert_eq!(finding.endpoint.as_deref(), Some(endpoint), "{finding:?}");
    assert!(!finding.fix.is_empty() && words.iter().all(|word| finding.message.contains(word)), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn within_its_lag_and_never_behind_a_token() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |servers| servers.settings.probe_max = PATIENCE).await;
    let id = register(&cluster).await.id;
    until(&cluster, "b", is_fit).await;
    let before = ensemble.nearby("replica");
    for consistency in [EVENTUAL, bounded(60)] {
        assert!(points(&cluster, id, &consistency).await.is_ok());
    }
    assert_eq!(ensemble.nearby("replica"), before + 2, "the standby answers");
    let token = set(&cluster, &patient(), id, 1).await.expect("commits").expect("at once").token;
    let own = Consistency::ReadYourWrites(token);
    assert_eq!(points(&cluster, id, &own).await.expect("reads"), 1);

    ensemble.shows_the_past();
    let token = set(&cluster, &patient(), id, 2).await.expect("commits").expect("at once").token;
    let own = Consistency::ReadYourWrites(token);
    let (give_up, replies) = (Instant::now() + PATIENCE, ensemble.nearby("replica"));
    while ensemble.nearby("stale") < 10 {
        assert!(Instant::now() < give_up, "the standby is never asked");
        assert_eq!(points(&cluster, id, &own).await.expect("reads"), 2, "never less than its writer has seen");
    }
    assert_eq!(ensemble.nearby("replica"), replies, "what is too old is no answer");
    let mut found = 2;
    while ensemble.nearby("replica") == replies {
        assert!(Instant::now() < give_up, "the standby never answers");
        found = points(&cluster, id, &EVENTUAL).await.expect("reads");
    }
    assert_eq!(found, 1, "whoever allows it sees the past");
    until(&cluster, "b", |it| it.lag_ms.is_none_or(|lag| lag > 1_000)).await;
    assert_eq!(points(&cluster, id, &bounded(1)).await.expect("reads"), 2, "its lag is out of the bound");
    let strong = points(&cluster, id, &Consistency::Strong).await;
    assert_eq!(strong.expect("reads"), 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_moment_later_where_that_is_worth_it() {
    let ensemble = Ensemble::new();
    // Longer than it takes to ask behind the commit.
    ensemble.second.configure(&[("recovery_min_apply_delay", "3s")]).expect("lags");
    let patient_readers = |servers: &mut Servers| {
        servers.settings.catch_up_max = PATIENCE;
        servers.settings.probe_max = PATIENCE;
    };
    let cluster = ensemble.open(&["a", "b"], patient_readers).await;
    let id = register(&cluster).await.id;
    until(&cluster, "b", is_fit).await;
    // What is not there at all is not waited for.
    let give_up = Instant::now() + PATIENCE;
    while points(&cluster, id, &EVENTUAL).await.expect("reads") != 0 || ensemble.nearby("replica") == 0 {
        assert!(Instant::now() < give_up, "the standby never showed it");
        tokio::task::yield_now().await;
    }
    let token = set(&cluster, &patient(), id, 1).await.expect("commits").expect("at once").token;
    let own = Consistency::ReadYourWrites(token);
    assert_eq!(points(&cluster, id, &own).await.expect("reads"), 1);
    assert_eq!((ensemble.nearby("caught_up"), ensemble.nearby("stale")), (1, 0));
}

/// Guard: whoever finds nothing, and then that the bucket is there, looks once more. It may have come in between, with rows that
/// were elsewhere for long.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn what_comes_with_its_bucket_while_it_is_looked_for_is_found() {
    let ensemble = Ensemble::new();
    let patient = |servers: &mut Servers| {
        servers.settings.probe_max = PATIENCE;
        servers.settings.transaction_max = PATIENCE;
    };
    let cluster = ensemble.open(&["a", "b"], patient).await;
    register(&cluster).await;
    until(&cluster, "b", is_fit).await;
    let id = Id::<Customer>::random();
    let bucket = id.bucket();
    let becomes = |state| format!("UPDATE pim_bucket_owned SET state = '{state}' WHERE bucket = {}", bucket.get());
    ensemble.first.sql(DATABASE, &becomes("moved")).expect("is elsewhere");
    let on_standby = async |ask: &str| {
        // What has not committed is on its way when something else has.
        ensemble.first.sql(DATABASE, "SELECT pg_current_xact_id()").expect("commits");
        ensemble.second.sql(DATABASE, ask).expect("answers") == "t"
    };
    let is_elsewhere = format!("SELECT state = 'moved' FROM pim_bucket_owned WHERE bucket = {}", bucket.get());
    eventually("elsewhere", async || on_standby(&is_elsewhere).await).await;
    let secrets = Arc::new(ensemble.secrets.clone());
    let settings = ServerSettings { transaction_max: PATIENCE, ..ServerSettings::default() };
    let owner = Db::connect("a-owner", secrets, settings).await.expect("connects");
    let mut comes = owner.begin().await.expect("begins");
    comes.script("LOCK TABLE pim_bucket_owned IN ACCESS EXCLUSIVE MODE").await.expect("locks");
    let is_locked = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'pim_bucket_owned'::regclass AND granted";
    eventually("the lock", async || on_standby(is_locked).await).await;
    let looking = tokio::spawn({
        let cluster = cluster.clone();
        async move { points(&cluster, id, &EVENTUAL).await }
    });
    // It has found nothing by now.
    let is_asked = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted";
    eventually("the question", async || on_standby(is_asked).await).await;
    let with_rows = format!("{}; SELECT set_config('app.scope', 'all', true); {}", becomes("owned"), typed(id, bucket));
    comes.script(&with_rows).await.expect("comes");
    comes.commit().await.expect("commits");
    assert_eq!(looking.await.expect("no panic").expect("reads"), 0, "it is there");
    assert_eq!(ensemble.nearby("replica"), 1, "the standby has told");
}

/// The standby stands still from now on, with a connection open to it.
async fn reads_go_on_without_the_standby(ensemble: &Ensemble, cluster: &Cluster) {
    let id = register(cluster).await.id;
    until(cluster, "b", is_fit).await;
    points(cluster, id, &EVENTUAL).await.expect("a connection to it is open");
    ensemble.second.freeze().expect("stands still");
    for _ in 0..20 {
        points(cluster, id, &EVENTUAL).await.expect("the primary answers");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn one_that_stands_still_is_left_alone_and_reads_go_on() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |servers| servers.settings.probe_max = Duration::from_millis(300)).await;
    reads_go_on_without_the_standby(&ensemble, &cluster).await;
    until(&cluster, "b", |it| it.finding == Some(EndpointFinding::Unreachable)).await;
    is_examined(&cluster, ShardFindingCode::Endpoint, "b", &["b ", EndpointFinding::Unreachable.what()]).await;
    assert!(ensemble.nearby("failed") + ensemble.nearby("absent") > 0);
    assert_eq!(ensemble.signal("pim_data_endpoints_unsound{finding=\"unreachable\"}"), 1);
    ensemble.second.thaw().expect("goes on");
    until(&cluster, "b", is_fit).await;
    assert_eq!(ensemble.signal("pim_data_endpoints_unsound{finding=\"unreachable\"}"), 0);
}

/// Guards: a standby that stands still takes half of a hurried reader's time, not all of it; and one that was hardly given time is
/// not blamed for that. No probe has found anything out yet.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn one_that_stands_still_leaves_time_for_the_primary() {
    let ensemble = Ensemble::new();
    let rarely_probed = |servers: &mut Servers| {
        servers.settings.probe_every = Duration::from_secs(10);
        servers.settings.probe_max = PATIENCE;
    };
    let cluster = ensemble.open(&["a", "b"], rarely_probed).await;
    let id = register(&cluster).await.id;
    until(&cluster, "b", is_fit).await;
    let (permit, own) = (read(ShopResource::Account), ensemble.nearby("replica"));
    let hurried = async |millis| {
        let cx = request(Duration::from_millis(millis));
        cluster.read::<Account>(&cx, &permit, id, &EVENTUAL).await
    };
    hurried(6_000).await.expect("a connection to it is open");
    assert_eq!(ensemble.nearby("replica"), own + 1);
    ensemble.second.freeze().expect("stands still");
    for _ in 0..3 {
        let _late_or_of_the_primary = hurried(100).await;
    }
    assert!(!health(&cluster).await.endpoints.iter().any(|it| it.breaker_open), "it had fifty milliseconds");
    hurried(6_000).await.expect("the primary answers");
    ensemble.second.thaw().expect("goes on");
}

/// Guard: reads that only the primary can answer wait for a lost one where they are counted, and learn which one that is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn whoever_falls_back_to_a_lost_primary_is_told_of_it() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    let id = register(&cluster).await.id;
    until(&cluster, "b", is_fit).await;
    ensemble.first.kill().expect("dies");
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::Silent)).await;
    is_examined(&cluster, ShardFindingCode::Primary, "a", &["does not answer"]).await;
    let permit = read(ShopResource::Account);
    // More than may ask the primary in a replica's stead at a time.
    let all = (0..12).map(async |_| {
        let unseen = Consistency::ReadYourWrites(ConsistencyToken::of(id.uuid(), 99));
        let cx = request(Duration::from_secs(1));
        cluster.read::<Account>(&cx, &permit, id, &unseen).await.map(drop)
    });
    for outcome in futures_util::future::join_all(all).await {
        let named = |error: &DbError| matches!(error, DbError::NoPrimary { place } if place == "a");
        assert!(matches!(&outcome, Err(ReadError::Database(error)) if named(error)), "{outcome:?}");
    }
}

/// Guard: whoever asks tells the endpoint's breaker what became of it; no probe has found anything out yet.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn one_that_fails_its_callers_is_asked_by_fewer() {
    let ensemble = Ensemble::new();
    let change = |servers: &mut Servers| {
        servers.settings.probe_max = Duration::from_millis(100);
        servers.settings.probe_every = Duration::from_secs(10);
    };
    let cluster = ensemble.open(&["a", "b"], change).await;
    reads_go_on_without_the_standby(&ensemble, &cluster).await;
    until(&cluster, "b", |it| it.breaker_open).await;
    ensemble.second.thaw().expect("goes on");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn one_of_another_shard_or_of_unknown_lag_is_named_and_not_asked() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    let id = register(&cluster).await.id;
    until(&cluster, "b", is_fit).await;
    // Somebody swaps a connection string while the program runs.
    let right = ensemble.secrets.secret("b").expect("a secret");
    let other = ensemble.secrets.secret("control").expect("a secret");
    ensemble.secrets.set("b", other);
    until(&cluster, "b", |it| it.finding == Some(EndpointFinding::OtherShard)).await;
    is_examined(&cluster, ShardFindingCode::Endpoint, "b", &["b ", EndpointFinding::OtherShard.what()]).await;
    let asked = ensemble.nearby("absent");
    assert_eq!(points(&cluster, id, &EVENTUAL).await.expect("reads"), 0);
    assert_eq!(ensemble.nearby("absent"), asked + 1, "the primary answers");
    drop(cluster);
    let refused = Cluster::open(ensemble.settings(&["a", "b"], |_| {}), schema()).await.err();
    let Some(OpenError::Identity { shard, place, .. }) = &refused else { panic!("{refused:?}") };
    assert!(shard == "shard 0" && place == "b", "{refused:?}");
    ensemble.secrets.set("b", right);

    // A standby that is behind all that this program has seen: nobody can tell how old it is.
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    ensemble.shows_the_past();
    set(&cluster, &patient(), id, 5).await.expect("commits");
    drop(cluster);
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    until(&cluster, "b", |it| it.finding == Some(EndpointFinding::UnknownLag)).await;
    is_examined(&cluster, ShardFindingCode::Endpoint, "b", &["b ", EndpointFinding::UnknownLag.what()]).await;
    assert_eq!(points(&cluster, id, &EVENTUAL).await.expect("reads"), 5, "the primary answers");
}

/// Guard: a primary that waits for no standby although it has one is named.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_primary_that_waits_for_no_standby_is_named() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    until(&cluster, "b", is_fit).await;
    let is_sound = async || cluster.examine().await.iter().all(|it| it.findings.is_empty());
    let give_up = Instant::now() + PATIENCE;
    while !is_sound().await {
        assert!(Instant::now() < give_up, "{:?}", cluster.examine().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensemble.first.configure(&[("synchronous_standby_names", "")]).expect("forgets it");
    let is_told = async || {
        let all = cluster.examine().await;
        all.iter().flat_map(|it| &it.findings).any(|it| it.code == ShardFindingCode::Asynchronous)
    };
    eventually("it is found", is_told).await;
    is_examined(&cluster, ShardFindingCode::Asynchronous, "a", &["wait for no standby"]).await;
}
