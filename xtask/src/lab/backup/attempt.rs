//! What became of backups of servers that are not whole: one file an attempt, locked for as long as somebody is at it.
//!
//! As the lab keeps it of the backups that it takes by itself; here the lab's commands take them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use pim_servers::fleet::Instant;
use serde_json::{Value, json};

/// No backup may be called so.
const FOLDER: &str = ".attempts";
/// In a place that an attempt has made, until it is a backup: what has it not is somebody's own.
const MARK: &str = "unfinished";
/// By which it counts as whole.
const MANIFEST: &str = "data/backup.toml";
/// Most attempts that are remembered; the oldest go.
const KEPT_MAX: usize = 100;
const NAME_LEN_MAX: usize = 64;

/// Whether the lab would take this for a name; what it refuses must not become a path.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=NAME_LEN_MAX).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

/// Taking a backup. Dropped, also by the end of the process, it has failed.
#[derive(Debug)]
pub(super) struct Attempt {
    file: File,
    place: PathBuf,
    began_at: Instant,
}

impl Attempt {
    /// Begins one; nothing when somebody is at it already. What an earlier attempt of this name has left goes, and nothing else.
    pub(super) fn begin(backups: &Path, name: &str, is_whole: impl Fn(&Path) -> bool) -> io::Result<Option<Self>> {
        fs::create_dir_all(backups.join(FOLDER))?;
        let place = backups.join(FOLDER).join(name);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&place)?;
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let into = backups.join(name);
        if is_left_over(&into) && !is_whole(&into) {
            remove(&into)?;
        }
        forget_oldest(backups);
        let attempt = Self { file, place, began_at: Instant::now() };
        attempt.tell(None)?;
        Ok(Some(attempt))
    }

    /// It is a backup.
    pub(super) fn end(self) {
        let _gone_already = fs::remove_file(&self.place);
    }

    /// It is none, for this reason.
    pub(super) fn failed(&self, error: anyhow::Error) -> anyhow::Error {
        // Untold it counts as broken off.
        let _untold = self.tell(Some(&format!("{error:#}")));
        error
    }

    fn tell(&self, reason: Option<&str>) -> io::Result<()> {
        let mut file = &self.file;
        let text = json!({"began_at": self.began_at.to_string(), "reason": reason}).to_string();
        // Cut last: where the disk is full, what was told before is not gone.
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    }
}

/// Makes the place of a backup, and says in it that it is none yet.
pub(super) fn make(place: &Path) -> io::Result<()> {
    fs::create_dir(place)?;
    File::create(place.join(MARK)).map(drop)
}

/// From now on it is a backup.
pub(super) fn finish(place: &Path) -> io::Result<()> {
    fs::remove_file(place.join(MARK))
}

/// Removes what an attempt has made. What makes it whole goes first, and the mark last, so that whoever is broken off leaves
/// what the next attempt removes.
pub(super) fn remove(place: &Path) -> io::Result<()> {
    remove_by(place, |it| if fs::symlink_metadata(it)?.is_dir() { fs::remove_dir_all(it) } else { fs::remove_file(it) })
}

fn remove_by(place: &Path, mut removes: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let manifest = place.join(MANIFEST);
    if manifest.exists() {
        removes(&manifest)?;
    }
    let entries: Vec<PathBuf> = fs::read_dir(place)?.map(|it| it.map(|it| it.path())).collect::<io::Result<_>>()?;
    let mark = place.join(MARK);
    entries.iter().filter(|it| **it != mark).try_for_each(|it| removes(it))?;
    if mark.exists() {
        removes(&mark)?;
    }
    fs::remove_dir(place)
}

/// Whether an attempt has made this. One that was broken off at once has left nothing in it.
pub(super) fn is_left_over(place: &Path) -> bool {
    let is_empty = || fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none());
    place.join(MARK).exists() || is_empty()
}

/// The attempts beside the backups, as they are listed: the oldest first.
pub(super) fn unfinished(backups: &Path) -> Vec<Value> {
    let files = fs::read_dir(backups.join(FOLDER)).into_iter().flatten().flatten();
    let mut all: Vec<Value> = files
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let is_at_it = File::open(entry.path()).ok()?.try_lock_shared().is_err();
            let told: Value = serde_json::from_str(&fs::read_to_string(entry.path()).ok()?).unwrap_or_default();
            let place = backups.join(&name).display().to_string();
            let mut item = json!({"name": name, "place": place, "state": "running", "began_at": told["began_at"]});
            if !is_at_it {
                item["state"] = "failed".into();
                let untold = "it was broken off: whoever took it has ended";
                item["reason"] = told["reason"].as_str().unwrap_or(untold).into();
            }
            Some(item)
        })
        .collect();
    all.sort_by_key(|item| item["began_at"].as_str().unwrap_or_default().to_owned());
    all
}

/// Whether somebody is at one.
pub(super) fn is_any_running(backups: &Path) -> bool {
    unfinished(backups).iter().any(|item| item["state"] == "running")
}

fn forget_oldest(backups: &Path) {
    let mut all = unfinished(backups);
    all.retain(|item| item["state"] == "failed");
    for old in all.iter().rev().skip(KEPT_MAX).filter_map(|item| item["name"].as_str()) {
        let _gone_already = fs::remove_file(backups.join(FOLDER).join(old));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_running_until_whoever_is_at_it_says_why_not_or_ends() {
        let backups = std::env::temp_dir().join(format!("pim-xtask-attempts-{}", std::process::id()));
        let begin = || Attempt::begin(&backups, "one", |_| false).unwrap();
        // A process that another test is starting has every file open for a moment.
        let begin_soon = || {
            (0..1_000).find_map(|_| {
                begin().or_else(|| {
                    crate::shell::pause();
                    None
                })
            })
        };
        let listed = || unfinished(&backups).into_iter().map(|it| (it["state"].clone(), it["reason"].clone())).next();
        let attempt = begin().expect("nobody is at it");
        assert_eq!(listed(), Some((json!("running"), Value::Null)));
        assert!(begin().is_none(), "somebody is at it");
        fs::create_dir(backups.join("one")).unwrap();
        drop(attempt);
        let is_failed = |_: &i32| {
            crate::shell::pause();
            listed().is_some_and(|it| it.0 == "failed")
        };
        assert!((0..1_000).any(|turn| is_failed(&turn)));
        let attempt = begin_soon().expect("nobody is at it any more");
        assert!(!backups.join("one").exists(), "what was left of it goes");
        drop(attempt.failed(anyhow::anyhow!("the disk is full")));
        drop(attempt);
        let told = Some((json!("failed"), json!("the disk is full")));
        assert!((0..1_000).any(|_| {
            crate::shell::pause();
            listed() == told
        }));
        begin_soon().expect("it is tried again").end();
        assert_eq!(listed(), None);
        fs::remove_dir_all(backups).unwrap();
    }

    /// Guard: a folder of somebody's own stays, however often a backup of its name is asked for.
    #[test]
    fn only_what_an_attempt_has_made_goes_with_it() {
        let backups = std::env::temp_dir().join(format!("pim-xtask-somebody-s-{}", std::process::id()));
        let (one, theirs) = (backups.join("one"), backups.join("one/theirs"));
        fs::create_dir_all(&one).unwrap();
        fs::write(&theirs, "years of work").unwrap();
        for name in ["one", "two"] {
            let began = Attempt::begin(&backups, name, |_| false).unwrap().expect("nobody is at it");
            drop(began.failed(anyhow::anyhow!("one is there already")));
        }
        make(&backups.join("two")).unwrap();
        fs::write(backups.join("two/base"), "half").unwrap();
        // A process that another test is starting has every file open for a moment.
        for name in ["one", "two"] {
            let began = (0..1_000).find_map(|_| {
                crate::shell::pause();
                Attempt::begin(&backups, name, |_| false).unwrap()
            });
            began.expect("nobody is at it any more");
        }
        assert!(theirs.exists() && !is_left_over(&one), "it is somebody's own");
        assert!(!backups.join("two").exists(), "what was left of it goes");
        fs::remove_dir_all(backups).unwrap();
    }

    /// Guard: what is removed half is neither whole nor somebody's own, wherever its removal was broken off.
    #[test]
    fn a_removal_that_was_broken_off_is_gone_on_with() {
        let place = std::env::temp_dir().join(format!("pim-xtask-removal-{}", std::process::id()));
        for broken_off_at in 0..5 {
            make(&place).unwrap();
            for made in [MANIFEST, "data/log", "servers/base", "data.part/log"] {
                let made = place.join(made);
                fs::create_dir_all(made.parent().unwrap()).unwrap();
                fs::write(made, "half").unwrap();
            }
            let mut left = broken_off_at;
            let broken_off = remove_by(&place, |it| {
                if left == 0 {
                    return Err(io::Error::other("the machine stops"));
                }
                left -= 1;
                if it.is_dir() { fs::remove_dir_all(it) } else { fs::remove_file(it) }
            });
            broken_off.expect_err("is broken off");
            assert!(is_left_over(&place), "somebody's own, at step {broken_off_at}");
            assert_eq!(place.join(MANIFEST).exists(), broken_off_at == 0, "whole, at step {broken_off_at}");
            remove(&place).expect("goes on");
            assert!(!place.exists());
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        assert!(is_name("before-the-drill_2.1"));
        assert!(["", "..", "a/b", ".attempts", "A"].iter().all(|name| !is_name(name)));
    }
}
