//! Backups of the lab's data directory: taken while it serves, and put into a new one.

mod http;
mod restore;

pub(crate) use http::endpoints;
pub use restore::{RestoreError, Restored, restore};

use std::path::{Path, PathBuf};

use pim_data::backup::{BackupError, BackupReport, BackupSummary, Companion, summary_of};
use serde::Serialize;

use crate::broker::PERSONAS;
use crate::workers::Stores;

/// Most backups that are listed.
const LISTED_MAX: usize = 1_000;
const NAME_LEN_MAX: usize = 64;

/// Where the backups of a data directory are: beside it, because whoever removes the one should not lose the other.
#[must_use]
pub fn folder_of(data_dir: &Path) -> PathBuf {
    let name = data_dir.file_name().unwrap_or_default().to_string_lossy();
    data_dir.with_file_name(format!("{name}-backups"))
}

/// Whether a text may name a backup: small letters, digits, `-`, `_` and `.`, and no hidden file.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=NAME_LEN_MAX).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

/// Copies everything into a new folder of this name while requests go on: read models and log before the shards that fill
/// them. With `files_only` without the databases that are on servers, for whoever takes base backups of these afterwards.
///
/// # Errors
/// [`BackupError`]; what is there then is no backup.
pub async fn take(stores: &Stores, name: &str, files_only: bool) -> Result<(PathBuf, BackupReport), BackupError> {
    let place = folder_of(stores.cluster.data_dir()).join(name);
    let reads = Companion::Database("read.db", stores.reads.db());
    let mut companions = vec![
        Companion::Database("bus.db", stores.bus.db()),
        Companion::Folder("bus.archive"),
        Companion::File(PERSONAS),
    ];
    let is_on_server = stores.reads.db().path().is_none();
    if !(files_only && is_on_server) {
        companions.insert(0, reads);
    }
    let cluster = &stores.cluster;
    let report = match files_only {
        true => cluster.back_up_files(&place, &companions).await?,
        false => cluster.back_up(&place, &companions).await?,
    };
    Ok((place, report))
}

/// A backup that there is.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: PathBuf,
    /// What it is made of.
    #[serde(flatten)]
    pub summary: BackupSummary,
}

/// The backups of a data directory, the oldest first; folders that are none are passed over.
#[must_use]
pub fn list(data_dir: &Path) -> Vec<Listed> {
    let Ok(entries) = std::fs::read_dir(folder_of(data_dir)) else { return Vec::new() };
    let mut found: Vec<Listed> = entries
        .flatten()
        .filter_map(|entry| {
            let (name, place) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let summary = summary_of(&place).ok()?;
            Some(Listed { name, place, summary })
        })
        .take(LISTED_MAX)
        .collect();
    found.sort_by_key(|backup| (backup.summary.taken_at, backup.name.clone()));
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{folder_of, is_name};

    #[test]
    fn a_name_leads_nowhere_else() {
        assert!(is_name("before-the-drill_2.1") && is_name("20260302t090000z"));
        for name in ["", ".", "..", ".hidden", "a/b", "a\\b", "A", "ä", "a b", &"a".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn backups_lie_beside_what_they_are_of() {
        assert_eq!(folder_of(Path::new("target/pim-data")), Path::new("target/pim-data-backups"));
    }
}
