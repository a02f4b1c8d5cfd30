//! The file of revocations: lines that are appended and synced, and read by every broker of the folder.
//!
//! Whoever writes has the folder's lock. Whoever reads has none, and takes whole lines alone. It lies beside the signing keys
//! and is backed up with them: where those are put back, their tokens are, and so is what had ended of them.

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::from_utf8;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::{Ended, REVOKED_MAX, Revoked};

pub(super) const NAME: &str = "revoked.log";
/// How large it gets before it is tidied by whoever appends. What is kept then, at most, is less than half of it.
pub(super) const BYTES_MAX: u64 = 32 << 20;
/// How often the folder is asked for, and how long it is waited for in between: two seconds in all, and a write takes milliseconds.
const LOCK_TRIES: usize = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// As large a file is not read.
const READ_MAX: u64 = 2 * BYTES_MAX;

/// The file of revocations cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationError {
    /// The file system refuses.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No broker writes as much.
    #[error("{} is larger than a broker makes it: is it a file of revocations?", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
}

impl RevocationError {
    /// Whoever was to write it is gone.
    pub(super) fn stopped(folder: &Path, stopped: tokio::task::JoinError) -> Self {
        failed("append to", &folder.join(NAME))(io::Error::other(stopped))
    }

    /// What we were doing, for a log line.
    fn doing(&self) -> &'static str {
        match self {
            Self::Io { doing, .. } => doing,
            Self::TooLarge { .. } => "read",
        }
    }

    /// What the system says, for a log line.
    pub(in crate::broker) fn os_error(&self) -> Option<i64> {
        match self {
            Self::Io { source, .. } => source.raw_os_error().map(i64::from),
            Self::TooLarge { .. } => None,
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RevocationError {
    move |source| RevocationError::Io { doing, path: path.to_path_buf(), source }
}

/// Where the file lies in a data directory.
pub(super) fn folder_of(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}

impl Revoked {
    /// With a line's end on either side, so that nothing is joined to a line that was torn. What can be torn off of the rest is
    /// never whole without it: the number that may be short comes first.
    fn line(&self) -> String {
        match self.what {
            Ended::Session(sid) => format!("\n{} session {sid}\n", self.at),
            Ended::Subject(digest) => format!("\n{} subject {}\n", self.at, URL_SAFE_NO_PAD.encode(digest)),
        }
    }

    fn of(line: &[u8]) -> Option<Self> {
        let mut words = from_utf8(line).ok()?.split(' ');
        let at = words.next()?.parse().ok()?;
        let what = match (words.next()?, words.next()?, words.next()) {
            ("session", sid, None) => Ended::Session(Uuid::try_parse(sid).ok()?),
            ("subject", digest, None) => Ended::Subject(URL_SAFE_NO_PAD.decode(digest).ok()?.try_into().ok()?),
            _ => return None,
        };
        Some(Self { what, at })
    }
}

/// Lines that are none are of whoever was cut off, and were acknowledged to nobody.
fn revoked_in(lines: &[u8]) -> Vec<Revoked> {
    lines.split(|byte| *byte == b'\n').filter_map(Revoked::of).collect()
}

/// The folder, and nobody else who writes in it. Whoever has it may have been stopped in the middle, and is not waited for without
/// end.
#[expect(
    clippy::disallowed_methods,
    reason = "of a thread that may block, or of a broker that starts and serves nobody yet"
)]
fn locked(folder: &Path) -> Result<File, RevocationError> {
    let lock = File::open(folder).map_err(failed("open", folder))?;
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(failed("lock", folder)(error)),
        }
    }
    Err(failed("lock", folder)(io::ErrorKind::TimedOut.into()))
}

/// Adds revocations; they are on the disk when this returns.
pub(super) fn append(folder: &Path, revoked: &[Revoked], over_before: i64) -> Result<(), RevocationError> {
    let lock = locked(folder)?;
    let path = folder.join(NAME);
    let lines: String = revoked.iter().map(Revoked::line).collect();
    make_room(folder, &lock, lines.len() as u64, over_before)?;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let mut file = file.map_err(failed("open", &path))?;
    file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).map_err(failed("append to", &path))?;
    // The name too: it may be new.
    lock.sync_all().map_err(failed("sync", folder))
}

/// Tidies a file that has grown large. Where that cannot be done it may grow on, for as long as it can be read.
fn make_room(folder: &Path, lock: &File, more: u64, over_before: i64) -> Result<(), RevocationError> {
    let there = fs::metadata(folder.join(NAME)).map_or(0, |there| there.len());
    if there <= BYTES_MAX {
        return Ok(());
    }
    match found(folder).and_then(|found| replace(folder, lock, &found, over_before)) {
        Err(error) if there + more < READ_MAX => {
            untidied(&error);
            Ok(())
        }
        tidied => tidied,
    }
}

/// Takes out what is over, for a broker that starts. It need not succeed: of what is over there is no token.
///
/// # Errors
/// When what is there cannot be read.
pub(super) fn tidy(folder: &Path, over_before: i64) -> Result<(), RevocationError> {
    let lock = locked(folder);
    let found = found(folder)?;
    let tidied = lock.and_then(|lock| replace(folder, &lock, &found, over_before));
    tidied.unwrap_or_else(|error| untidied(&error));
    Ok(())
}

/// The file stays as it is, and is good.
fn untidied(error: &RevocationError) {
    pim_core::error!("broker.revocations_untidied", doing = error.doing(), os_error = error.os_error());
}

/// What is in the file, if there is one.
fn found(folder: &Path) -> Result<Vec<u8>, RevocationError> {
    let path = folder.join(NAME);
    match File::open(&path) {
        Ok(file) => read(&file, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("open", &path)(error)),
    }
}

/// Puts a file in its place that has of what was found what counts.
fn replace(folder: &Path, lock: &File, found: &[u8], over_before: i64) -> Result<(), RevocationError> {
    let lines: String = kept(revoked_in(found), over_before, REVOKED_MAX).iter().map(Revoked::line).collect();
    if lines.as_bytes() == found {
        return Ok(());
    }
    let path = folder.join(NAME);
    let fresh = path.with_extension("new");
    let made = make(&fresh, &lines).and_then(|()| fs::rename(&fresh, &path).map_err(failed("replace", &path)));
    if made.is_err() {
        // What was begun takes the room that the next revocation needs.
        let _leftover = fs::remove_file(&fresh);
    }
    made.and_then(|()| lock.sync_all().map_err(failed("sync", folder)))
}

fn make(fresh: &Path, lines: &str) -> Result<(), RevocationError> {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(fresh);
    let mut file = opened.map_err(failed("make", fresh))?;
    file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", fresh))
}

fn read(file: &File, path: &Path) -> Result<Vec<u8>, RevocationError> {
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 == READ_MAX {
        return Err(RevocationError::TooLarge { path: path.to_path_buf() });
    }
    Ok(bytes)
}

/// The latest word on each that is not over, oldest first: as many of each kind as there may be.
fn kept(mut revoked: Vec<Revoked>, over_before: i64, most: u64) -> Vec<Revoked> {
    revoked.sort_by_key(|one| one.at);
    let (mut seen, mut sessions, mut subjects) = (HashSet::new(), 0, 0);
    let mut kept: Vec<_> = revoked.into_iter().rev().take_while(|one| one.at >= over_before).collect();
    kept.retain(|one| {
        let room = match one.what {
            Ended::Session(_) => &mut sessions,
            Ended::Subject(_) => &mut subjects,
        };
        let stays = *room < most && seen.insert(one.what);
        *room += u64::from(stays);
        stays
    });
    kept.reverse();
    kept
}

/// What came since the last look.
#[derive(Debug)]
pub(super) struct News {
    revoked: Vec<Revoked>,
    bytes: u64,
}

impl News {
    pub(super) fn revoked(&self) -> &[Revoked] {
        &self.revoked
    }
}

/// Reads the file on and on, and a new one from its beginning.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    held: Option<Held>,
}

/// A file that stays open, so that no other one can have its number.
#[derive(Debug)]
struct Held {
    file: File,
    number: (u64, u64),
    read: u64,
}

impl Reader {
    pub(super) fn of(folder: &Path) -> Self {
        Self { path: folder.join(NAME), held: None }
    }

    /// One look at the file's length where there is nothing new, which is nearly always.
    pub(super) fn news(&mut self) -> Result<Option<News>, RevocationError> {
        let there = match fs::metadata(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("look at", &self.path)(error)),
        };
        let held = match self.held.take().filter(|held| held.number == number(&there) && held.read <= there.len()) {
            Some(held) => held,
            None => self.opened()?,
        };
        let held = self.held.insert(held);
        if held.read == there.len() {
            return Ok(None);
        }
        (&held.file).seek(SeekFrom::Start(held.read)).map_err(failed("read", &self.path))?;
        let mut lines = read(&held.file, &self.path)?;
        lines.truncate(lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1));
        Ok(Some(News { revoked: revoked_in(&lines), bytes: lines.len() as u64 }))
    }

    /// They have been taken.
    pub(super) fn go_on_after(&mut self, news: &News) {
        if let Some(held) = &mut self.held {
            held.read += news.bytes;
        }
    }

    fn opened(&self) -> Result<Held, RevocationError> {
        let opened = File::open(&self.path).and_then(|file| Ok((number(&file.metadata()?), file)));
        let (number, file) = opened.map_err(failed("open", &self.path))?;
        Ok(Held { file, number, read: 0 })
    }
}

fn number(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(at: i64) -> Revoked {
        Revoked { what: Ended::Session(Uuid::new_v4()), at }
    }

    #[test]
    fn a_line_says_what_was_revoked() {
        for revoked in [session(1_800_000_000), Revoked { what: Ended::subject("somebody"), at: -1 }] {
            let line = revoked.line();
            assert_eq!(revoked_in(line.as_bytes()), [revoked]);
            // However much of it was written: all of it or nothing.
            for cut in 0..line.len() - 1 {
                assert_eq!(revoked_in(&line.as_bytes()[..cut]), [], "{cut} bytes of {line:?}");
            }
            assert!(!line.contains("somebody"));
        }
    }

    #[test]
    fn the_newest_that_are_not_over_are_kept_and_each_once() {
        let subject = |at| Revoked { what: Ended::subject("somebody"), at };
        let (over, old, new) = (session(9), session(10), session(12));
        let all = vec![new, subject(12), over, old, subject(11), new];
        assert_eq!(kept(all.clone(), 10, 9), [old, subject(12), new]);
        assert_eq!(kept(all, 10, 1), [subject(12), new]);
    }
}
