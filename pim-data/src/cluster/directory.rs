//! The data directory: who has it open, what it was made as, and its maps.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use pim_core::shard::{MapError, ShardId, ShardMap};
use serde::{Deserialize, Serialize};

use crate::backend::Engine;

const FORMAT: u32 = 1;
const MAP_FILE: &str = "shard-map.toml";
const LAYOUT_FILE: &str = "layout.toml";
/// Stands in a directory into which a backup is being put.
pub(crate) const HALF_RESTORED: &str = "HALF-RESTORED";
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Whether others may have the data directory open too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// One process alone.
    Exclusive,
    /// Several processes, none of which is exclusive.
    Shared,
}

/// A data directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It was made by a newer program.
    #[error("data directory {} has format {found}, this program knows {FORMAT}: use a newer program", path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A backup is being put into it, or whoever did so was killed.
    #[error("data directory {} is half restored: wait for the restore, or remove the directory and restore again", path.display())]
    HalfRestored {
        /// The folder.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("data directory {} is in use by another process: stop it or choose another directory", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Somebody publishes a map, or opens a shard for the first time.
    #[error("somebody publishes a map of data directory {} at this moment: try again", path.display())]
    Publishing {
        /// The folder.
        path: PathBuf,
    },
    /// It was made with another number of shards.
    #[error("data directory {} was made with {found} shards, not {asked}: open it with {found} or choose another directory", path.display())]
    OtherShards {
        /// The folder.
        path: PathBuf,
        /// How many it was made with.
        found: usize,
        /// How many were asked for.
        asked: usize,
    },
    /// Its rows are kept elsewhere.
    #[error("the rows of data directory {} are kept {found}, not {asked}: open it that way or choose another directory", path.display())]
    OtherEngine {
        /// The folder.
        path: PathBuf,
        /// Where they are kept.
        found: &'static str,
        /// Where they were looked for.
        asked: &'static str,
    },
    /// It is not there, and no map was given to make it with.
    #[error("data directory {} has not been made yet: give a map to make it with", path.display())]
    Absent {
        /// The folder.
        path: PathBuf,
    },
    /// A file in it is not what it must be.
    #[error("file {} of the data directory is damaged: restore it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Its map is not valid.
    #[error("the shard map of the data directory is not valid")]
    Map(#[source] MapError),
    /// The file system refuses.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Deserialize, Serialize)]
struct Layout {
    format: u32,
    shards: usize,
    /// Where the rows are; not told by directories of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    engine: Option<Place>,
    /// Which databases have been introduced: from then on an empty one in their place is a mistake.
    #[serde(default)]
    introduced: BTreeSet<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Files,
    Servers,
}

impl Place {
    const fn of(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => Self::Files,
            Engine::Postgres => Self::Servers,
        }
    }

    const fn told(self) -> &'static str {
        match self {
            Self::Files => "in its files",
            Self::Servers => "on servers",
        }
    }
}

/// An opened data directory; the lock goes with the value.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// As it was last looked up.
    introduced: Mutex<BTreeSet<u16>>,
    /// The text of a map and what it says: one that is looked for again and again is rarely another one.
    known: Mutex<Option<(String, ShardMap)>>,
    _lock: File,
}

impl Directory {
    /// Opens or makes it.
    pub(super) fn open(
        path: &Path,
        access: Access,
        engine: Engine,
        map: Option<&ShardMap>,
    ) -> Result<Self, DirectoryError> {
        let is_made = path.join(LAYOUT_FILE).exists();
        if !is_made && map.is_none() {
            return Err(DirectoryError::Absent { path: path.to_path_buf() });
        }
        fs::create_dir_all(path).map_err(io_error("make", path))?;
        let lock = lock_file(path)?;
        // Whoever makes it is alone for that moment; the others find it made.
        let acquire = |lock: &File, access| acquire(lock, access).map_err(io_error("lock", path));
        if !is_made && acquire(&lock, Access::Exclusive)? {
            make(path, engine, map)?;
            let _released = lock.unlock();
        }
        let give_up = Instant::now() + LOCK_PATIENCE;
        while !acquire(&lock, access)? {
            if Instant::now() > give_up {
                return Err(DirectoryError::InUse { path: path.to_path_buf() });
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "before the program serves anything; a file lock has no async form"
            )]
            std::thread::sleep(Duration::from_millis(20));
        }
        let introduced = check(path, engine, map)?;
        let (introduced, known) = (Mutex::new(introduced), Mutex::default());
        Ok(Self { path: path.to_path_buf(), introduced, known, _lock: lock })
    }

    /// Whether this directory has had a database of a shard.
    pub(super) fn has_had(&self, shard: ShardId) -> bool {
        let mut known = self.introduced.lock().unwrap_or_else(PoisonError::into_inner);
        // Another process may have learned of it since.
        if !known.contains(&shard.0)
            && let Ok(layout) = read_layout(&self.path)
        {
            *known = layout.introduced;
        }
        known.contains(&shard.0)
    }

    /// Keeps in mind which databases have been introduced.
    pub(crate) async fn remember(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<(), DirectoryError> {
        let shards: BTreeSet<u16> = shards.into_iter().map(|shard| shard.0).collect();
        if shards.is_subset(&self.introduced.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let _alone = self.layout().await?;
        let mut layout = read_layout(&self.path)?;
        layout.introduced.extend(shards);
        write_layout(&self.path, &layout)?;
        *self.introduced.lock().unwrap_or_else(PoisonError::into_inner) = layout.introduced;
        Ok(())
    }

    /// When the published map was written; `None` when that cannot be told.
    pub(super) fn map_written_at(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join(MAP_FILE)).and_then(|it| it.modified()).ok()
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The newest map that was published.
    pub(crate) fn newest_map(&self) -> Result<ShardMap, DirectoryError> {
        let file = self.path.join(MAP_FILE);
        let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, map)) = known.as_ref().filter(|(of, _)| *of == text) {
            return Ok(map.clone());
        }
        let map = ShardMap::parse(&text).map_err(DirectoryError::Map)?;
        *known = Some((text, map.clone()));
        Ok(map)
    }

    /// Waits until nobody else publishes a map; ends with the value.
    pub(crate) async fn publishing(&self) -> Result<File, DirectoryError> {
        self.alone("LOCK").await
    }

    /// Waits until nobody else changes the layout; apart from the above, because whoever publishes opens shards.
    async fn layout(&self) -> Result<File, DirectoryError> {
        self.alone("LAYOUT").await
    }

    async fn alone(&self, name: &str) -> Result<File, DirectoryError> {
        let path = self.path.join("maps").join(name);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        let give_up = Instant::now() + LOCK_PATIENCE;
        while !acquire(&file, Access::Exclusive).map_err(io_error("lock", &path))? {
            if Instant::now() > give_up {
                return Err(DirectoryError::Publishing { path: self.path.clone() });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(file)
    }

    /// Takes the one place of whoever moves buckets; ends with the value, also when the process is killed.
    pub(crate) fn moving(&self) -> Result<Option<File>, DirectoryError> {
        let path = self.path.join("maps").join("MOVE");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        Ok(acquire(&file, Access::Exclusive).map_err(io_error("lock", &path))?.then_some(file))
    }

    /// A map by version: every map that was ever prepared is kept.
    pub(crate) fn map(&self, version: u64) -> Result<ShardMap, DirectoryError> {
        read_map(&map_path(&self.path, version))
    }

    /// As [`Directory::map`]; `None` when it was not kept.
    pub(crate) fn kept_map(&self, version: u64) -> Result<Option<ShardMap>, DirectoryError> {
        match self.map(version) {
            Err(DirectoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    /// Keeps a map, before anything relies on it.
    pub(crate) fn keep_map(&self, map: &ShardMap) -> Result<(), DirectoryError> {
        write_synced(&map_path(&self.path, map.version().0), map.to_toml().as_bytes())
    }

    /// Forgets a map that was kept and never came into force, so that nobody takes it for the one that did. For whoever holds the
    /// place of the publisher.
    pub(crate) fn forget_map(&self, version: u64) -> Result<(), DirectoryError> {
        let file = map_path(&self.path, version);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &file)(error)),
            _ => Ok(()),
        }
    }

    /// Lays a kept map ready, so that publishing it need not wait for the disk. For whoever holds the place of the publisher
    /// until it is published.
    pub(crate) fn prepare_map(&self, map: &ShardMap) -> Result<PreparedMap, DirectoryError> {
        let (file, text) = (self.path.join(MAP_FILE), map.to_toml());
        let fresh = write_fresh(&file, text.as_bytes())?;
        // Whoever reads it soon need not parse it.
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((text, map.clone()));
        Ok(PreparedMap { fresh, file })
    }

    /// Waits until the published map outlives a power loss. Until then the one before it may be read again: whoever opens the
    /// directory finds that shards follow a newer one, and publishes that.
    pub(crate) fn settle_map(&self) -> Result<(), DirectoryError> {
        sync_folder_of(&self.path.join(MAP_FILE))
    }

    /// Makes a kept map the one that everybody reads.
    pub(crate) fn publish_map(&self, map: &ShardMap) -> Result<(), DirectoryError> {
        self.prepare_map(map)?.publish()?;
        self.settle_map()
    }
}

/// A map on the disk that only has to take its name.
#[derive(Debug)]
#[must_use = "nobody reads it until it is published"]
pub(crate) struct PreparedMap {
    fresh: PathBuf,
    file: PathBuf,
}

impl PreparedMap {
    /// Makes it the one that everybody reads; [`Directory::settle_map`] comes next.
    pub(crate) fn publish(self) -> Result<(), DirectoryError> {
        fs::rename(&self.fresh, &self.file).map_err(io_error("rename", &self.fresh))
    }
}

/// Refuses a directory whose epochs may not have been raised yet, so that numbers that were lost would be given out again.
pub(super) fn check_restored(path: &Path) -> Result<(), DirectoryError> {
    if path.join(HALF_RESTORED).exists() {
        return Err(DirectoryError::HalfRestored { path: path.to_path_buf() });
    }
    Ok(())
}

/// Refuses a directory of another kind; which databases it has had.
fn check(path: &Path, engine: Engine, map: Option<&ShardMap>) -> Result<BTreeSet<u16>, DirectoryError> {
    let layout = read_layout(path)?;
    let path = path.to_path_buf();
    if layout.format > FORMAT {
        return Err(DirectoryError::Newer { path, found: layout.format });
    }
    let asked = map.map_or(layout.shards, |map| map.shards().len());
    if asked != layout.shards {
        return Err(DirectoryError::OtherShards { path, found: layout.shards, asked });
    }
    let asked = Place::of(engine);
    match layout.engine.filter(|found| *found != asked) {
        Some(found) => Err(DirectoryError::OtherEngine { path, found: found.told(), asked: asked.told() }),
        None => Ok(layout.introduced),
    }
}

fn read_layout(path: &Path) -> Result<Layout, DirectoryError> {
    let file = path.join(LAYOUT_FILE);
    let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
    toml::from_str(&text).map_err(|_| DirectoryError::Damaged { path: file })
}

fn write_layout(path: &Path, layout: &Layout) -> Result<(), DirectoryError> {
    write_synced(&path.join(LAYOUT_FILE), toml::to_string(layout).unwrap_or_default().as_bytes())
}

fn lock_file(path: &Path) -> Result<File, DirectoryError> {
    let file = path.join("LOCK");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    opened.map_err(io_error("open", &file))
}

/// Whether nobody else has it. Where there are no locks, nothing may be shared.
fn acquire(lock: &File, access: Access) -> io::Result<bool> {
    is_locked(match access {
        Access::Exclusive => lock.try_lock(),
        Access::Shared => lock.try_lock_shared(),
    })
}

fn is_locked(outcome: Result<(), TryLockError>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn make(path: &Path, engine: Engine, map: Option<&ShardMap>) -> Result<(), DirectoryError> {
    let layout_file = path.join(LAYOUT_FILE);
    let (Some(map), false) = (map, layout_file.exists()) else { return Ok(()) };
    for folder in ["shards", "maps", "keys"] {
        let folder = path.join(folder);
        fs::create_dir_all(&folder).map_err(io_error("make", &folder))?;
    }
    write_synced(&map_path(path, map.version().0), map.to_toml().as_bytes())?;
    write_synced(&path.join(MAP_FILE), map.to_toml().as_bytes())?;
    let (shards, engine) = (map.shards().len(), Some(Place::of(engine)));
    // Last, so that a directory with a layout is whole.
    write_layout(path, &Layout { format: FORMAT, shards, engine, introduced: BTreeSet::new() })
}

fn map_path(path: &Path, version: u64) -> PathBuf {
    path.join("maps").join(format!("{version}.toml"))
}

fn read_map(file: &Path) -> Result<ShardMap, DirectoryError> {
    let text = fs::read_to_string(file).map_err(io_error("read", file))?;
    ShardMap::parse(&text).map_err(DirectoryError::Map)
}

/// Replaces a file so that a reader, also after a power loss, finds the old or the new one whole.
fn write_synced(file: &Path, bytes: &[u8]) -> Result<(), DirectoryError> {
    let fresh = write_fresh(file, bytes)?;
    fs::rename(&fresh, file).map_err(io_error("rename", &fresh))?;
    sync_folder_of(file)
}

/// Writes what is to take the place of a file beside it.
fn write_fresh(file: &Path, bytes: &[u8]) -> Result<PathBuf, DirectoryError> {
    let fresh = file.with_extension("new");
    let mut handle = File::create(&fresh).map_err(io_error("make", &fresh))?;
    handle.write_all(bytes).map_err(io_error("write", &fresh))?;
    handle.sync_all().map_err(io_error("sync", &fresh))?;
    Ok(fresh)
}

fn sync_folder_of(file: &Path) -> Result<(), DirectoryError> {
    let folder = file.parent().unwrap_or(file);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError + use<> {
    let path = path.to_path_buf();
    move |source| DirectoryError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: two who may not be at work at once are not, where a file system knows no locks.
    #[test]
    fn a_lock_that_cannot_be_had_is_nobodys() {
        assert!(is_locked(Ok(())).expect("is had"));
        assert!(!is_locked(Err(TryLockError::WouldBlock)).expect("is another's"));
        assert!(is_locked(Err(TryLockError::Error(io::ErrorKind::Unsupported.into()))).is_err());
    }
}
