//! Databases on the server that the tests of this process share, each test its own, with an owner and an application role.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_data::backend::{Db, DbError, SecretError, Secrets, ServerSettings};
use pim_data::cluster::Servers;
use pim_servers::shared::roles;

const PASSWORD: &str = "only-for-tests";
const OWNER: &str = "pim_test_owner";
const APPLICATION: &str = "pim_test_app";

/// The connection strings of one test's databases: `shard-0`, `shard-0-owner`, `shard-0-super`, `control` …
#[derive(Clone)]
pub(crate) struct TestSecrets {
    prefix: String,
}

impl fmt::Debug for TestSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestSecrets")
    }
}

impl Secrets for TestSecrets {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        // `green.shard-0` is the same place, and whoever looks on can tell the connections apart.
        let (mark, name) = name.split_once('.').unwrap_or(("", name));
        let (name, user) = match name.rsplit_once('-') {
            Some((name, "owner")) => (name, Some(OWNER)),
            Some((name, "super")) => (name, None),
            _ => (name, Some(APPLICATION)),
        };
        let database = if name == "server" { "postgres".to_owned() } else { format!("{}_{name}", self.prefix) };
        let dsn = dsn(user, &database);
        Ok(if mark.is_empty() { dsn } else { format!("{dsn}?application_name={mark}") })
    }
}

/// `postgres://user:password@host:port/database`, the parts that matter replaced.
pub(crate) fn dsn(user: Option<&str>, database: &str) -> String {
    let server = pim_servers::shared::postgres().unwrap_or_else(|missing| panic!("{missing}"));
    server.dsn_of(user.map(|user| (user, PASSWORD)), database)
}

pub(crate) fn secrets(folder: &Path) -> TestSecrets {
    let unique = folder.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
    TestSecrets { prefix: unique }
}

/// Makes the databases of a folder's shards, unless it has them.
pub(crate) fn provide(folder: &Path, shards: u16) -> Servers {
    let names = (0..shards).map(|number| format!("shard-{number}")).chain(["control".to_owned()]);
    make(folder, "servers", names);
    let mut servers = Servers::new(Arc::new(secrets(folder)));
    servers.settings = ServerSettings { connections_max: 6, ..ServerSettings::default() };
    servers
}

/// Makes databases for a folder; a file of it remembers under `marker` that they are there.
pub(crate) fn make(folder: &Path, marker: &str, names: impl IntoIterator<Item = String>) {
    let (prefix, marker) = (secrets(folder).prefix, folder.join(marker));
    if marker.exists() {
        return;
    }
    let names: Vec<_> = names.into_iter().map(|name| format!("{prefix}_{name}")).collect();
    on_server(move |db| async move {
        let mut reader = db.begin().await.expect("begins");
        reader.script(&roles(OWNER, APPLICATION, PASSWORD)).await.expect("makes roles");
        reader.commit().await.expect("commits");
        for name in names {
            outside(&db, &format!("CREATE DATABASE \"{name}\" OWNER {OWNER}")).await;
        }
    });
    std::fs::write(marker, "").expect("writes");
}

/// Makes one more database for a folder.
pub(crate) fn add(folder: &Path, name: &str) {
    make(folder, &format!("server-{name}"), [name.to_owned()]);
}

/// Drops the databases of a folder.
pub(crate) fn forget(folder: &Path) {
    let prefix = secrets(folder).prefix;
    on_server(move |db| async move {
        let like =
            pim_data::backend::Statement::same("SELECT datname::text FROM pg_database WHERE starts_with(datname, ?)");
        for row in db.query(like.bind(prefix)).await.expect("lists") {
            let name = row.text(0).expect("a name");
            let remove = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
            let give_up = Instant::now() + Duration::from_secs(60);
            // Whoever is at a slow disk does not leave at once.
            while let Err(error) = try_outside(&db, &remove).await {
                assert!(Instant::now() < give_up, "{name} stays: {error}");
            }
        }
    });
}

/// Somebody whom nothing binds.
pub(crate) async fn superuser(folder: &Path, shard: u16) -> Db {
    let settings = ServerSettings { transaction_max: Duration::from_secs(30), ..ServerSettings::default() };
    Db::connect(&format!("shard-{shard}-super"), Arc::new(secrets(folder)), settings).await.expect("connects")
}

/// A statement that may not stand in a transaction.
async fn outside(db: &Db, text: &str) {
    try_outside(db, text).await.expect("runs");
}

async fn try_outside(db: &Db, text: &str) -> Result<(), DbError> {
    let statement = pim_data::backend::SqlPair::generated(text.to_owned());
    db.query(pim_data::backend::Statement::of(statement)).await.map(drop)
}

/// Tests call this from inside and outside of a runtime, and when they drop things: it has a thread of its own.
fn on_server<F: Future<Output = ()>>(work: impl FnOnce(Db) -> F + Send + 'static) {
    let run = move || {
        // A server that has to be started first takes longer than a connection may.
        let _started = dsn(None, "postgres");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let secrets = Arc::new(TestSecrets { prefix: String::new() });
            // To make databases is nobody's promise: it may take as long as a machine needs that stood still meanwhile.
            let long = Duration::from_secs(120);
            let settings = ServerSettings { transaction_max: long, call_max: long, ..ServerSettings::default() };
            work(Db::connect("server-super", secrets, settings).await.expect("the server answers")).await;
        });
    };
    std::thread::spawn(run).join().expect("the server did as told");
}
