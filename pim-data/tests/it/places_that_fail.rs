//! What is wrong with a place is said by name, with what helps; and nobody waits for it longer than they said.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbError, SecretError, Secrets, ServerSettings, Statement};
use pim_data::cluster::{Cluster, ClusterSettings, EndpointFinding, OpenError};
use pim_data::consistency::Consistency;
use pim_data::repository::ReadError;
use pim_data::unit::UnitError;

use super::moving::eventually;
use super::without_owner::WithoutOwner;
use super::world::{Account, Customer, Folder, ShopResource, ShopRole, World, cx, read, schema, settings, tell, write};
use crate::lines::Lines;
use crate::wire::Wire;

/// Secrets with some of them replaced.
#[derive(Debug)]
struct Replaced {
    inner: Arc<dyn Secrets>,
    change: Change,
}

impl Secrets for Replaced {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        Ok((self.change)(name, self.inner.secret(name)?))
    }
}

/// What becomes of the secret of a name.
type Change = fn(&str, String) -> String;

/// An error with all of its reasons.
pub(super) fn told(error: &dyn Error) -> String {
    let (mut text, mut reason) = (error.to_string(), error.source());
    while let Some(deeper) = reason {
        text = format!("{text}: {deeper}");
        reason = deeper.source();
    }
    text
}

/// What is wrong with the application's connection string of shard 1, and which words the refusal must have.
const CASES: &[(&str, Change, &[&str])] = &[
    ("no connection string", |_, _| "hunter2".to_owned(), &["shard-1", "postgres://user:password@host:port/database"]),
    ("wrong user", |_, dsn| dsn.replace("pim_test_app", "hunter2"), &["shard-1", "check user and password"]),
    ("no such database", |_, dsn| dsn + "_hunter2", &["shard-1", "no such database", "create it"]),
    (
        "another shard's database",
        |_, dsn| dsn.replace("shard-1", "shard-0"),
        &["shard 1", "says that it is shard 0", "swapped"],
    ),
    ("the control database", |_, dsn| dsn.replace("shard-1", "control"), &["shard 1", "swapped"]),
    ("commits that are not on disk", |_, dsn| hasty(&dsn, "off"), &["shard-1", "synchronous_commit", "off"]),
    ("commits that no standby has", |_, dsn| hasty(&dsn, "local"), &["shard-1", "synchronous_commit", "local"]),
];

/// The same, where nobody is there to ask.
const NOBODY_THERE: &[(&str, Change, &[&str])] = &[
    ("nobody listens", |_, dsn| port(&dsn, "1"), &["shard-1", "check that it runs"]),
    ("no such host", |_, dsn| dsn.replace("127.0.0.1", "nowhere.invalid"), &["shard-1", "check that it runs"]),
];

fn hasty(dsn: &str, commits: &str) -> String {
    let separator = if dsn.contains('?') { '&' } else { '?' };
    format!("{dsn}{separator}options=-c%20synchronous_commit%3D{commits}")
}

fn port(dsn: &str, port: &str) -> String {
    let (head, tail) = dsn.rsplit_once(':').expect("a port");
    format!("{head}:{port}{}", tail.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Two shards, one of them by a secret that is not what it should be.
fn with_one_changed(folder: &Folder, change: Change) -> ClusterSettings {
    let mut changed = settings(folder, 2);
    let servers = changed.servers.as_mut().expect("servers");
    servers.settings.connect_timeout = Duration::from_secs(3);
    servers.secrets = Arc::new(OnlyOne { inner: Arc::clone(&servers.secrets), change });
    changed
}

async fn is_refused_at_open(folder: &Folder, &(case, change, words): &(&str, Change, &[&str])) {
    let begun = Instant::now();
    let error = Cluster::open(with_one_changed(folder, change), schema()).await.expect_err(case);
    let text = told(&error);
    for word in words {
        assert!(text.contains(word), "{case}: {text}");
    }
    assert!(!text.contains("hunter2") && !text.contains("only-for-tests"), "{case}: {text}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{case}");
}

#[tokio::test]
async fn a_wrong_connection_string_is_refused_at_open_with_place_and_fix() {
    let folder = Folder::new();
    // Where the shard has never been, nobody knows that it will come.
    for case in NOBODY_THERE {
        is_refused_at_open(&folder, case).await;
    }
    drop(Cluster::open(settings(&folder, 2), schema()).await.expect("opens"));
    for case in CASES {
        is_refused_at_open(&folder, case).await;
    }
    Cluster::open(settings(&folder, 2), schema()).await.expect("still opens");
}

/// Changes the application's secret of shard 1 alone.
#[derive(Debug)]
struct OnlyOne {
    inner: Arc<dyn Secrets>,
    change: Change,
}

impl Secrets for OnlyOne {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let dsn = self.inner.secret(name)?;
        Ok(if name == "shard-1" { (self.change)(name, dsn) } else { dsn })
    }
}

#[tokio::test]
async fn swapped_primaries_are_refused_and_nothing_is_written() {
    let folder = Folder::new();
    drop(Cluster::open(settings(&folder, 2), schema()).await.expect("opens"));
    let mut swapped = settings(&folder, 2);
    let servers = swapped.servers.as_mut().expect("servers");
    let swap = |_: &str, dsn: String| {
        if dsn.contains("shard-0") { dsn.replace("shard-0", "shard-1") } else { dsn.replace("shard-1", "shard-0") }
    };
    servers.secrets = Arc::new(Replaced { inner: Arc::clone(&servers.secrets), change: swap });
    let error = Cluster::open(swapped, schema()).await.expect_err("must be refused");
    assert!(matches!(error, OpenError::Identity { .. }), "{error:?}");
    let db = crate::server::superuser(folder.path(), 0).await;
    let rows = db.query(Statement::same("SELECT shard FROM pim_identity")).await.expect("reads");
    assert_eq!(rows[0].int(0).expect("a number"), 0);
}

const SOON: Duration = Duration::from_millis(700);

/// A request that gives up soon.
fn hurried() -> RequestContext {
    let actor = Actor::new("u-1".parse().expect("a subject"), ShopRole::Owner);
    RequestContext::new(RequestId::mint(), actor, Deadline::after(SOON))
}

/// What becomes of a call of somebody who is [`hurried`]: each by itself ends soon after its deadline.
async fn in_time<T>(call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let outcome = call.await;
    assert!(begun.elapsed() < SOON + Duration::from_secs(3), "{:?}", begun.elapsed());
    outcome
}

/// One unit of somebody who is hurried.
async fn unit_of(world: &World, id: Id<Customer>) -> Result<(), UnitError> {
    let permit = write(ShopResource::Account);
    let mut unit = world.cluster.begin(&hurried(), id);
    unit.load::<Account>(&permit, id).await?;
    tell(&mut unit, "changed");
    unit.commit().await.map(drop)
}

/// One read of somebody who is hurried.
async fn read_of(world: &World, id: Id<Customer>, consistency: &Consistency) -> Result<(), ReadError> {
    let permit = read(ShopResource::Account);
    world.cluster.read::<Account>(&hurried(), &permit, id, consistency).await.map(drop)
}

/// Whatever a request does ends soon after its deadline.
async fn nothing_hangs(world: &World, id: Id<Customer>) -> (Result<(), UnitError>, Result<(), ReadError>) {
    (in_time(unit_of(world, id)).await, in_time(read_of(world, id, &Consistency::Strong)).await)
}

/// An account on a shard that is reached by way of a wire.
async fn behind_a_wire() -> (Wire, World, Account) {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(1, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
        settings
    })
    .await;
    let account = world.register().await;
    (wire, world, account)
}

#[tokio::test]
async fn a_server_that_falls_silent_keeps_nobody_past_the_deadline() {
    let (wire, world, account) = behind_a_wire().await;
    wire.fall_silent();
    // More callers than there are connections: none of them may wait for another one's slot either.
    let all = futures_util::future::join_all((0..12).map(|_| nothing_hangs(&world, account.id))).await;
    for (unit, read) in all {
        assert!(matches!(unit, Err(UnitError::Deadline | UnitError::Database(DbError::Unanswered))), "{unit:?}");
        assert!(matches!(read, Err(ReadError::Deadline)), "{read:?}");
    }
}

/// Guard: a read that any server may answer is bounded like one that only the primary may, also where there is but one server.
#[tokio::test]
async fn nor_a_read_that_need_not_be_fresh() {
    let (wire, world, account) = behind_a_wire().await;
    let token = world.change(account.id, |account| account.points = 1).await.expect("commits").token;
    wire.fall_silent();
    let old = Consistency::Bounded(Duration::from_secs(60));
    for consistency in [Consistency::Eventual, old, Consistency::ReadYourWrites(token)] {
        let all = (0..12).map(async |_| {
            let outcome = in_time(read_of(&world, account.id, &consistency)).await;
            assert!(
                matches!(outcome, Err(ReadError::Deadline | ReadError::Database(DbError::NoPrimary { .. }))),
                "{consistency:?}: {outcome:?}"
            );
        });
        futures_util::future::join_all(all).await;
    }
}

/// Guard: whether a bucket has left is asked within the deadline, too: every request for what is not there asks.
#[tokio::test]
async fn what_is_not_there_is_not_looked_for_past_the_deadline() {
    let world = World::new(1).await;
    world.register().await;
    let mut held = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    held.script("LOCK TABLE pim_bucket_owned IN ACCESS EXCLUSIVE MODE").await.expect("locks");
    let nobody = Id::<Customer>::random();
    let (loaded, found) = nothing_hangs(&world, nobody).await;
    assert!(matches!(loaded, Err(UnitError::Deadline | UnitError::Database(DbError::Unanswered))), "{loaded:?}");
    assert!(matches!(found, Err(ReadError::Deadline | ReadError::Database(DbError::Unanswered))), "{found:?}");
}

/// Guard: what was put where a name belongs may hold a password, and names are told.
#[tokio::test]
async fn a_connection_string_in_place_of_a_name_is_not_repeated() {
    let folder = Folder::new();
    let mut wrong = settings(&folder, 1);
    let servers = wrong.servers.as_mut().expect("servers");
    servers.control = "postgres://u:hunter2@127.0.0.1/control".to_owned();
    let error = Cluster::open(wrong, schema()).await.expect_err("must be refused");
    let text = format!("{} {error:?}", told(&error));
    assert!(!text.contains("hunter2") && text.contains("the control database"), "{text}");
    let secrets = Arc::new(crate::server::secrets(folder.path()));
    let refused = Db::connect("host=h password=hunter2", secrets, ServerSettings::default()).await;
    let error = refused.expect_err("must be refused");
    let text = format!("{} {error:?}", told(&error));
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_pool_whose_connections_are_all_lent_says_so_in_time() {
    let world = World::new(1).await;
    let account = world.register().await;
    let db = world.cluster.database(ShardId(0)).expect("a shard");
    let held = futures_util::future::join_all((0..6).map(|_| db.read())).await;
    let (unit, read) = nothing_hangs(&world, account.id).await;
    assert!(matches!(unit, Err(UnitError::Deadline)), "{unit:?}");
    assert!(matches!(read, Err(ReadError::Deadline)), "{read:?}");
    drop(held);
    world.change(account.id, |account| account.points = 1).await.expect("goes on");
}

#[tokio::test]
async fn what_a_server_refuses_at_run_time_has_a_name() {
    let world = World::new(1).await;
    let account = world.register().await;
    let above = world.all_powerful(account.id).await;
    let raised = async |code: &str| {
        let mut tx = above.begin().await.expect("begins");
        let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$");
        tx.script(&raise).await.expect_err("raises")
    };
    assert!(matches!(raised("53100").await, DbError::Full { place } if place == "shard-0-super"));
    assert!(matches!(raised("25006").await, DbError::ReadOnly { .. }));
    assert!(matches!(raised("40001").await, DbError::Busy));
    // Not only pretended: a query that needs more temporary room than it may have.
    let mut tx = above.begin().await.expect("begins");
    tx.script("SET LOCAL temp_file_limit = 64; SET LOCAL work_mem = 64").await.expect("sets");
    let sorted =
        "SELECT count(*) FROM (SELECT repeat(i::text, 20) t FROM generate_series(1, 200000) i ORDER BY 1 OFFSET 1) s";
    let refused = tx.script(sorted).await;
    assert!(matches!(refused, Err(DbError::Full { .. })), "{refused:?}");
    drop(tx);
    let mut tx = above.begin().await.expect("begins");
    tx.script("SET LOCAL statement_timeout = 50").await.expect("sets");
    let refused = tx.script("SELECT pg_sleep(30)").await;
    let Err(error @ DbError::Cancelled { .. }) = &refused else { panic!("{refused:?}") };
    assert!(error.is_retryable() && !error.is_ambiguous(), "a statement that was cancelled has written nothing");
    // What ends the session before the commit has undone it, but may have come after the commit.
    let ended = async || {
        let mut tx = above.begin().await.expect("begins");
        tx.script("SET LOCAL idle_in_transaction_session_timeout = 50").await.expect("sets");
        tokio::time::sleep(Duration::from_millis(500)).await;
        tx
    };
    let refused = ended().await.script("SELECT 1").await;
    assert!(matches!(refused, Err(DbError::Closed)), "{refused:?}");
    let refused = ended().await.commit().await;
    assert!(matches!(refused, Err(DbError::Lost)), "{refused:?}");
}

/// A primary that is set to be read only: what runs goes on reading, is told by name, and says what helps.
#[tokio::test]
async fn a_primary_that_is_read_only_refuses_writes_by_name_and_goes_on_reading() {
    let world = World::with(1, |mut settings| {
        settings.servers.as_mut().expect("servers").settings.probe_every = Duration::from_millis(50);
        settings
    })
    .await;
    let account = world.register().await;
    let above = world.all_powerful(account.id).await;
    let name = above.query(Statement::same("SELECT current_database()::text")).await.expect("runs");
    let name = name[0].text(0).expect("a name").to_owned();
    let set = |to: &str| format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = {to}");
    // Sessions that there are keep what they began with.
    const AGAIN: &str = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity \
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    world.raw(account.id, &set("on")).await.expect("sets");
    above.query(Statement::same(AGAIN)).await.expect("runs");

    let refused = world.change(account.id, |account| account.points = 7).await;
    let Err(UnitError::Database(error @ DbError::ReadOnly { .. })) = &refused else { panic!("{refused:?}") };
    assert!(told(error).contains("shard-0"), "{}", told(error));
    let permit = read(ShopResource::Account);
    let row = world.cluster.read::<Account>(&cx(), &permit, account.id, &Consistency::Strong).await;
    assert_eq!(row.expect("reads").expect("is there").points, account.points);
    let finding = async || world.cluster.health().await[0].endpoints[0].finding;
    eventually("it is found", async || finding().await == Some(EndpointFinding::ReadOnly)).await;
    let examined = world.cluster.examine().await;
    let found = examined.iter().flat_map(|shard| &shard.findings).find(|it| it.message.contains("takes no writes"));
    let found = found.expect("a finding");
    assert!(found.fix.contains("default_transaction_read_only"), "{found:?}");

    // Its owner's session is not asked to be read only either.
    let mut tx = above.begin().await.expect("begins");
    tx.script(&format!("SET LOCAL transaction_read_only = off; {}", set("off"))).await.expect("sets");
    tx.commit().await.expect("commits");
    // Sessions that began meanwhile keep what they began with.
    above.query(Statement::same(AGAIN)).await.expect("runs");
    eventually("nothing is found", async || finding().await.is_none()).await;
    eventually("writes again", async || world.change(account.id, |account| account.points += 1).await.is_ok()).await;
}

/// Nobody opens a primary that is read only: the owner finds out when it looks after the schema.
#[tokio::test]
async fn a_primary_that_is_read_only_is_not_opened() {
    let world = World::new(1).await;
    let account = world.register().await;
    let above = world.all_powerful(account.id).await;
    let name = above.query(Statement::same("SELECT current_database()::text")).await.expect("runs");
    let name = name[0].text(0).expect("a name").to_owned();
    let set = format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on");
    world.raw(account.id, &set).await.expect("sets");
    let World { cluster, policy, folder } = world;
    drop(cluster);
    let error = Cluster::open(settings(&folder, 1), schema()).await.err().map(|error| told(&error)).unwrap_or_default();
    assert!(error.contains("takes no writes") && error.contains("shard-0"), "{error}");
    drop(policy);
}

/// Guard: whoever reads the log learns which shard fails requests, at which of its servers, for which reason, and what helps.
#[tokio::test]
async fn what_fails_a_request_is_in_the_log_with_shard_and_fix() {
    let (lines, _listening) = Lines::listen();
    let world = World::with(1, |mut settings| {
        settings.servers.as_mut().expect("servers").settings.transaction_max = Duration::from_secs(2);
        settings
    })
    .await;
    let account = world.register().await;
    let keeper = crate::server::superuser(world.folder.path(), 0).await;
    let key = Statement::same("SELECT n FROM key_head WHERE key = ? FOR UPDATE").bind(account.id.uuid());
    let (kept, _) = keeper.begin_with(&[key]).await.expect("holds");
    for _ in 0..2 {
        let refused = world.change(account.id, |account| account.points = 7).await;
        assert!(matches!(refused, Err(UnitError::Database(DbError::Cancelled { .. }))), "{refused:?}");
    }
    kept.rollback().await.expect("lets go");
    let told = lines.of("shard.call_failed");
    assert_eq!(told.len(), 1, "it is told once: {told:?}");
    for (name, value) in [("shard_id", "0"), ("endpoint", "0"), ("code", "cancelled")] {
        assert_eq!(told[0].get(name).map(String::as_str), Some(value), "{told:?}");
    }
    assert!(told[0]["fix"].contains("transaction_max") && !told[0]["request_id"].is_empty(), "{told:?}");
}

/// Guard: a program that may not make functions, and whose release needs others than there are, says so before it serves.
#[tokio::test]
async fn functions_that_are_missing_are_named_where_they_cannot_be_made() {
    let World { cluster, folder, .. } = World::new(1).await;
    drop(cluster);
    let open = async || {
        let mut less = settings(&folder, 1);
        let servers = less.servers.as_mut().expect("servers");
        servers.secrets = Arc::new(WithoutOwner(Arc::clone(&servers.secrets)));
        Cluster::open(less, schema()).await.map(drop)
    };
    open().await.expect("all are there");
    let another = "UPDATE pim_routine SET name = 'of-another-release' WHERE name LIKE 'account%'";
    crate::server::superuser(folder.path(), 0).await.query(Statement::same(another)).await.expect("runs");
    let refused = told(&open().await.expect_err("is refused"));
    assert!(
        refused.contains("`account_") && refused.contains("owner's connection") && refused.contains("shard 0"),
        "{refused}"
    );
    Cluster::open(settings(&folder, 1), schema()).await.expect("whoever may makes them");
    open().await.expect("all are there again");
}

/// Guard: a connection string that asks for what is not spoken here is named for that, not for a server that is away.
#[tokio::test]
async fn a_connection_string_that_asks_for_tls_is_refused_by_name() {
    let folder = Folder::new();
    let mut settings = settings(&folder, 1);
    let servers = settings.servers.as_mut().expect("servers");
    servers.secrets = Arc::new(AskingForTls(Arc::clone(&servers.secrets)));
    let refused = told(&Cluster::open(settings, schema()).await.map(drop).expect_err("is refused"));
    assert!(refused.contains("TLS") && refused.contains("sslmode"), "{refused}");
}

#[derive(Debug)]
struct AskingForTls(Arc<dyn Secrets>);

impl Secrets for AskingForTls {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        Ok(format!("{}?sslmode=require", self.0.secret(name)?))
    }
}

/// Guard: whoever asks how the shards are is told, also while one of them says nothing.
#[tokio::test]
async fn a_primary_that_stands_still_is_not_reachable_and_keeps_nobody_from_the_others() {
    let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
    let world = World::with(2, |mut settings| {
        let servers = settings.servers.as_mut().expect("servers");
        servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
        settings
    })
    .await;
    wire.fall_silent();
    let health = tokio::time::timeout(Duration::from_secs(15), world.cluster.health()).await.expect("is told");
    let reachable: Vec<_> = health.iter().map(|it| (it.shard, it.reachable)).collect();
    assert_eq!(reachable, [(Some(ShardId(0)), false), (Some(ShardId(1)), true), (None, true)]);
}
