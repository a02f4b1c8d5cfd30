//! Databases of one test on the server that all share, as the settings of the lab name them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::ShardMap;
use pim_data::backend::{Db, FileSecrets, ServerSettings, SqlPair, Statement};
use pim_lab::rig::PostgresSettings;
use pim_servers::shared::roles;

const PASSWORD: &str = "only-for-tests";
const OWNER: &str = "pim_test_lab_owner";
const APPLICATION: &str = "pim_test_lab_app";

/// Go with the value.
pub(crate) struct Databases {
    names: Vec<String>,
    folder: PathBuf,
    pub(crate) settings: PostgresSettings,
}

impl Databases {
    /// Makes them, with a map and secrets in a folder.
    pub(crate) fn new(folder: &Path, shards: u16) -> Self {
        let unique = folder.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        let secrets = folder.join("secrets");
        fs::create_dir_all(&secrets).expect("a folder");
        let map = ShardMap::even(shards).expect("a map").to_toml();
        let shard_map = folder.join("map-of-servers.toml");
        fs::write(&shard_map, map).expect("a file");
        let places = (0..shards).map(|shard| format!("shard-{shard}"));
        let mut names = Vec::new();
        for place in places.chain(["control".to_owned(), "read-store".to_owned()]) {
            let name = format!("{unique}_{}", place.replace('-', "_"));
            let keep = |end: &str, user| fs::write(secrets.join(format!("{place}{end}")), dsn(Some(user), &name));
            keep("", APPLICATION).and_then(|()| keep("-owner", OWNER)).expect("files");
            fs::write(folder.join(format!("{place}-super")), dsn(None, &name)).expect("a file");
            names.push(name);
        }
        let made = names.clone();
        on_server(move |db| async move {
            let mut tx = db.begin().await.expect("begins");
            tx.script(&roles(OWNER, APPLICATION, PASSWORD)).await.expect("makes roles");
            tx.commit().await.expect("commits");
            for name in made {
                outside(&db, format!("CREATE DATABASE \"{name}\" OWNER {OWNER}")).await;
            }
        });
        let settings = PostgresSettings {
            shard_map: Some(shard_map),
            secrets_dir: secrets,
            connections_max: 4,
            ..PostgresSettings::default()
        };
        Self { names, settings, folder: folder.to_owned() }
    }

    /// One of them, such as `shard-0`, for somebody whom nothing binds.
    pub(crate) async fn superuser(&self, place: &str) -> Db {
        let secrets = Arc::new(FileSecrets::in_folder(&self.folder));
        let settings = ServerSettings { transaction_max: Duration::from_secs(60), ..ServerSettings::default() };
        Db::connect(&format!("{place}-super"), secrets, settings).await.expect("connects")
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.names);
        on_server(move |db| async move {
            for name in names {
                outside(&db, format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await;
            }
        });
    }
}

/// The shared server's connection string with another user and database.
fn dsn(user: Option<&str>, database: &str) -> String {
    let server = pim_servers::shared::postgres().unwrap_or_else(|missing| panic!("{missing}"));
    server.dsn_of(user.map(|user| (user, PASSWORD)), database)
}

/// A statement that may not stand in a transaction.
async fn outside(db: &Db, text: String) {
    db.query(Statement::of(SqlPair::generated(text))).await.expect("runs");
}

/// Tests call this from inside and outside of a runtime, and when they drop things: it has a thread of its own.
fn on_server<F: Future<Output = ()>>(work: impl FnOnce(Db) -> F + Send + 'static) {
    let run = move || {
        let folder = pim_testkit::folder::Folder::new("super").expect("a folder");
        fs::write(folder.path().join("super"), dsn(None, "postgres")).expect("a file");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let secrets = Arc::new(FileSecrets::in_folder(folder.path()));
            let settings = ServerSettings { transaction_max: Duration::from_secs(60), ..ServerSettings::default() };
            work(Db::connect("super", secrets, settings).await.expect("the server answers")).await;
        });
    };
    std::thread::spawn(run).join().expect("the server did as told");
}
