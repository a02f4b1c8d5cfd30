//! A shard that has lost its standby acknowledges commits alone when somebody said so, for as long as they said so, and says it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::shard::{ShardId, ShardMap};
use pim_data::audit::AuditFilter;
use pim_data::backend::{Db, DbError, ServerSettings, SqlPair, Statement};
use pim_data::cluster::{Access, Cluster, ClusterSettings, EndpointFinding, PrimaryState};
use pim_data::consistency::Consistency;
use pim_data::degradation::{DegradeError, Degraded, DegradedStage, Reason};
use pim_data::relocation::{MoveError, MoveStep};
use pim_data::unit::UnitError;

use super::ensemble::{Ensemble, OTHER_DATABASE, PATIENCE, patient, points_on, request, set, until, until_shard};
use super::moving::{go_on_to, mover};
use super::without_owner::WithoutOwner;
use super::world::{Account, Customer, ShopResource, World, schema, tell, trail_of, write};
use crate::wire::{Cut, Trip, Wire};

const SOON: Duration = Duration::from_secs(2);
const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

fn reason() -> Reason {
    "standby-lost".parse().expect("a word")
}

/// Two shards on the same two servers: whatever becomes of a server, both have it.
fn two_shards(ensemble: &Ensemble) -> ClusterSettings {
    for (name, server) in [("a-1", &ensemble.first), ("b-1", &ensemble.second)] {
        ensemble.secrets.tell_in(name, server, OTHER_DATABASE);
    }
    let mut text = "format = 1\nkeyspace = \"pim\"\nversion = 1\n".to_owned();
    for (number, [primary, replica], [first, last]) in [(0, ["a", "b"], [0, 2047]), (1, ["a-1", "b-1"], [2048, 4095])] {
        text.push_str(&format!("\n[[shards]]\nid = {number}\nname = \"shard-{number}\"\nstate = \"live\"\n"));
        for (name, role) in [(primary, "primary"), (replica, "replica")] {
            text.push_str(&format!("[[shards.endpoints]]\nid = \"{name}\"\nrole = \"{role}\"\ndsn_ref = \"{name}\"\n"));
        }
        text.push_str(&format!("[[ranges]]\nfirst = {first}\nlast = {last}\nshard = {number}\nepoch = 1\n"));
    }
    let mut settings = ensemble.settings(&["a", "b"], |_| {});
    settings.map = Some(ShardMap::parse(&text).expect("a sound map"));
    settings
}

async fn open(ensemble: &Ensemble) -> Cluster {
    Cluster::open(two_shards(ensemble), schema()).await.expect("opens")
}

/// A new account on a shard, whose writes need another lane than the first, which is held by hand.
async fn register_on(cluster: &Cluster, shard: ShardId) -> Id<Customer> {
    let mut account = Account::new(Id::random());
    let is_first = |account: &Account| account.id.bucket().get().is_multiple_of(64);
    while cluster.router().route(&account.id).shard != shard || is_first(&account) {
        account = Account::new(Id::random());
    }
    let mut unit = cluster.begin(&request(PATIENCE), account.id);
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    tell(&mut unit, "registered");
    unit.commit().await.expect("commits");
    account.id
}

async fn waits(cluster: &Cluster, id: Id<Customer>) {
    let refused = set(cluster, &request(SOON), id, 99).await;
    assert!(matches!(refused, Err(UnitError::Database(DbError::NoStandby { .. }))), "{refused:?}");
}

fn asked(text: &'static str) -> Statement {
    Statement::of(SqlPair::postgres(text))
}

/// Says it until it is confirmed: a busy disk may not do that in time, and who says it again leaves no second record.
async fn ends(cluster: &Cluster, cx: &RequestContext, shard: ShardId) {
    let permit = write(ShopResource::Account);
    let give_up = Instant::now() + PATIENCE;
    while let Some(ending) = cluster.end_degrading(cx, &permit, shard, &reason()).await.expect("is told") {
        assert_eq!(ending.stage, DegradedStage::Ending);
        assert!(Instant::now() < give_up, "it is never confirmed");
    }
}

fn stage(degraded: Option<Degraded>) -> Option<DegradedStage> {
    degraded.map(|degraded| degraded.stage)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn until_they_take_it_back_and_it_says_so_all_the_time() {
    let ensemble = Ensemble::new();
    let cluster = open(&ensemble).await;
    let permit = write(ShopResource::Account);
    let (here, there) = (register_on(&cluster, HERE).await, register_on(&cluster, THERE).await);
    let other = register_on(&cluster, HERE).await;
    ensemble.second.kill().expect("dies");
    let first = patient();
    let hanging = tokio::spawn({
        let (cluster, cx) = (cluster.clone(), first.clone());
        async move { set(&cluster, &cx, here, 1).await.map(drop) }
    });
    let owners = as_owner_hold_the_first_lane(&ensemble).await;
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::NoStandby)).await;
    assert!(set(&cluster, &request(SOON), there, 99).await.is_err(), "nobody has it but the primary");
    until(&cluster, "a", |it| it.finding == Some(EndpointFinding::NoStandby)).await;
    waits(&cluster, other).await;
    assert!(!hanging.is_finished(), "it waits to its deadline");

    let cx = request(PATIENCE);
    let degraded = cluster.degrade(&cx, &permit, HERE, &reason()).await.expect("is told");
    assert_eq!(degraded.stage, DegradedStage::On);
    assert!(owners.await.expect("no panic").is_err(), "it held what a record of the trail needs");
    assert_eq!(cluster.degrade(&cx, &permit, HERE, &reason()).await.expect("is told"), degraded, "it is on already");
    hanging.await.expect("no panic").expect("whoever waited is told that it is done");
    set(&cluster, &request(PATIENCE), other, 2).await.expect("the primary acknowledges it alone");
    // The answer of a write is given again by the same rule.
    assert!(set(&cluster, &first, here, 1).await.expect("is answered").is_none(), "it is a replay");
    // Whoever writes without a unit, such as a relay, does not wait either.
    cluster.sweep_idempotency().await.expect("sweeps");
    until(&cluster, "a", |it| it.finding == Some(EndpointFinding::Degraded)).await;
    assert_eq!(ensemble.signal("pim_data_endpoints_unsound{finding=\"degraded\"}"), 1);
    until_shard(&cluster, |it| it.degraded == Some(degraded) && it.primary == Some(PrimaryState::Ready)).await;
    waits(&cluster, there).await;

    // It is the shard's: a program that starts now knows.
    drop(cluster);
    let cluster = open(&ensemble).await;
    set(&cluster, &request(PATIENCE), other, 3).await.expect("the primary acknowledges it alone");

    let ended = cluster.end_degrading(&cx, &permit, HERE, &reason()).await.expect("is told");
    assert_eq!(stage(ended), Some(DegradedStage::Ending), "nobody is there to confirm it");
    assert!(set(&cluster, &request(SOON), other, 99).await.is_err(), "it waits for the standby again");
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::NoStandby)).await;
    waits(&cluster, here).await;

    ensemble.second.start().expect("is back");
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::Ready)).await;
    ends(&cluster, &cx, HERE).await;
    until(&cluster, "a", |it| it.finding.is_none()).await;
    set(&cluster, &patient(), here, 4).await.expect("commits");
    let told = ensemble.second.sql("shard-0", "SELECT count(*) FROM pim_degraded").expect("answers");
    assert_eq!((points_on(&ensemble.second, here).as_str(), told.as_str()), ("4", "0"));

    is_in_the_trail(&cluster, &cx).await;
}

/// A unit that adds an account and a note of it.
async fn two_rows(cluster: &Cluster, cx: &RequestContext, id: Id<Customer>) -> Result<(), UnitError> {
    let mut unit = cluster.begin(cx, id);
    unit.save(&write(ShopResource::Account), &Account::new(id))?;
    super::queueing::save_notes(&mut unit, id, 1);
    tell(&mut unit, "two");
    unit.answer(200, &serde_json::json!({}));
    unit.commit().await.map(drop)
}

/// Guard: an answer that is given again to a unit of several rows, or to a load, is as safe as one that is given now; and whoever
/// waits for that without a standby keeps no connection from those who read.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn without_it_no_answer_is_given_again() {
    let ensemble = Ensemble::new();
    let open = async |probe_every| {
        let settings = ensemble.settings(&["a", "b"], |servers| servers.settings.probe_every = probe_every);
        Cluster::open(settings.with_access(Access::Shared), schema()).await.expect("opens")
    };
    let (cluster, unaware) = (open(Duration::from_millis(100)).await, open(Duration::from_secs(3600)).await);
    let (key, id) = (patient(), Id::random());
    two_rows(&cluster, &key, id).await.expect("commits");
    let again = |patience| request(patience).with_idempotency(key.idempotency().expect("a key").clone());
    assert!(matches!(two_rows(&cluster, &again(PATIENCE), id).await, Err(UnitError::Replay(_))));
    ensemble.second.kill().expect("dies");
    // Who has not noticed yet sends it: the commit behind the answer waits.
    let unsafe_yet = two_rows(&unaware, &again(SOON), id).await;
    assert!(!matches!(unsafe_yet, Err(UnitError::Replay(_))), "{unsafe_yet:?}");
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::NoStandby)).await;
    let waiting =
        || ensemble.first.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    let before = waiting().expect("answers");
    for _ in 0..4 {
        let mut unit = cluster.begin(&again(SOON), id);
        let refused = unit.load::<Account>(&write(ShopResource::Account), id).await;
        assert!(matches!(refused, Err(UnitError::Database(DbError::NoStandby { .. }))), "{refused:?}");
    }
    assert_eq!(waiting().expect("answers"), before, "each would keep one");
    let points = super::ensemble::points(&cluster, id, &Consistency::Strong).await;
    assert_eq!(points.expect("reads go on"), 0);
}

/// The owner too may be at a commit that waits for the standby, and holds the end of a lane meanwhile.
async fn as_owner_hold_the_first_lane(ensemble: &Ensemble) -> tokio::task::JoinHandle<Result<(), DbError>> {
    let secrets = Arc::new(ensemble.secrets.clone());
    let owner = Db::connect("a-owner", secrets, ServerSettings::default()).await.expect("connects");
    let mut tx = owner.begin().await.expect("begins");
    let hold = "SELECT count(pg_advisory_xact_lock(7462, 0)), count(pg_logical_emit_message(true, 'test', ''))";
    tx.script(hold).await.expect("holds it");
    tokio::spawn(tx.commit())
}

/// Such as a write that has begun to wait only now: it is not ended yet, and holds the lane for longer than is waited for.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn also_while_somebody_holds_what_its_record_needs() {
    let ensemble = Ensemble::new();
    let cluster = open(&ensemble).await;
    let secrets = Arc::new(ensemble.secrets.clone());
    let owner = Db::connect("a-owner", secrets, ServerSettings::default()).await.expect("connects");
    let mut tx = owner.begin().await.expect("begins");
    tx.script("SELECT count(pg_advisory_xact_lock(7462, 0))").await.expect("holds it");
    let holder = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        tx.rollback().await
    });
    let degraded = cluster.degrade(&request(PATIENCE), &write(ShopResource::Account), HERE, &reason()).await;
    assert_eq!(degraded.expect("is told").stage, DegradedStage::On);
    holder.await.expect("no panic").expect("rolls back");
}

/// Who turned it on and off, why and when; the trail verifies.
async fn is_in_the_trail(cluster: &Cluster, cx: &RequestContext) {
    let filter = AuditFilter::Request(cx.request_id().uuid());
    let told = trail_of(cluster, filter).await;
    let actions: Vec<_> = told.iter().map(|entry| entry.body["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions.len(), 2, "{told:?}");
    assert!(actions.contains(&"degrade") && actions.contains(&"end_degrading"), "{actions:?}");
    for entry in told {
        let body = &entry.body;
        assert_eq!((&body["entity"], &body["user"]), (&"shard".into(), &"u-1".into()), "{body}");
        assert_eq!((&body["after"]["reason"], &body["after"]["shard"]), (&"standby-lost".into(), &0.into()), "{body}");
        assert!(body["at"].as_i64() >= body["after"]["since"].as_i64(), "{body}");
    }
    assert!(cluster.verify_audit().await.expect("reads").verified);
}

/// As the application, in a transaction of its own: whether a commit waits for standbys.
async fn commits_how(cluster: &Cluster) -> String {
    let db = cluster.database(HERE).expect("a shard");
    db.query(asked("SELECT pim_alone()")).await.expect("answers")[0].text(0).expect("text").to_owned()
}

#[tokio::test]
async fn so_whoever_believes_it_without_waits() {
    let world = World::new(1).await;
    let (permit, cx) = (write(ShopResource::Account), request(PATIENCE));
    assert_eq!(commits_how(&world.cluster).await, "on");
    world.cluster.degrade(&cx, &permit, HERE, &reason()).await.expect("is told");
    assert_eq!(commits_how(&world.cluster).await, "local");
    ends(&world.cluster, &cx, HERE).await;
    assert_eq!(commits_how(&world.cluster).await, "on");
    is_in_the_trail(&world.cluster, &cx).await;
}

/// Guard: a change whose COMMIT is under way when the time is over may have been made, and nobody is told that it was not.
#[tokio::test]
async fn what_was_not_answered_may_be_done() {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(1, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0-owner");
        settings
    })
    .await;
    let permit = write(ShopResource::Account);
    let withhold = || wire.cut_next(Cut::Withheld, |trip| *trip == Trip::Script("COMMIT".to_owned()));
    withhold();
    let told = world.cluster.degrade(&request(Duration::from_secs(3)), &permit, HERE, &reason()).await;
    let Err(DegradeError::Shard { source, .. }) = told else { panic!("{told:?}") };
    assert!(wire.has_cut() && source.is_ambiguous(), "{source:?}");
    let kept = asked("SELECT count(*) FROM pim_degraded WHERE is_on");
    let kept = world.powerful(HERE).await.query(kept).await.expect("answers");
    assert_eq!(kept[0].count(0).expect("a count"), 1, "it was made");
    withhold();
    let told = world.cluster.end_degrading(&request(Duration::from_secs(3)), &permit, HERE, &reason()).await;
    let Err(DegradeError::Shard { source, .. }) = told else { panic!("{told:?}") };
    assert!(source.is_ambiguous(), "{source:?}");
    // Said again, it tells what became of it.
    ends(&world.cluster, &request(PATIENCE), HERE).await;
}

/// Guard: `Mover::check`. A record stays with the shard that wrote it: lost with its primary, it would be missing for rows that
/// have left.
#[tokio::test]
async fn and_no_bucket_comes_or_goes_meanwhile() {
    let world = World::new(2).await;
    let (permit, cx) = (write(ShopResource::Account), request(PATIENCE));
    let (here, there) = (register_on(&world.cluster, HERE).await, register_on(&world.cluster, THERE).await);
    let (mover, _tap) = mover(&world.cluster);
    world.cluster.degrade(&cx, &permit, HERE, &reason()).await.expect("is told");
    for (id, target) in [(here, THERE), (there, HERE)] {
        let refused = mover.plan(&cx, [id.bucket()], target).await;
        assert!(matches!(refused, Err(MoveError::Degraded(HERE))), "{refused:?}");
    }
    ends(&world.cluster, &cx, HERE).await;
    mover.plan(&cx, [here.bucket()], THERE).await.expect("is planned");
}

/// Guard: `Run::step` asks again. What a target has acknowledged alone would be lost with it, and the source has removed it.
#[tokio::test]
async fn and_a_move_that_was_planned_before_waits_until_that_ends() {
    let world = World::new(2).await;
    let permit = write(ShopResource::Account);
    let here = register_on(&world.cluster, HERE).await;
    let (mover, _tap) = mover(&world.cluster);
    let planned = mover.plan(&request(PATIENCE), [here.bucket()], THERE).await.expect("is planned");
    let mut run = mover.take_up(planned.id).await.expect("is free");
    for step in [MoveStep::Planned, MoveStep::Copying, MoveStep::Fenced] {
        for degraded in [HERE, THERE] {
            go_on_to(&mut run, step).await;
            let cx = request(PATIENCE);
            world.cluster.degrade(&cx, &permit, degraded, &reason()).await.expect("is told");
            let refused = run.step(&cx).await;
            assert!(matches!(refused, Err(MoveError::Degraded(shard)) if shard == degraded), "{step:?}: {refused:?}");
            set(&world.cluster, &cx, here, 5).await.expect("the source takes writes");
            ends(&world.cluster, &cx, degraded).await;
        }
    }
    drop(run);
    let done = mover.run(&request(PATIENCE), planned.id).await.expect("moves");
    assert_eq!(done.step, MoveStep::Done);
}

#[tokio::test]
async fn that_the_application_itself_cannot_give() {
    let world = World::new(1).await;
    let db = world.cluster.database(HERE).expect("a shard");
    let tries = [
        "INSERT INTO pim_degraded VALUES (1, true, 0)",
        "UPDATE pim_degraded SET is_on = true",
        "DELETE FROM pim_degraded",
        "ALTER TABLE pim_degraded OWNER TO pim_app",
        "CREATE OR REPLACE FUNCTION pim_alone() RETURNS text LANGUAGE sql RETURN 'local'",
    ];
    for text in tries {
        let mut tx = db.begin().await.expect("begins");
        let refused = tx.script(text).await;
        assert!(matches!(refused, Err(DbError::Refused { .. })), "{text}: {refused:?}");
    }
    assert_eq!(commits_how(&world.cluster).await, "on");
}

#[tokio::test]
async fn and_taking_it_back_waits_for_whoever_commits_alone() {
    let world = World::new(1).await;
    let (permit, cx) = (write(ShopResource::Account), request(PATIENCE));
    world.cluster.degrade(&cx, &permit, HERE, &reason()).await.expect("is told");
    let db = world.cluster.database(HERE).expect("a shard");
    let (tx, answers) = db.begin_with(&[asked("SELECT pim_alone()")]).await.expect("begins");
    assert_eq!(answers[0][0].text(0).expect("text"), "local");
    let ending = tokio::spawn({
        let (cluster, cx) = (world.cluster.clone(), cx.clone());
        async move { ends(&cluster, &cx, HERE).await }
    });
    let somebody_waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7463 AND NOT granted \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let account = world.powerful(HERE).await;
    while account.query(asked(somebody_waits)).await.expect("reads")[0].count(0).expect("a number") == 0 {
        assert!(!ending.is_finished(), "it does not wait for whoever commits alone");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tx.commit().await.expect("commits");
    ending.await.expect("it is confirmed");
}

/// Guard: what one of them has had confirmed is not what another has acknowledged alone since.
#[tokio::test]
async fn whoever_forgets_it_forgets_no_later_turn() {
    let world = World::new(1).await;
    let powerful = world.powerful(HERE).await;
    let mut ended = powerful.begin().await.expect("begins");
    ended.script("INSERT INTO pim_degraded (one, is_on, since) VALUES (1, false, 7)").await.expect("is there");
    ended.commit().await.expect("commits");
    let mut other = powerful.begin().await.expect("begins");
    other.script("SELECT FROM pim_degraded FOR UPDATE").await.expect("holds it");
    let forget = || {
        let (cluster, cx) = (world.cluster.clone(), request(PATIENCE));
        tokio::spawn(async move { cluster.end_degrading(&cx, &write(ShopResource::Account), HERE, &reason()).await })
    };
    let mut forgetting = forget();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
        AND query LIKE 'DELETE FROM pim_degraded%'";
    while powerful.query(asked(waits)).await.expect("reads")[0].count(0).expect("a number") == 0 {
        if forgetting.is_finished() {
            // A busy disk has not confirmed in time.
            let ended = forgetting.await.expect("no panic").expect("is told");
            assert_eq!(stage(ended), Some(DegradedStage::Ending), "it waits for nobody");
            forgetting = forget();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.script("UPDATE pim_degraded SET is_on = true").await.expect("is on");
    other.script("UPDATE pim_degraded SET is_on = false").await.expect("is off");
    other.commit().await.expect("commits");
    assert_eq!(stage(forgetting.await.expect("no panic").expect("is told")), Some(DegradedStage::Ending));
    ends(&world.cluster, &request(PATIENCE), HERE).await;
}

#[tokio::test]
async fn or_is_refused_by_name() {
    let world = World::new(1).await;
    let (cx, permit) = (request(PATIENCE), write(ShopResource::Account));
    let nowhere = world.cluster.degrade(&cx, &permit, ShardId(7), &reason()).await;
    assert!(matches!(nowhere, Err(DegradeError::UnknownShard(ShardId(7)))), "{nowhere:?}");
    let narrow = permit.narrowed(uuid::Uuid::nil());
    let narrow = world.cluster.degrade(&cx, &narrow, HERE, &reason()).await;
    assert!(matches!(narrow, Err(DegradeError::Scope)), "{narrow:?}");
    let mut settings = super::world::settings(&world.folder, 1);
    settings.access = Access::Shared;
    drop(world.cluster);
    let servers = settings.servers.as_mut().expect("servers");
    servers.secrets = Arc::new(WithoutOwner(Arc::clone(&servers.secrets)));
    let cluster = Cluster::open(settings, schema()).await.expect("opens");
    let served = cluster.degrade(&cx, &permit, HERE, &reason()).await;
    assert!(matches!(served, Err(DegradeError::NotOwner(HERE))), "{served:?}");
    assert!(cluster.health().await.iter().all(|shard| shard.degraded.is_none()));
}
