//! A shard on servers of its own: a primary with a standby that streams from it, and a cluster that knows both.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pim_core::context::{IdempotencyScope, RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::shard::{ShardId, ShardMap};
use pim_core::signal::SignalRegistry;
use pim_data::backend::{SecretError, Secrets, ServerSettings};
use pim_data::cluster::{Cluster, ClusterSettings, EndpointHealth, Servers, ShardHealth};
use pim_data::consistency::Consistency;
use pim_data::repository::ReadError;
use pim_data::signals::DataSignals;
use pim_data::unit::{Committed, Tries, UnitError};
use pim_servers::local::LocalServer;
use pim_servers::temporary::TemporaryServers;

use super::world::{Account, Customer, Folder, ShopResource, ShopRole, read, schema, tell, write};

pub(crate) const DATABASE: &str = "shard-0";
/// That of a second shard on the same servers.
pub(crate) const OTHER_DATABASE: &str = "shard-1";
/// Longest wait for something that has to come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const ROLES: &str = "CREATE ROLE pim_app NOLOGIN;
CREATE ROLE pim_test_owner LOGIN CREATEROLE PASSWORD 'only-for-tests';
CREATE ROLE pim_test_app LOGIN PASSWORD 'only-for-tests' IN ROLE pim_app";

/// Connection strings that a test may change while a cluster uses them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<Mutex<BTreeMap<String, String>>>);

impl Told {
    /// Has a name, and that of its owner, stand for a server from now on.
    pub(crate) fn tell(&self, name: &str, server: &LocalServer) {
        self.tell_in(name, server, DATABASE);
    }

    /// As [`Told::tell`], for a database of the server.
    pub(crate) fn tell_in(&self, name: &str, server: &LocalServer, database: &str) {
        let login = |user: &str| server.dsn_of(user, "only-for-tests", database);
        self.set(name, login("pim_test_app"));
        self.set(&format!("{name}-owner"), login("pim_test_owner"));
    }

    pub(crate) fn set(&self, name: &str, dsn: String) {
        self.0.lock().expect("no panic").insert(name.to_owned(), dsn);
    }
}

impl Secrets for Told {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let found = self.0.lock().expect("no panic").get(name).cloned();
        found.ok_or_else(|| SecretError::Absent { name: name.to_owned(), place: "the test".to_owned() })
    }
}

/// The servers of one shard. Its control database is on a third one, which nobody harms.
pub(crate) struct Ensemble {
    pub(crate) first: LocalServer,
    pub(crate) second: LocalServer,
    pub(crate) secrets: Told,
    pub(crate) folder: Folder,
    pub(crate) servers: TemporaryServers,
    registry: SignalRegistry,
    signals: DataSignals,
}

impl Ensemble {
    /// Starts the servers; each commit waits for the standby.
    pub(crate) fn new() -> Self {
        let servers = TemporaryServers::new().expect("a folder");
        let first = servers.primary("first").expect("starts");
        first.sql("postgres", ROLES).expect("makes roles");
        for database in [DATABASE, OTHER_DATABASE, "control"] {
            first.sql("postgres", &format!("CREATE DATABASE \"{database}\" OWNER pim_test_owner")).expect("a database");
        }
        let second = servers.standby(&first, "second").expect("streams");
        first.require_synchronous("second").expect("waits from now on");
        let (secrets, folder) = (Told::default(), Folder::new());
        secrets.tell("a", &first);
        secrets.tell("b", &second);
        let control = crate::server::secrets(folder.path());
        crate::server::make(folder.path(), "servers", ["control".to_owned()]);
        for name in ["control", "control-owner"] {
            secrets.set(name, control.secret(name).expect("a secret"));
        }
        let mut registry = SignalRegistry::new();
        let signals = DataSignals::bind(&mut registry).expect("binds");
        Self { first, second, secrets, folder, servers, registry, signals }
    }

    /// A cluster that knows these endpoints of its one shard, the primary by the map first.
    pub(crate) async fn open(&self, endpoints: &[&str], change: impl FnOnce(&mut Servers)) -> Cluster {
        Cluster::open(self.settings(endpoints, change), schema()).await.expect("opens")
    }

    pub(crate) fn settings(&self, endpoints: &[&str], change: impl FnOnce(&mut Servers)) -> ClusterSettings {
        let mut servers = Servers::new(Arc::new(self.secrets.clone()));
        servers.settings = ServerSettings {
            connect_timeout: Duration::from_secs(2),
            probe_every: Duration::from_millis(100),
            ..ServerSettings::default()
        };
        change(&mut servers);
        let mut settings = ClusterSettings::at(self.place().join("cluster")).with_map(map(endpoints)).with_servers(servers);
        settings.signals = self.signals.clone();
        settings
    }

    /// Has the standby apply what is committed from now on an hour late.
    ///
    /// Its startup process hears of a new setting some time after the reload has ended, and may apply a commit at once until then.
    pub(crate) fn shows_the_past(&self) {
        const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'RecoveryApplyDelay'";
        self.second.configure(&[("recovery_min_apply_delay", "1h")]).expect("lags");
        let give_up = Instant::now() + PATIENCE;
        while self.second.sql("postgres", WAITS).expect("answers") != "1" {
            assert!(Instant::now() < give_up, "the standby never waits before it applies a commit");
            self.first.sql("postgres", "SELECT pg_current_xact_id()").expect("commits");
        }
    }

    fn place(&self) -> &Path {
        self.folder.path()
    }

    /// A line of what the signals show.
    pub(crate) fn signal(&self, series: &str) -> u64 {
        let text = self.registry.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {series} in {text}"))
    }

    /// Who answered reads that a replica may answer.
    pub(crate) fn nearby(&self, answer: &str) -> u64 {
        self.signal(&format!("pim_data_nearby_reads_total{{answer=\"{answer}\"}}"))
    }
}

fn map(endpoints: &[&str]) -> ShardMap {
    let mut text = "format = 1\nkeyspace = \"pim\"\nversion = 1\n".to_owned();
    text.push_str("\n[[shards]]\nid = 0\nname = \"shard-0\"\nstate = \"live\"\n");
    for (index, name) in endpoints.iter().enumerate() {
        let role = if index == 0 { "primary" } else { "replica" };
        text.push_str(&format!("[[shards.endpoints]]\nid = \"{name}\"\nrole = \"{role}\"\ndsn_ref = \"{name}\"\n"));
    }
    text.push_str("\n[[ranges]]\nfirst = 0\nlast = 4095\nshard = 0\nepoch = 1\n");
    ShardMap::parse(&text).expect("a sound map")
}

/// A request that gives up after a while.
pub(crate) fn request(patience: Duration) -> RequestContext {
    let actor = Actor::new("u-1".parse().expect("a subject"), ShopRole::Owner);
    RequestContext::new(RequestId::mint(), actor, Deadline::after(patience))
}

/// A patient request whose outcome can be found out after a connection broke.
pub(crate) fn patient() -> RequestContext {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let key = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
    request(PATIENCE).with_idempotency(IdempotencyScope::new("u-1", "POST", "/accounts", &key, b"{}"))
}

pub(crate) async fn register(cluster: &Cluster) -> Account {
    let mut account = Account::new(Id::random());
    let mut unit = cluster.begin(&request(PATIENCE), account.id);
    account.version = unit.save(&write(ShopResource::Account), &account).expect("saves");
    tell(&mut unit, "registered");
    unit.commit().await.expect("commits");
    account
}

/// Sets an account's points, in as many runs as it takes.
pub(crate) async fn set(
    cluster: &Cluster,
    cx: &RequestContext,
    id: Id<Customer>,
    points: i64,
) -> Result<Option<Committed>, UnitError> {
    let mut tries = Tries::of(cluster, cx);
    loop {
        match try_set(cluster, cx, id, points).await {
            // It was committed by a run whose answer was lost.
            Err(UnitError::Replay(_)) => return Ok(None),
            Err(error) if tries.again(&error).await => {}
            outcome => return outcome.map(Some),
        }
    }
}

async fn try_set(
    cluster: &Cluster,
    cx: &RequestContext,
    id: Id<Customer>,
    points: i64,
) -> Result<Committed, UnitError> {
    let (mut unit, permit) = (cluster.begin(cx, id), write(ShopResource::Account));
    let mut account = unit.load::<Account>(&permit, id).await?.expect("is there");
    account.points = points;
    unit.save(&permit, &account)?;
    tell(&mut unit, "set");
    if cx.idempotency().is_some() {
        unit.answer(200, &serde_json::json!({"points": points}));
    }
    unit.commit().await
}

pub(crate) async fn points(cluster: &Cluster, id: Id<Customer>, consistency: &Consistency) -> Result<i64, ReadError> {
    let permit = read(ShopResource::Account);
    let row = cluster.read::<Account>(&request(PATIENCE), &permit, id, consistency).await?;
    Ok(row.map_or(-1, |account| account.points))
}

/// What a server itself says of an account.
pub(crate) fn points_on(server: &LocalServer, id: Id<Customer>) -> String {
    server.sql(DATABASE, &format!("SELECT points FROM account_row WHERE id = '{}'", id.uuid())).expect("answers")
}

pub(crate) async fn health(cluster: &Cluster) -> ShardHealth {
    cluster.health().await.into_iter().find(|health| health.shard == Some(ShardId(0))).expect("the shard")
}

/// Waits until one of the shard's servers is as expected.
pub(crate) async fn until(cluster: &Cluster, endpoint: &str, holds: impl Fn(&EndpointHealth) -> bool) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let found = health(cluster).await.endpoints;
        if found.iter().any(|it| it.id == endpoint && holds(it)) {
            return;
        }
        assert!(Instant::now() < give_up, "{endpoint} never came to be so: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As [`until`], by the shard.
pub(crate) async fn until_shard(cluster: &Cluster, holds: impl Fn(&ShardHealth) -> bool) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let found = health(cluster).await;
        if holds(&found) {
            return;
        }
        assert!(Instant::now() < give_up, "never came to be so: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
