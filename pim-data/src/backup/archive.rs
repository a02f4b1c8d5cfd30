//! Making a backup: databases first, in the order that keeps consumers behind their sources, the manifest last.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::shard::{ShardId, ShardMap};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::BackupError;
use crate::audit::hex;
use crate::backend::{Db, DbError, Statement};
use crate::cluster::{CONTROL, Cluster, is_asked_for};

const MANIFEST: &str = "backup.toml";
pub(super) const LAYOUT: &str = "layout.toml";
const FORMAT: u32 = 1;
/// Files of the data directory that are no databases; the layout comes last where they are put back.
const FILES: [&str; 2] = ["shard-map.toml", LAYOUT];
const FOLDERS: [&str; 2] = ["maps", "keys"];
const CHECKPOINTS: &str = "audit-checkpoints.jsonl";

/// Something beside the shards that is backed up with them, in the order given and before them.
#[derive(Clone, Copy, Debug)]
pub enum Companion<'a> {
    /// A database, under the name of its file in the data directory.
    Database(&'a str, &'a Db),
    /// A folder of the data directory whose files are only added; one that is not there is left out.
    Folder(&'a str),
    /// A file of the data directory that is replaced as a whole; one that is not there is left out.
    File(&'a str),
}

/// What a backup is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) taken_at: i64,
    /// Where the data directory was; not told by backups of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data_dir: Option<PathBuf>,
    pub(super) files: Vec<Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A backup that there is.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupSummary {
    /// From when its oldest part is; whatever was acknowledged before is in it.
    pub taken_at: Timestamp,
    /// How many files it has.
    pub files: usize,
    /// How large it is.
    pub bytes: u64,
}

/// What a backup says of itself; whether its files are still what they were is for [`check`](super::check) to find out.
///
/// # Errors
/// [`BackupError::Absent`] when the folder is no whole backup.
pub fn summary_of(folder: &Path) -> Result<BackupSummary, BackupError> {
    Manifest::of(folder).map(|manifest| manifest.summary())
}

impl Manifest {
    pub(super) fn of(folder: &Path) -> Result<Self, BackupError> {
        let absent = || BackupError::Absent { path: folder.to_path_buf() };
        let text = fs::read_to_string(folder.join(MANIFEST)).map_err(|_| absent())?;
        toml::from_str(&text).ok().filter(|manifest: &Self| manifest.format == FORMAT).ok_or_else(absent)
    }

    pub(super) fn summary(&self) -> BackupSummary {
        let bytes = self.files.iter().map(|it| it.bytes).sum();
        BackupSummary { taken_at: Timestamp::from_micros(self.taken_at), files: self.files.len(), bytes }
    }
}

/// A backup that was made.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// From when its oldest part is; whatever was acknowledged before is in it.
    pub taken_at: Timestamp,
    /// How many files it has.
    pub files: usize,
    /// How large it is.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl Cluster {
    /// Signs where the audit trail stands, and copies everything in the data directory into a new folder while units go on.
    /// Embedded engine alone.
    ///
    /// The folder then also has the key that signs checkpoints: whoever reads it may sign.
    ///
    /// # Errors
    /// [`BackupError`]; nothing is left of it then.
    pub async fn back_up(&self, into: &Path, companions: &[Companion<'_>]) -> Result<BackupReport, BackupError> {
        self.is_embedded(companions)?;
        self.back_up_files(into, companions).await
    }

    /// As [`Cluster::back_up`], without the databases that are on servers: those have base backups of their own, which are to
    /// be taken after this, so that nothing here is ahead of them.
    ///
    /// # Errors
    /// [`BackupError`]; nothing is left of it then.
    pub async fn back_up_files(&self, into: &Path, companions: &[Companion<'_>]) -> Result<BackupReport, BackupError> {
        if into.exists() {
            return Err(BackupError::Taken { path: into.to_path_buf() });
        }
        // Of two copies neither might have the rows of a bucket that moves in between.
        let _standing = self.0.directory.moving()?.ok_or(BackupError::Moving)?;
        let copied = self.copy_all(into, companions).await;
        if copied.is_err() {
            // It would keep the disk full, and the name taken.
            let _nothing_was_made = fs::remove_dir_all(into);
        }
        copied
    }

    async fn copy_all(&self, into: &Path, companions: &[Companion<'_>]) -> Result<BackupReport, BackupError> {
        let (begun, taken_at) = (Instant::now(), self.clock().now());
        let shards = into.join("shards");
        fs::create_dir_all(&shards).map_err(io_error("make", &shards))?;
        let from = self.data_dir();
        // A backup has the key that later checkpoints are signed by. Copied before the chains: they only grow.
        self.checkpoint_audit().await?;
        copy_file(from, into, Path::new(CHECKPOINTS)).await?;
        for companion in companions {
            match companion {
                Companion::Database(name, db) => copy_database(db, &into.join(name)).await?,
                Companion::Folder(name) => copy_folder(from, into, name).await?,
                Companion::File(name) => copy_file(from, into, Path::new(name)).await?,
            }
        }
        let mut copied = BTreeSet::new();
        for source in self.sources() {
            let Some(db) = self.database(source).filter(|db| db.path().is_some()) else { continue };
            let place = if source == CONTROL { into.join("control.db") } else { shards.join(db.name()) };
            copy_database(&db, &place).await?;
            copied.insert(source);
        }
        let map = self.copy_maps(into).await?;
        self.copy_brought(&map, &copied, &shards).await?;
        let (into, from) = (into.to_path_buf(), std::path::absolute(from).ok().filter(|path| path.to_str().is_some()));
        let files = blocking(move || seal(&into, taken_at, from)).await?;
        let took_ms = u64::try_from(begun.elapsed().min(Duration::MAX).as_millis()).unwrap_or(u64::MAX);
        Ok(BackupReport { taken_at, files: files.len(), bytes: files.iter().map(|it| it.bytes).sum(), took_ms })
    }
}

impl Cluster {
    /// Copies maps and keys, and what the directory was made as, all of one instant: nobody publishes meanwhile. The map that the
    /// copy is opened by.
    async fn copy_maps(&self, into: &Path) -> Result<ShardMap, BackupError> {
        let from = self.data_dir();
        let _still = self.0.directory.publishing().await?;
        for folder in FOLDERS {
            copy_folder(from, into, folder).await?;
        }
        for file in FILES {
            copy_file(from, into, Path::new(file)).await?;
        }
        Ok(self.0.directory.newest_map()?)
    }

    /// Copies the databases that a map has brought while the others were copied: the copy is opened by that map.
    async fn copy_brought(&self, map: &ShardMap, copied: &BTreeSet<ShardId>, shards: &Path) -> Result<(), BackupError> {
        if self.0.settings.servers.is_some() {
            return Ok(());
        }
        for described in map.shards().iter().filter(|it| is_asked_for(it) && !copied.contains(&it.id)) {
            // Whoever else has published it may be the only one so far who has it open.
            self.refresh_map().await?;
            let db = self.database(described.id).ok_or(BackupError::Brought { shard: described.id })?;
            copy_database(&db, &shards.join(db.name())).await?;
        }
        Ok(())
    }

    /// Refuses databases of servers before anything is copied.
    fn is_embedded(&self, companions: &[Companion<'_>]) -> Result<(), BackupError> {
        let ours = self.sources().filter_map(|source| self.database(source));
        let others = companions
            .iter()
            .filter_map(|it| if let Companion::Database(_, db) = it { Some((*db).clone()) } else { None });
        let foreign = ours.chain(others).find(|db| db.path().is_none());
        foreign.map_or(Ok(()), |db| Err(BackupError::Server { name: db.name() }))
    }
}

/// One snapshot, compacted, into a new file.
async fn copy_database(db: &Db, place: &Path) -> Result<(), BackupError> {
    let name = db.name();
    if db.path().is_none() {
        return Err(BackupError::Server { name });
    }
    let copy = Statement::sqlite("VACUUM INTO ?").bind(place.to_string_lossy().into_owned());
    db.query(copy).await.map(drop).map_err(|source| match source {
        DbError::Full { .. } => BackupError::Full { path: place.to_path_buf() },
        source => BackupError::Database { name, source },
    })
}

async fn copy_folder(from: &Path, into: &Path, name: &str) -> Result<(), BackupError> {
    let folder = from.join(name);
    if !folder.exists() {
        return Ok(());
    }
    let target = into.join(name);
    fs::create_dir_all(&target).map_err(io_error("make", &target))?;
    for file in files_of(&folder)? {
        let Ok(relative) = file.strip_prefix(from) else { continue };
        copy_file(from, into, relative).await?;
    }
    Ok(())
}

async fn copy_file(from: &Path, into: &Path, relative: &Path) -> Result<(), BackupError> {
    let (source, target) = (from.join(relative), into.join(relative));
    blocking(move || match fs::copy(&source, &target) {
        Ok(_) => Ok(()),
        // Removed since it was listed, or not made yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !source.exists() => Ok(()),
        Err(error) => Err(io_error("copy", &source)(error)),
    })
    .await
}

/// Makes everything durable, names too, and writes down what there is; a folder without that is no backup.
fn seal(folder: &Path, taken_at: Timestamp, data_dir: Option<PathBuf>) -> Result<Vec<Entry>, BackupError> {
    let (folders, found) = tree(folder)?;
    let mut files = Vec::new();
    for file in found {
        let handle = File::open(&file).map_err(io_error("open", &file))?;
        handle.sync_all().map_err(io_error("sync", &file))?;
        let path = file.strip_prefix(folder).unwrap_or(&file).to_string_lossy().into_owned();
        let (bytes, sha256) = digest(&file)?;
        files.push(Entry { path, bytes, sha256 });
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))?;
    let manifest = Manifest { format: FORMAT, taken_at: taken_at.as_micros(), data_dir, files };
    let place = folder.join(MANIFEST);
    let mut handle = File::create(&place).map_err(io_error("make", &place))?;
    handle.write_all(toml::to_string(&manifest).unwrap_or_default().as_bytes()).map_err(io_error("write", &place))?;
    handle.sync_all().map_err(io_error("sync", &place))?;
    sync_folder(folder)?;
    // The backup's own name, and that of the folder of all backups, which may be as new.
    folder.ancestors().take(2).try_for_each(sync_above)?;
    Ok(manifest.files)
}

/// Makes the names in a folder outlast a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<(), BackupError> {
    // Of a relative path nothing is left above its first name.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|it| it.sync_all()).map_err(io_error("sync", folder))
}

/// The same of the folder above one of ours: whoever may not read it cannot sync it either. Where its file system syncs no
/// folders, as a read-only one, ours must be mounted there: then its name there is none that was made with it.
pub(super) fn sync_above(ours: &Path) -> Result<(), BackupError> {
    let Some(above) = ours.parent() else { return Ok(()) };
    match sync_folder(above) {
        Err(BackupError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(BackupError::Io { source, .. }) if syncs_no_folders(&source) && is_mounted(ours, above) => Ok(()),
        synced => synced,
    }
}

fn syncs_no_folders(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, ReadOnlyFilesystem, Unsupported};
    [InvalidInput, ReadOnlyFilesystem, Unsupported].contains(&error.kind())
}

fn is_mounted(ours: &Path, above: &Path) -> bool {
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let device = |path| fs::metadata(path).map(|it| it.dev());
    matches!((device(ours), device(above)), (Ok(ours), Ok(above)) if ours != above)
}

/// Every file below a folder.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, BackupError> {
    tree(folder).map(|(_, files)| files)
}

/// A folder with every one below it, and every file.
fn tree(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), BackupError> {
    let (mut folders, mut files) = (vec![folder.to_path_buf()], Vec::new());
    let mut seen = Vec::new();
    // Ends: a tree of folders that we made.
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).map_err(io_error("list", &next))? {
            let path = entry.map_err(io_error("list", &next))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
        seen.push(next);
    }
    files.sort();
    Ok((seen, files))
}

/// Size and SHA-256 of a file.
pub(super) fn digest(file: &Path) -> Result<(u64, String), BackupError> {
    struct Sink(Sha256);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut handle = File::open(file).map_err(io_error("open", file))?;
    let mut sink = Sink(Sha256::new());
    let bytes = io::copy(&mut handle, &mut sink).map_err(io_error("read", file))?;
    Ok((bytes, hex(&sink.0.finalize())))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BackupError::Interrupted)?
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BackupError::Full { path },
        _ => BackupError::Io { doing, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: a name that was made is synced or told not to be; that of a mount was there before.
    #[test]
    fn a_folder_above_that_cannot_be_synced_is_left_alone_where_ours_is_mounted_alone() {
        // Neither file system syncs folders.
        for (ours, above) in [("/proc/self", "/proc"), ("/sys/fs/cgroup", "/sys/fs")].map(|it| (Path::new(it.0), it.1))
        {
            assert!(sync_folder(Path::new(above)).is_err(), "{above}");
            assert_eq!(sync_above(ours).is_ok(), is_mounted(ours, Path::new(above)), "{above}");
        }
        assert!(!is_mounted(Path::new("/proc/self"), Path::new("/proc")));
        assert!(is_mounted(Path::new("/proc"), Path::new("/")));
        sync_above(&std::env::temp_dir().join("ours")).expect("is synced");
    }
}
