//! Where the new tables are filled: a file of their own, or on a server a schema of their own beside the live one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pim_data::backend::{Db, SecretError, Secrets, ServerSettings};

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
            let file = folder.join(format!("rebuild-{name}.db"));
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
        let schema = format!("rebuild_{name}");
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
