//! Putting a backup into a new data directory: verified, with risen epochs and rebased outboxes.

use std::path::Path;

use pim_core::clock::{Clock, Timestamp};
use pim_data::backup::{BackupError, RestorePoint, RestoreReport};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_events::{BusError, BusSettings, EmbeddedBus, Origin, OutboxError, ReadStore, Source, StoreError};
use serde::Serialize;

use crate::rig::{PostgresError, PostgresSettings, ServerPlaces};
use crate::schema;

/// A backup that was restored.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// What pim-data says of it.
    #[serde(flatten)]
    pub report: RestoreReport,
    /// Outboxes whose relay begins with the oldest event that they have.
    pub outboxes_rebased: usize,
    /// Positions of consumers that were behind the end of the log, and are at its end now.
    pub positions_rebased: u64,
}

/// A backup that was not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The backup, or the new directory.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// An outbox.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The settings of the servers.
    #[error(transparent)]
    Servers(#[from] PostgresError),
    /// The log.
    #[error("the restored log cannot be opened")]
    Bus(#[from] BusError),
    /// The read models.
    #[error(transparent)]
    Reads(#[from] StoreError),
    /// The lab's own schema.
    #[error("the schema of the lab cannot be built")]
    Schema(#[source] anyhow::Error),
    /// The log in the backup is too old for that instant.
    #[error(
        "the log of events in the backup is of {taken_at}, and the outbox of {origin} does not have any more what was written \
         since: it has removed events of up to {pruned_until}; take a newer backup, or an earlier instant"
    )]
    Horizon {
        /// Which outbox.
        origin: Origin,
        /// From when the log is.
        taken_at: Timestamp,
        /// When the youngest event was written that has gone.
        pruned_until: Timestamp,
    },
    /// The audit trail of the restored directory has findings; it is left for looking into.
    #[error("the audit trail of the restored directory does not verify: {findings} findings")]
    Audit {
        /// How many.
        findings: usize,
    },
}

/// Puts the backup `from` into the data directory `into`, which must not be there yet. Rows that are on servers have been
/// restored there before.
///
/// # Errors
/// [`RestoreError`]; nothing is left of it then, but for [`RestoreError::Audit`].
pub async fn restore(
    from: &Path,
    point: &RestorePoint,
    into: &Path,
    postgres: &PostgresSettings,
) -> Result<Restored, RestoreError> {
    let servers = postgres.places()?;
    let registry = schema::registry().map_err(|error| RestoreError::Schema(error.into()))?;
    let schema = schema::schema(&registry).map_err(|error| RestoreError::Schema(error.into()))?;
    let mut settings = ClusterSettings::at(into);
    settings.servers = servers.as_ref().map(|it| it.servers.clone());
    let clock = settings.clock.clone();
    let restoration = pim_data::backup::restore(from, point, settings, schema).await?;
    let rebased = rebase(into, &restoration.cluster, &restoration.report, servers, clock).await;
    // Until everything agrees nobody can take it for a restored one.
    let (outboxes_rebased, positions_rebased) = rebased?;
    let (cluster, report) = restoration.finish()?;
    drop(cluster);
    if !report.audit.verified {
        return Err(RestoreError::Audit { findings: report.audit.findings.len() });
    }
    Ok(Restored { report, outboxes_rebased, positions_rebased })
}

/// Makes outboxes and consumers agree with the log in the backup: how many outboxes, and how many positions.
async fn rebase(
    into: &Path,
    cluster: &Cluster,
    report: &RestoreReport,
    servers: Option<ServerPlaces>,
    clock: Clock,
) -> Result<(usize, u64), RestoreError> {
    let sources = Source::all(cluster);
    for source in &sources {
        if let Some(pruned_until) = source.pruned_until().await?.filter(|it| *it >= report.taken_at) {
            return Err(RestoreError::Horizon { origin: source.origin, taken_at: report.taken_at, pruned_until });
        }
    }
    let bus = EmbeddedBus::open(&into.join("bus.db"), BusSettings::default(), clock.clone()).await?;
    let reads = match servers {
        Some(ServerPlaces { servers, read_store, .. }) => {
            ReadStore::connect(&read_store, servers.secrets, servers.settings, clock).await?
        }
        None => ReadStore::open(&into.join("read.db"), clock).await?,
    };
    let positions_rebased = reads.rebase(&bus).await?;
    for source in &sources {
        source.rebase().await?;
    }
    Ok((sources.len(), positions_rebased))
}
