//! Where the new tables are filled: a file of their own, or on a server a schema of their own beside the live one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pim_data::backend::{Db, SecretError, Secrets, ServerSettings};
use sha2::{Digest as _, Sha256};

use super::RebuildError;
use crate::consumer::Superseded;
use crate::projection::ReadStore;
use crate::projection::store::Server;

/// Longest statement and longest transaction of a rebuild on a server: the swap copies whole tables.
const CALL_MAX: Duration = Duration::from_secs(10 * 60);
/// Connections of a rebuild; its partitions share them.
const CONNECTIONS_MAX: usize = 4;

pub(super) struct Green {
    pub(super) store: ReadStore,
    /// The live store, with the patience that a swap needs.
    pub(super) live: Db,
    /// Events of the log that are passed over.
    pub(super) superseded: Arc<Superseded>,
    place: Place,
}

enum Place {
    File(PathBuf),
    Schema(String),
}

impl Green {
    /// Makes an empty store; what an earlier rebuild has left behind goes.
    pub(super) async fn open(live: &ReadStore, name: &str, folder: &Path) -> Result<Self, RebuildError> {
        let clock = live.clock().clone();
        let Some(server) = &live.server else {
            let file = folder.join(format!("rebuild-{}.db", plain(name)));
            remove(&file).map_err(RebuildError::Folder)?;
            let store = ReadStore::open(&file, clock).await?;
            let (live, place) = (live.db().clone(), Place::File(file));
            return Ok(Self { store, live, superseded: Arc::default(), place });
        };
        let settings = ServerSettings {
            connections_max: CONNECTIONS_MAX,
            transaction_max: CALL_MAX,
            call_max: CALL_MAX,
            ..server.settings
        };
        let patient = Server { settings, ..server.clone() };
        let live = patient.connect().await?;
        let schema = format!("rebuild_{}", plain(name));
        script(&live, &format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")).await?;
        let secrets = Arc::new(InSchema { secrets: Arc::clone(&server.secrets), schema: schema.clone() });
        let store = ReadStore::open_on(Server { secrets, ..patient }, clock).await?;
        Ok(Self { store, live, superseded: Arc::default(), place: Place::Schema(schema) })
    }

    /// The schema of the new tables, where they are in the live database.
    pub(super) fn schema(&self) -> Option<&str> {
        match &self.place {
            Place::File(_) => None,
            Place::Schema(schema) => Some(schema),
        }
    }

    /// Removes it. What is left behind is removed before the next rebuild as well.
    pub(super) async fn remove(self) {
        let Self { store, live, place, .. } = self;
        drop(store);
        match place {
            Place::File(file) => drop(remove(&file)),
            Place::Schema(schema) => drop(script(&live, &format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).await),
        }
    }
}

/// Longest name that leaves room for the `rebuild_` of a schema; a server cuts what is longer.
const PLAIN_MAX: usize = 55;

/// A name for places of a read model's: its own, or where that would be read in another way, or cut, by a server, a connection
/// string or a file system, its digest.
pub(super) fn plain(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.len() <= PLAIN_MAX && name.bytes().all(is_plain) {
        return name.to_owned();
    }
    Sha256::digest(name).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

async fn script(db: &Db, text: &str) -> Result<(), RebuildError> {
    let mut tx = db.begin().await?;
    tx.script(text).await?;
    Ok(tx.commit().await?)
}

/// Connection strings that lead into one schema.
#[derive(Debug)]
struct InSchema {
    secrets: Arc<dyn Secrets>,
    schema: String,
}

impl Secrets for InSchema {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let whole = self.secrets.secret(name)?;
        let joint = if whole.contains('?') { '&' } else { '?' };
        Ok(format!("{whole}{joint}options[search_path]={}", self.schema))
    }
}

fn remove(file: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_server_would_take_for_one_are_told_apart() {
        let long = "a".repeat(PLAIN_MAX);
        assert_eq!((plain("claims_by_day"), plain(&long)), ("claims_by_day".to_owned(), long.clone()));
        let names = ["a-b", "a_b", "A_B", "a/b", "a\"b", &format!("{long}b"), &format!("{long}c")];
        let mut all: Vec<String> = names.iter().map(|name| plain(name)).collect();
        assert!(all.iter().all(|name| name.len() <= PLAIN_MAX && plain(name) == *name), "{all:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), names.len());
    }
}
