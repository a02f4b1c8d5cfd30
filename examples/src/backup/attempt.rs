//! What became of backups that are not whole: one file an attempt, locked for as long as somebody is at it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pim_core::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// No backup may be called so.
const FOLDER: &str = ".attempts";
/// Most attempts that are remembered; the oldest go.
const KEPT_MAX: usize = 100;
/// How often it is looked whether somebody is at an attempt, and for how long whoever looks at the list is waited for each time.
const LOOKS_MAX: u32 = 20;
const LOOK_LASTS: Duration = Duration::from_millis(5);
/// How often a file is read that makes no sense.
const READS_MAX: u32 = 20;
/// What became of one whose process has ended and that says nothing.
const BROKEN_OFF: &str = "it was broken off: whoever took it has ended";

/// Taking a backup. Dropped, also by the end of the process, it has failed.
#[derive(Debug)]
pub(super) struct Attempt {
    file: File,
    place: PathBuf,
    told: Told,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    began_at: Timestamp,
    reason: Option<String>,
}

/// An attempt that has not become a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub(super) name: String,
    pub(super) began_at: Timestamp,
    /// Why it failed; none while somebody is at it.
    pub(super) reason: Option<String>,
}

impl Attempt {
    /// Begins one; nothing when somebody is at it already. Whoever looks at the list has every file locked for a moment, which is
    /// waited for.
    pub(super) async fn begin(backups: &Path, name: &str, now: Timestamp) -> io::Result<Option<Self>> {
        for _look in 0..LOOKS_MAX {
            if let Some(attempt) = Self::begin_now(backups, name, now)? {
                return Ok(Some(attempt));
            }
            tokio::time::sleep(LOOK_LASTS).await;
        }
        Self::begin_now(backups, name, now)
    }

    /// Begins one unless its file is locked. What an earlier attempt of this name has left in `into` goes.
    pub(super) fn begin_now(backups: &Path, name: &str, now: Timestamp) -> io::Result<Option<Self>> {
        let folder = backups.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let place = folder.join(name);
        let is_known = place.exists();
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&place)?;
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let into = backups.join(name);
        if is_known && into.exists() && pim_data::backup::summary_of(&into).is_err() {
            fs::remove_dir_all(&into)?;
        }
        forget_oldest(backups);
        let attempt = Self { file, place, told: Told { began_at: now, reason: None } };
        attempt.tell()?;
        Ok(Some(attempt))
    }

    /// It is a backup.
    pub(super) fn succeeded(self) {
        let _stays_behind_a_whole_backup = fs::remove_file(&self.place);
    }

    /// It is none, and nothing is left of it but why.
    pub(super) fn failed(mut self, into: &Path, reason: String) {
        let _nothing_was_made = fs::remove_dir_all(into);
        self.told.reason = Some(reason);
        // Untold it counts as broken off.
        let _untold = self.tell();
    }

    fn tell(&self) -> io::Result<()> {
        let mut file = &self.file;
        let text = serde_json::to_string(&self.told)?;
        // Cut last: one that was told of once is never empty, which would be no attempt, also where the disk is full.
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    }
}

/// The attempts beside the backups, in no order.
pub(super) fn unfinished(backups: &Path) -> Vec<Unfinished> {
    let files = fs::read_dir(backups.join(FOLDER)).into_iter().flatten().flatten();
    files
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let file = File::open(entry.path()).ok()?;
            let is_at_it = file.try_lock_shared().is_err();
            let told = read(&entry.path())?;
            let began_at = told.as_ref().map_or(Timestamp::from_micros(0), |told| told.began_at);
            let reason = told.and_then(|told| told.reason).unwrap_or_else(|| BROKEN_OFF.to_owned());
            Some(Unfinished { name, began_at, reason: (!is_at_it).then_some(reason) })
        })
        .collect()
}

/// What a file says; none where it says nothing, which nothing was made of yet. One that is being written over may be read half and
/// half, and is read again; it stays unreadable when whoever wrote it ended in between.
fn read(place: &Path) -> Option<Option<Told>> {
    for _read in 0..READS_MAX {
        let text = fs::read_to_string(place).ok()?;
        if text.is_empty() {
            return None;
        }
        if let Ok(told) = serde_json::from_str(&text) {
            return Some(Some(told));
        }
    }
    Some(None)
}

fn forget_oldest(backups: &Path) {
    let mut all = unfinished(backups);
    all.retain(|attempt| attempt.reason.is_some());
    all.sort_by_key(|attempt| std::cmp::Reverse(attempt.began_at));
    for old in all.iter().skip(KEPT_MAX) {
        let _gone_already = fs::remove_file(backups.join(FOLDER).join(&old.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: whoever is ended between two steps of telling, or finds the disk full, has told before.
    #[test]
    fn one_that_was_told_of_is_never_empty() {
        let backups = std::env::temp_dir().join(format!("pim-told-{}", uuid::Uuid::new_v4()));
        let mut attempt = Attempt::begin_now(&backups, "one", Timestamp::from_micros(1)).unwrap().unwrap();
        let place = attempt.place.clone();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let empty = std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let is_empty = || fs::metadata(&place).unwrap().len() == 0;
                let looks = std::iter::repeat_with(is_empty);
                let until_over = looks.take_while(|_| !is_over.load(std::sync::atomic::Ordering::Relaxed));
                until_over.filter(|is_empty| *is_empty).count()
            });
            for number in 0..20_000_usize {
                attempt.told.reason = Some("x".repeat(number % 50));
                attempt.tell().unwrap();
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            looking.join().unwrap()
        });
        assert_eq!(empty, 0);
        let told = read(&place).unwrap().unwrap();
        assert_eq!(told.reason.map(|reason| reason.len()), Some(19_999 % 50));
        fs::remove_dir_all(backups).unwrap();
    }
}
