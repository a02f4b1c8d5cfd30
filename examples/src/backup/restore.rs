//! Putting a backup into a new data directory: verified, with risen epochs and rebased outboxes.

use std::path::Path;

use pim_data::backup::{BackupError, RestoreReport};
use pim_data::cluster::ClusterSettings;
use pim_events::{OutboxError, Source};
use serde::Serialize;

use crate::schema;

/// A backup that was restored.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// What pim-data says of it.
    #[serde(flatten)]
    pub report: RestoreReport,
    /// Outboxes whose relay begins with the oldest event that they have.
    pub outboxes_rebased: usize,
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
    /// The lab's own schema.
    #[error("the schema of the lab cannot be built")]
    Schema(#[source] anyhow::Error),
    /// The audit trail of the restored directory has findings; it is left for looking into.
    #[error("the audit trail of the restored directory does not verify: {findings} findings")]
    Audit {
        /// How many.
        findings: usize,
    },
}

/// Puts the backup `from` into the data directory `into`, which must not be there yet.
///
/// # Errors
/// [`RestoreError`]; a directory that was not finished is not opened by anybody.
pub async fn restore(from: &Path, into: &Path) -> Result<Restored, RestoreError> {
    let registry = schema::registry().map_err(|error| RestoreError::Schema(error.into()))?;
    let schema = schema::schema(&registry).map_err(|error| RestoreError::Schema(error.into()))?;
    let (cluster, report) = pim_data::backup::restore(from, ClusterSettings::at(into), schema).await?;
    let sources = Source::all(&cluster);
    for source in &sources {
        source.rebase().await?;
    }
    if !report.audit.verified {
        return Err(RestoreError::Audit { findings: report.audit.findings.len() });
    }
    Ok(Restored { report, outboxes_rebased: sources.len() })
}
