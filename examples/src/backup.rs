//! Backups of the lab's data directory: taken while it serves, and put into a new one.

mod attempt;
mod http;
mod restore;

pub(crate) use http::endpoints;
pub use restore::{RestoreError, Restored, restore};

use std::path::{Path, PathBuf};

use pim_core::clock::Timestamp;
use pim_data::backup::{BackupError, BackupReport, BackupSummary, Companion, summary_of};
use serde::Serialize;

use self::attempt::{Attempt, Unfinished, unfinished};
use crate::broker::PERSONAS;
use crate::rig::reasons;
use crate::workers::Stores;

/// Beside the backups, files that are none yet; no backup may be called so.
const FILES: &str = ".files";
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
/// them. With `files_only` without the databases that are on servers, for whoever takes base backups of these afterwards, and
/// puts the files beside them: until then they are no backup, and the next ones of this name take their place.
///
/// While it is being taken [`list`] says so, and when it fails also why; nothing else is left of it then.
///
/// # Errors
/// [`BackupError`]; what is there then is no backup.
pub async fn take(stores: &Stores, name: &str, files_only: bool) -> Result<(PathBuf, BackupReport), BackupError> {
    let backups = folder_of(stores.cluster.data_dir());
    let backup = backups.join(name);
    let taken = |path: &Path| BackupError::Taken { path: path.to_path_buf() };
    if summary_of(&backup).is_ok() {
        return Err(taken(&backup));
    }
    let place = if files_only { backups.join(FILES).join(name) } else { backup };
    let begun = Attempt::begin(&backups, name, stores.cluster.clock().now()).await;
    let attempt = begun.map_err(|source| BackupError::Io { doing: "begin", path: place.clone(), source })?;
    let attempt = attempt.ok_or_else(|| taken(&place))?;
    let made = async {
        if files_only {
            forget(&place)?;
        }
        copy(stores, &place, files_only).await
    };
    match made.await {
        Ok(report) => {
            attempt.succeeded();
            Ok((place, report))
        }
        // That is somebody's, and stays.
        Err(error @ BackupError::Taken { .. }) => {
            attempt.succeeded();
            Err(error)
        }
        Err(error) => {
            attempt.failed(&place, reasons(&error));
            Err(error)
        }
    }
}

/// Removes files that nobody has fetched: whoever was to has ended, and would have moved them away.
fn forget(files: &Path) -> Result<(), BackupError> {
    match std::fs::remove_dir_all(files) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(BackupError::Io { doing: "remove", path: files.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

async fn copy(stores: &Stores, place: &Path, files_only: bool) -> Result<BackupReport, BackupError> {
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
    match files_only {
        true => cluster.back_up_files(place, &companions).await,
        false => cluster.back_up(place, &companions).await,
    }
}

/// Whether there is a backup by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// Somebody is at it.
    Running,
    /// It is whole.
    Complete,
    /// There is none.
    Failed,
}

/// A backup that there is, will be, or was not made.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: PathBuf,
    /// Whether it is one.
    pub state: BackupState,
    /// Why it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was begun, while it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_at: Option<Timestamp>,
    /// What it is made of, when it is one.
    #[serde(flatten)]
    pub summary: Option<BackupSummary>,
}

/// The backups of a data directory, the oldest first, also those that are being taken or have failed; folders that are none
/// are passed over.
#[must_use]
pub fn list(data_dir: &Path) -> Vec<Listed> {
    let backups = folder_of(data_dir);
    let Ok(entries) = std::fs::read_dir(&backups) else { return Vec::new() };
    let whole = entries.flatten().filter_map(|entry| {
        let (name, place) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let summary = Some(summary_of(&place).ok()?);
        Some(Listed { name, place, state: BackupState::Complete, reason: None, began_at: None, summary })
    });
    let mut found: Vec<Listed> = whole.take(LISTED_MAX).collect();
    for attempt in unfinished(&backups) {
        // One that is whole has just become so.
        if !found.iter().any(|backup| backup.name == attempt.name) {
            found.push(Listed::of(&backups, attempt));
        }
    }
    found.sort_by_key(|backup| (backup.at(), backup.name.clone()));
    found
}

impl Listed {
    fn of(backups: &Path, attempt: Unfinished) -> Self {
        let Unfinished { name, began_at, reason } = attempt;
        let state = if reason.is_some() { BackupState::Failed } else { BackupState::Running };
        Self { place: backups.join(&name), name, state, reason, began_at: Some(began_at), summary: None }
    }

    fn at(&self) -> Option<Timestamp> {
        self.summary.map(|summary| summary.taken_at).or(self.began_at)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use pim_core::clock::{Clock, Timestamp};
    use pim_data::cluster::Access;

    use super::attempt::Attempt;
    use super::{BackupError, BackupState, folder_of, is_name, list, take};
    use crate::signals::Hub;
    use crate::workers::Stores;

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

    /// Guards: `take` puts files for base backups apart, and replaces those that nobody has fetched; a backup never.
    #[tokio::test]
    async fn files_that_nobody_fetched_are_taken_anew() {
        let folder = std::env::temp_dir().join(format!("pim-files-only-{}", uuid::Uuid::new_v4()));
        let (data_dir, hub) = (folder.join("data"), Hub::new(None).unwrap());
        let stores = Stores::open(&data_dir, Some(1), Access::Shared, Clock::system(), &hub).await.unwrap();
        let (files, _) = take(&stores, "one", true).await.expect("takes");
        std::fs::write(files.join("left"), "by whoever has ended").unwrap();
        let (again, _) = take(&stores, "one", true).await.expect("takes anew");
        assert_eq!((&again, again.join("left").exists(), list(&data_dir).len()), (&files, false, 0), "no backup yet");
        let (backup, _) = take(&stores, "one", false).await.expect("takes a whole one");
        for files_only in [true, false] {
            let refusal = take(&stores, "one", files_only).await.expect_err("is there");
            assert!(matches!(refusal, BackupError::Taken { ref path } if *path == backup), "{refusal}");
        }
        assert_eq!(list(&data_dir).iter().map(|it| it.state).collect::<Vec<_>>(), [BackupState::Complete]);
        drop(stores);
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// Guard: whoever looks at the list without pause keeps nobody from taking a backup.
    #[tokio::test]
    async fn a_look_at_the_list_refuses_no_attempt() {
        let folder = std::env::temp_dir().join(format!("pim-looks-{}", uuid::Uuid::new_v4()));
        let (data_dir, now) = (folder.join("data"), Timestamp::from_micros(1_000_000));
        let (backups, over) = (folder_of(&data_dir), Arc::new(AtomicBool::new(false)));
        let looking = std::thread::spawn({
            let (data_dir, over) = (data_dir.clone(), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    let told = list(&data_dir);
                    assert!(told.iter().all(|it| it.began_at == Some(now)), "{told:?}");
                }
            }
        });
        let mut refused = 0;
        for number in 0..300 {
            match Attempt::begin(&backups, &format!("n{number}"), now).await.unwrap() {
                Some(attempt) => attempt.succeeded(),
                None => refused += 1,
            }
            // One that has failed before is looked at all the time.
            match Attempt::begin(&backups, "again", now).await.unwrap() {
                Some(attempt) => attempt.failed(&backups.join("none"), "the disk is full".to_owned()),
                None => refused += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
        looking.join().unwrap();
        assert_eq!((refused, list(&data_dir).len()), (0, 1));
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// Guard: `attempt::unfinished` looks whether somebody holds the lock, which ends with whoever does.
    #[test]
    fn an_attempt_is_running_until_whoever_is_at_it_says_why_not_or_ends() {
        let folder = std::env::temp_dir().join(format!("pim-attempts-{}", uuid::Uuid::new_v4()));
        let (data_dir, now) = (folder.join("data"), Timestamp::from_micros(1_000_000));
        let backups = folder_of(&data_dir);
        let begin = || Attempt::begin_now(&backups, "one", now).unwrap();
        let listed = || list(&data_dir).into_iter().map(|it| (it.name, it.state, it.reason)).collect::<Vec<_>>();
        // A process that another test is starting has every file open for a moment.
        let begin_soon = || (0..1_000_000).find_map(|_| begin());
        let of = |state, reason: Option<&str>| vec![("one".to_owned(), state, reason.map(str::to_owned))];
        let attempt = begin().expect("nobody is at it");
        assert_eq!(listed(), of(BackupState::Running, None));
        assert!(begin().is_none(), "somebody is at it");
        std::fs::create_dir(backups.join("one")).unwrap();
        drop(attempt);
        let soon = |what: &[_]| (0..1_000_000).any(|_| listed() == what);
        assert!(soon(&of(BackupState::Failed, Some("it was broken off: whoever took it has ended"))));
        let attempt = begin_soon().expect("nobody is at it any more");
        assert!(!backups.join("one").exists(), "what was left of it goes");
        attempt.failed(&backups.join("one"), "the disk is full".to_owned());
        assert!(soon(&of(BackupState::Failed, Some("the disk is full"))));
        begin_soon().expect("it is tried again").succeeded();
        assert_eq!(listed(), Vec::new());
        for number in 0..150 {
            let attempt = Attempt::begin_now(&backups, &format!("{number}"), now).unwrap().expect("nobody is at it");
            attempt.failed(&backups.join("none"), String::new());
        }
        assert!((100..=101).contains(&listed().len()), "{}", listed().len());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
