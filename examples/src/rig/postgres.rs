//! Where rows are kept when not in files: servers of PostgreSQL, by a shard map and the names of secrets.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::{MapError, ShardMap};
use pim_data::backend::{FileSecrets, Secrets, ServerSettings};
use pim_data::cluster::Servers;
use serde::{Deserialize, Serialize};

/// Settings of the servers. No connection string stands here: they are secrets, one a file of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresSettings {
    /// The shard map of a new data directory, whose endpoints name secrets. Without it rows are kept in files of the data
    /// directory.
    pub shard_map: Option<PathBuf>,
    /// The folder of the secrets. A program that also finds `<name>-owner` brings the schema up to date and may publish maps.
    pub secrets_dir: PathBuf,
    /// Name of the control database's secret.
    pub control: String,
    /// Name of the read store's secret: a login that may make tables there.
    pub read_store: String,
    /// Most connections of this program to each database for what it is asked for: 2 to 200. Up to three more look after it.
    pub connections_max: usize,
    /// Most calls of this program at once that write units of one row to a database; what comes meanwhile shares the next one. Units of
    /// several rows go by themselves. 1 to 200, and never more than there are connections.
    pub writers_max: usize,
    /// How long a write waits for others to share a call with while a database is busy, in milliseconds: up to 1,000, 0 never waits.
    pub gather_max_ms: u64,
    /// Longest transaction and longest wait for a lock, in milliseconds: 100 to 60,000. A move's fence never waits longer for a writer.
    pub transaction_max_ms: u64,
    /// Longest call that has no deadline of a request, such as a chore's, in milliseconds: 100 to 600,000.
    pub call_max_ms: u64,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        let servers = ServerSettings::default();
        Self {
            shard_map: None,
            secrets_dir: PathBuf::from("secrets"),
            control: "control".to_owned(),
            read_store: "read-store-owner".to_owned(),
            connections_max: servers.connections_max,
            writers_max: servers.writers_max,
            gather_max_ms: millis(servers.gather_max),
            transaction_max_ms: millis(servers.transaction_max),
            call_max_ms: millis(servers.call_max),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Settings of servers that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// This program knows files alone.
    #[error(
        "`postgres.shard_map` is set, and this program was built without PostgreSQL: build it with \
         `cargo build -p pim-lab --examples --features postgres`, or take the setting away"
    )]
    NotBuilt,
    /// The map cannot be read.
    #[error("cannot read the shard map {}: check `postgres.shard_map`", path.display())]
    Unreadable {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The map has findings.
    #[error("the shard map {} cannot be used", path.display())]
    Map {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MapError,
    },
    /// A connection string stands where the name of a secret belongs; it is not repeated.
    #[error(
        "inline-secret at `postgres.{key}`: a connection string stands where the name of a secret belongs (keep it as a \
         file of `postgres.secrets_dir` and name that)"
    )]
    InlineSecret {
        /// Which setting.
        key: &'static str,
    },
    /// The secrets' folder is not there.
    #[error("the folder of secrets {} is not there: check `postgres.secrets_dir`", path.display())]
    NoSecrets {
        /// Where it should be.
        path: PathBuf,
    },
    /// A bound is broken.
    #[error("`postgres.{key}` is {found}, must be from {min} to {max}")]
    OutOfBounds {
        /// Which setting.
        key: &'static str,
        /// What was asked for.
        found: u64,
        /// The least that it can be.
        min: u64,
        /// The most that it can be.
        max: u64,
    },
}

/// As many as a server of a small machine takes from all programs together.
const CONNECTIONS_MAX: u64 = 200;
/// A write that waits longer than this for others has long been late for whoever asked for it.
const GATHER_MAX_MS: u64 = 1_000;
/// Shorter than this, a busy machine cancels what is healthy.
const CALL_MIN_MS: u64 = 100;
/// Whoever holds rows for longer stops everybody else.
const TRANSACTION_MAX_MS: u64 = 60_000;
/// A chore that takes longer than this is stuck.
const CALL_MAX_MS: u64 = 600_000;

/// What [`PostgresSettings`] lead to.
#[derive(Clone, Debug)]
pub struct ServerPlaces {
    /// The map of a new data directory.
    pub map: ShardMap,
    /// Shards and control database.
    pub servers: Servers,
    /// Name of the read store's secret.
    pub read_store: String,
}

impl PostgresSettings {
    /// Looks at everything that can be known without a server; nothing where rows are kept in files.
    ///
    /// # Errors
    /// [`PostgresError`] naming the setting and the fix.
    pub fn places(&self) -> Result<Option<ServerPlaces>, PostgresError> {
        for (key, name) in [("control", &self.control), ("read_store", &self.read_store)] {
            // What holds none of these is a name, if perhaps that of no secret.
            if name.is_empty() || name.contains(['/', ':', '=', '@', ' ']) {
                return Err(PostgresError::InlineSecret { key });
            }
        }
        let Some(path) = &self.shard_map else { return Ok(None) };
        if !cfg!(feature = "postgres") {
            return Err(PostgresError::NotBuilt);
        }
        let text =
            std::fs::read_to_string(path).map_err(|source| PostgresError::Unreadable { path: path.clone(), source })?;
        let map = ShardMap::parse(&text).map_err(|source| PostgresError::Map { path: path.clone(), source })?;
        if !self.secrets_dir.is_dir() {
            return Err(PostgresError::NoSecrets { path: self.secrets_dir.clone() });
        }
        let settings = self.bounded()?;
        let secrets: Arc<dyn Secrets> = Arc::new(FileSecrets::in_folder(&self.secrets_dir));
        let servers = Servers { control: self.control.clone(), settings, ..Servers::new(secrets) };
        Ok(Some(ServerPlaces { map, servers, read_store: self.read_store.clone() }))
    }

    fn bounded(&self) -> Result<ServerSettings, PostgresError> {
        let bounds = [
            ("connections_max", self.connections_max as u64, 2, CONNECTIONS_MAX),
            ("writers_max", self.writers_max as u64, 1, CONNECTIONS_MAX),
            ("gather_max_ms", self.gather_max_ms, 0, GATHER_MAX_MS),
            ("transaction_max_ms", self.transaction_max_ms, CALL_MIN_MS, TRANSACTION_MAX_MS),
            ("call_max_ms", self.call_max_ms, CALL_MIN_MS, CALL_MAX_MS),
        ];
        if let Some((key, found, min, max)) = bounds.into_iter().find(|(_, found, min, max)| found < min || found > max)
        {
            return Err(PostgresError::OutOfBounds { key, found, min, max });
        }
        Ok(ServerSettings {
            connections_max: self.connections_max,
            writers_max: self.writers_max,
            gather_max: Duration::from_millis(self.gather_max_ms),
            transaction_max: Duration::from_millis(self.transaction_max_ms),
            call_max: Duration::from_millis(self.call_max_ms),
            ..ServerSettings::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{PostgresError, PostgresSettings, ServerSettings};

    #[test]
    fn a_connection_string_among_the_settings_is_a_finding_that_does_not_repeat_it() {
        for inline in ["postgres://u:hunter2@h/db", "host=h password=hunter2", ""] {
            let settings = PostgresSettings { control: inline.to_owned(), ..PostgresSettings::default() };
            let refused = settings.places().expect_err("refused");
            assert!(matches!(refused, PostgresError::InlineSecret { key: "control" }));
            assert!(!refused.to_string().contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn without_a_map_rows_are_kept_in_files() {
        assert!(PostgresSettings::default().places().expect("sound").is_none());
    }

    #[test]
    fn a_bound_that_is_broken_is_named_with_what_it_may_be() {
        let few = PostgresSettings { connections_max: 1, ..PostgresSettings::default() };
        let none = PostgresSettings { writers_max: 0, ..PostgresSettings::default() };
        let long = PostgresSettings { gather_max_ms: 1_001, ..PostgresSettings::default() };
        let hasty = PostgresSettings { transaction_max_ms: 99, ..PostgresSettings::default() };
        let stuck = PostgresSettings { call_max_ms: 600_001, ..PostgresSettings::default() };
        for (settings, told) in [
            (few, "`postgres.connections_max` is 1, must be from 2 to 200"),
            (none, "`postgres.writers_max` is 0, must be from 1 to 200"),
            (long, "`postgres.gather_max_ms` is 1001, must be from 0 to 1000"),
            (hasty, "`postgres.transaction_max_ms` is 99, must be from 100 to 60000"),
            (stuck, "`postgres.call_max_ms` is 600001, must be from 100 to 600000"),
        ] {
            assert_eq!(settings.bounded().expect_err("refused").to_string(), told);
        }
        assert_eq!(PostgresSettings::default().bounded().expect("sound"), ServerSettings::default());
    }

    fn with_map(text: &str) -> PostgresError {
        let folder = std::env::temp_dir().join(format!("pim-lab-map-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("shard-map.toml");
        std::fs::write(&path, text).expect("a file");
        let settings = PostgresSettings {
            shard_map: Some(path),
            secrets_dir: folder.join("absent"),
            ..PostgresSettings::default()
        };
        let refused = settings.places().expect_err("refused");
        std::fs::remove_dir_all(&folder).expect("goes");
        refused
    }

    #[cfg(not(feature = "postgres"))]
    #[test]
    fn a_program_that_knows_files_alone_says_how_it_is_built_otherwise() {
        let refused = with_map("");
        assert!(matches!(refused, PostgresError::NotBuilt));
        assert!(refused.to_string().contains("--features postgres"), "{refused}");
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn a_connection_string_in_the_map_is_a_finding_that_does_not_repeat_it() {
        let map = pim_core::shard::ShardMap::even(1).expect("a map").to_toml();
        assert!(matches!(with_map(&map), PostgresError::NoSecrets { .. }));
        let inline = map.replace("dsn_ref = \"shard-0\"", "dsn_ref = \"postgres://u:hunter2@h/db\"");
        assert_ne!(inline, map);
        let refused = with_map(&inline);
        let said = format!("{:#}", anyhow::Error::from(refused));
        assert!(said.contains("inline-secret") && !said.contains("hunter2"), "{said}");
    }
}
