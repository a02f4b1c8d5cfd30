//! A primary that is lost takes transaction ids along; its successor gives them out again, and a relay sends what they wrote.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::ShardMap;
use pim_data::backend::{SecretError, Secrets, ServerSettings};
use pim_data::cluster::{ClusterSettings, Servers};
use pim_events::{Relay, RelaySettings, Source};
use pim_servers::local::LocalServer;
use pim_servers::temporary::TemporaryServers;
use uuid::Uuid;

use super::rig::{Folder, Rig, Running, eventually, patient, relay_settings};
use super::windows_skip_nobody::{first_event, sent};

const DATABASE: &str = "shard-0";
const ROLES: &str = "CREATE ROLE pim_app NOLOGIN;
CREATE ROLE pim_test_owner LOGIN CREATEROLE PASSWORD 'only-for-tests';
CREATE ROLE pim_test_app LOGIN PASSWORD 'only-for-tests' IN ROLE pim_app";
const MAP: &str = r#"format = 1
keyspace = "pim"
version = 1
shards = [{ id = 0, name = "shard-0", state = "live", endpoints = [
    { id = "a", role = "primary", dsn_ref = "a" }, { id = "b", role = "replica", dsn_ref = "b" }] }]
ranges = [{ first = 0, last = 4095, shard = 0, epoch = 1 }]
"#;
/// Transactions that take ids and leave nothing.
const ABORTS: &str = "DO $$ BEGIN FOR i IN 1..500 LOOP PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END $$";

/// Of the shard's servers, and else of the shared one.
#[derive(Debug)]
struct Told(BTreeMap<String, String>, crate::server::TestSecrets);

impl Secrets for Told {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        self.0.get(name).map_or_else(|| self.1.secret(name), |dsn| Ok(dsn.clone()))
    }
}

/// A shard's primary, and the standby that its commits wait for.
struct Pair {
    first: LocalServer,
    second: LocalServer,
    _servers: TemporaryServers,
}

impl Pair {
    fn start() -> Self {
        let servers = TemporaryServers::new().unwrap();
        let first = servers.primary("first").unwrap();
        first.sql("postgres", ROLES).unwrap();
        first.sql("postgres", &format!("CREATE DATABASE \"{DATABASE}\" OWNER pim_test_owner")).unwrap();
        let second = servers.standby(&first, "second").unwrap();
        first.require_synchronous("second").unwrap();
        Self { first, second, _servers: servers }
    }

    fn settings(&self, folder: &Path) -> ClusterSettings {
        crate::server::make(folder, "servers", ["control".to_owned()]);
        let mut told = BTreeMap::new();
        for (name, server) in [("a", &self.first), ("b", &self.second)] {
            for (name, user) in [(name.to_owned(), "pim_test_app"), (format!("{name}-owner"), "pim_test_owner")] {
                told.insert(name, server.dsn_of(user, "only-for-tests", DATABASE));
            }
        }
        let mut servers = Servers::new(Arc::new(Told(told, crate::server::secrets(folder))));
        servers.settings = ServerSettings {
            connect_timeout: Duration::from_secs(2),
            call_max: Duration::from_secs(3),
            probe_every: Duration::from_millis(100),
            ..ServerSettings::default()
        };
        let map = ShardMap::parse(MAP).unwrap();
        ClusterSettings::at(folder.join("cluster")).with_map(map).with_servers(servers)
    }
}

/// Guard: no snapshot outlives the era that it is of (`Windows::next`, `window::SAVE`, `1031_outbox_era.sql`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn whose_primary_took_ids_that_its_standby_never_heard_of() {
    let (folder, pair) = (Folder::new(), Pair::start());
    let rig = Rig::over(folder.path(), pair.settings(folder.path())).await;
    // It writes its cursor when it has to, and not while nobody confirms that. Nor does it wait for its own lease, which it may not
    // have been able to give back.
    let settings = RelaySettings { lease_ms: 600_000, ..relay_settings() };
    let _relay = Running::relay(Relay::new(Source::all(&rig.cluster), &rig.publisher(), &settings).unwrap());
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    eventually("the first is sent", || async { sent(&rig).await == 1 }).await;
    let saved = "SELECT bool_and(pg_visible_in_snapshot((SELECT max(xid) FROM outbox_event), low)) FROM outbox_cursor";
    eventually("and that is written", || async { pair.first.sql(DATABASE, saved).unwrap() == "t" }).await;

    pair.second.kill().unwrap();
    pair.first.sql(DATABASE, ABORTS).unwrap();
    let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
    let taken: u64 = pair.first.sql(DATABASE, next).unwrap().parse().unwrap();
    // The relay looks every 20 ms.
    tokio::time::sleep(Duration::from_millis(500)).await;
    pair.first.freeze().unwrap();
    pair.second.start().unwrap();
    let (context, event) = first_event(patient());
    let append =
        format!("SELECT pim_outbox_append(jsonb_populate_record(NULL::pim_context, '{context}'), '{event}', 1)");
    pair.second.promote().unwrap();
    // Somebody who is quicker than the relay: what is written after its first look at the successor could not be missed.
    pair.second.sql(DATABASE, &append).unwrap();
    let again: u64 = pair.second.sql(DATABASE, next).unwrap().parse().unwrap();
    assert!(again + 400 < taken, "{again} is given out again, and {taken} was next before");
    eventually("it is followed", || async {
        let health = rig.cluster.health().await;
        health[0].primary == Some(pim_data::cluster::PrimaryState::Ready) && health[0].term == Some(2)
    })
    .await;
    for step in 2..=5 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    eventually("all are sent", || async { sent(&rig).await == 6 }).await;
}
