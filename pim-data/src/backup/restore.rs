//! Putting a backup into a new data directory and checking it there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pim_core::clock::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::archive::{BackupSummary, Entry, LAYOUT, Manifest, blocking, digest, io_error, sync_above, sync_folder};
use super::{BackupError, maps};
use crate::audit::{LaterCheckpoints, VerifyReport};
use crate::cluster::{Cluster, ClusterSettings, HALF_RESTORED};
use crate::schema::Schema;

/// A backup that was restored.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RestoreReport {
    /// From when the backup is.
    pub taken_at: Timestamp,
    /// Age of the backup, in milliseconds: what was acknowledged within it may be lost (RPO).
    pub recovery_point_ms: u64,
    /// How long restoring took until everything was checked, in milliseconds (RTO).
    pub recovery_time_ms: u64,
    /// The version of the map that raised every epoch.
    pub map_version: u64,
    /// What verifying the audit trail found.
    pub audit: VerifyReport,
    /// What became of the checkpoints that were signed after the backup.
    pub checkpoints: LaterCheckpoints,
}

/// Which state is restored, where that is another than the backup's own.
#[derive(Clone, Debug, Default)]
pub struct RestorePoint {
    /// Up to when the rows of servers have been recovered; none for as far as there was something.
    pub to: Option<Timestamp>,
    /// The data directory that was backed up, or a copy of it, for what it has that is newer than the backup. When none is
    /// named it is looked for where it was.
    pub origin: Option<PathBuf>,
}

/// Puts the backup in `from` into the data directory of `settings`, which must not be there yet or be empty; opens it, raises
/// the epoch of every bucket, verifies the audit trail, and signs that it was restored.
///
/// Maps that were published after the backup are taken over from `point.origin`, when the shards follow them.
///
/// Checkpoints that were signed after the backup are taken over from `point.origin`. Those that name records of behind the
/// restored state stay as well; the signed line of the restore gives them up, and from then on the trail verifies without
/// these records, and without no others.
///
/// Nobody else opens the directory before [`Restoration::finish`], also when this process is killed on the way.
///
/// # Errors
/// [`BackupError`]; nothing is left of the directory then. Servers may have finished a publication and have had their epochs raised;
/// another restore over them goes on from there, also when this process is killed or the [`Restoration`] is dropped.
pub async fn restore(
    from: &Path,
    point: &RestorePoint,
    settings: ClusterSettings,
    schema: Schema,
) -> Result<Restoration, BackupError> {
    let begun = Instant::now();
    let (from, into) = (from.to_path_buf(), settings.data_dir.clone());
    let age_at = settings.clock.now();
    let (manifest, pending) = blocking(move || put_back(&from, &into)).await?;
    let origin = point.origin.as_ref().map(|named| (named.as_path(), true));
    let origin = origin.or(manifest.data_dir.as_deref().map(|guessed| (guessed, false)));
    let cluster = crate::cluster::open_as_it_is(settings, schema).await?;
    maps::catch_up(&cluster, origin.map(|it| it.0)).await?;
    crate::fence::finish_interrupted(&cluster).await?;
    // Before the epochs are raised: another place that somebody names by mistake leaves servers as they were.
    let later = match origin {
        Some(origin) => cluster.adopt_checkpoints(origin, point.to).await?,
        None => crate::audit::Later::default(),
    };
    // Before the trail is read through, which takes its time: whoever holds an old map is shut out meanwhile.
    let next = cluster.map().fenced().map_err(crate::fence::PublishError::Map)?;
    cluster.publish_map(&next).await?;
    let audit = cluster.verify_audit().await?;
    let mut checkpoints = LaterCheckpoints::default();
    if audit.verified {
        checkpoints = cluster.sign_restore(later, point.to).await?;
    }
    let taken_at = Timestamp::from_micros(manifest.taken_at);
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let report = RestoreReport {
        taken_at,
        recovery_point_ms: millis(age_at.since(taken_at)),
        recovery_time_ms: millis(begun.elapsed()),
        map_version: next.version().0,
        audit,
        checkpoints,
    };
    Ok(Restoration { cluster, report, pending })
}

/// Whether every file of a backup is the one that was backed up.
///
/// # Errors
/// [`BackupError::Absent`] when there is no whole backup, [`BackupError::Damaged`] naming the first file that is another.
pub async fn check(folder: &Path) -> Result<BackupSummary, BackupError> {
    let folder = folder.to_path_buf();
    blocking(move || {
        let manifest = Manifest::of(&folder)?;
        check_files(&folder, &manifest)?;
        Ok(manifest.summary())
    })
    .await
}

fn check_files(from: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    for entry in &manifest.files {
        let path = from.join(&entry.path);
        let is_same = digest(&path).is_ok_and(|(bytes, sha256)| (bytes, &sha256) == (entry.bytes, &entry.sha256));
        if !is_same {
            return Err(BackupError::Damaged { path });
        }
    }
    Ok(())
}

/// A directory whose rows are restored, and which is kept shut until whoever restores has put the rest right too.
///
/// Dropping it removes the directory; the epochs of servers stay raised, and another restore over them goes on from there.
#[derive(Debug)]
#[must_use = "dropping it removes what was restored"]
pub struct Restoration {
    /// What was restored.
    pub cluster: Cluster,
    /// What it came to.
    pub report: RestoreReport,
    pending: Pending,
}

impl Restoration {
    /// Lets everybody open the directory, whether or not the trail verified: look at [`RestoreReport::audit`] first.
    ///
    /// # Errors
    /// [`BackupError::Io`]; nothing is left of it then.
    pub fn finish(self) -> Result<(Cluster, RestoreReport), BackupError> {
        let Self { cluster, report, pending } = self;
        pending.finish()?;
        Ok((cluster, report))
    }
}

/// What has been put into a directory so far. It goes, unless the restore comes to its end.
#[derive(Debug)]
struct Pending(PathBuf);

impl Pending {
    fn in_folder(folder: &Path) -> Result<Self, BackupError> {
        let pending = Self(folder.to_path_buf());
        fs::create_dir_all(folder).map_err(io_error("make", folder))?;
        let marker = folder.join(HALF_RESTORED);
        File::create(&marker).and_then(|file| file.sync_all()).map_err(io_error("make", &marker))?;
        sync_folder(folder)?;
        sync_above(folder)?;
        Ok(pending)
    }

    fn finish(self) -> Result<(), BackupError> {
        let marker = self.0.join(HALF_RESTORED);
        fs::remove_file(&marker).map_err(io_error("remove", &marker))?;
        sync_folder(&self.0)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // What was mounted there stays, and is empty again.
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

fn put_back(from: &Path, into: &Path) -> Result<(Manifest, Pending), BackupError> {
    let manifest = Manifest::of(from)?;
    // An empty folder may be what somebody has mounted for it.
    if into.exists() && !fs::read_dir(into).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(BackupError::Taken { path: into.to_path_buf() });
    }
    // All of them before the first is put anywhere.
    check_files(from, &manifest)?;
    let pending = Pending::in_folder(into)?;
    let is_layout = |entry: &&Entry| entry.path == LAYOUT;
    let (last, first): (Vec<_>, Vec<_>) = manifest.files.iter().partition(is_layout);
    let mut folders = BTreeSet::from([into.to_path_buf()]);
    for entry in first {
        folders.extend(put_file(from, into, entry)?);
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))?;
    for entry in last {
        put_file(from, into, entry)?;
    }
    sync_folder(into)?;
    Ok((manifest, pending))
}

/// Puts a file where it belongs: the folders that have other names now.
fn put_file(from: &Path, into: &Path, entry: &Entry) -> Result<Vec<PathBuf>, BackupError> {
    let target = into.join(&entry.path);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(io_error("make", folder))?;
    }
    fs::copy(from.join(&entry.path), &target).map_err(io_error("copy", &target))?;
    File::open(&target).and_then(|file| file.sync_all()).map_err(io_error("sync", &target))?;
    let below = target.ancestors().skip(1).take_while(|folder| folder.starts_with(into));
    Ok(below.map(Path::to_path_buf).collect())
}
