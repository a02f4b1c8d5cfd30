//! Making a server from a base backup and the log behind it, up to an instant or as far as the log reaches.

use std::fs;
use std::path::Path;

use super::{LocalError, LocalServer};
use crate::programs::Programs;
use crate::wait::pause;

/// Why a server was not recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// A program of PostgreSQL, or the server's folder.
    #[error(transparent)]
    Server(#[from] LocalError),
    /// The log ends before the instant.
    #[error("the archive of {server} ends before that instant: its last commit is of {until}")]
    Beyond {
        /// Which server.
        server: String,
        /// What it reaches.
        until: String,
    },
    /// Recovery ended although the archive goes on.
    #[error("the archive of {server} is damaged at or behind segment {segment}")]
    Damaged {
        /// Which server.
        server: String,
        /// The last segment that was read.
        segment: String,
    },
}

/// What a server is recovered from, and how far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// The base backup.
    pub(crate) base: &'a Path,
    /// The log behind it; none for what the base backup has itself.
    pub(crate) archive: Option<&'a Path>,
    /// An instant as the server reads it; none for as far as the log reaches.
    pub(crate) until: Option<&'a str>,
}

impl LocalServer {
    /// Recovers a server into a folder that does not exist yet, and starts it as a primary that nobody follows and that
    /// archives nothing. Returns the instant of its last commit, in microseconds, if it has replayed any.
    pub(crate) fn recover(
        programs: &Programs,
        folder: &Path,
        name: &str,
        password: &str,
        source: Source<'_>,
    ) -> Result<(Self, Option<i64>), RecoveryError> {
        let mut server = Self::in_folder(programs, folder, name, password)?;
        let mut copy = programs.command("/bin/cp");
        server.run_apart(copy.args(["-R", "--preserve=mode"]).arg(source.base).arg(server.data()))?;
        // Its own standby and its own archive come later; those of the server that it was are none of its business.
        let mut settings =
            vec![("synchronous_standby_names", ""), ("archive_command", "true"), ("recovery_target_action", "promote")];
        let fetch = source.archive.map(|archive| format!("cp \"{}/%f\" \"%p\"", archive.display()));
        settings.push(("restore_command", fetch.as_deref().unwrap_or("false")));
        settings.push(("recovery_target_time", source.until.unwrap_or_default()));
        server.append(&settings)?;
        server.write(&server.data().join("recovery.signal"), "")?;
        if server.recover_on_free_port().is_err() {
            return Err(server.why_it_ended(source.archive));
        }
        server.until_promoted(source.archive)?;
        let asked = "SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint";
        let reached = server.sql("postgres", asked)?.parse().ok();
        server.append(&[("restore_command", ""), ("recovery_target_time", "")])?;
        Ok((server, reached))
    }

    /// As long as it takes: a long log takes long, and a server that cannot go on ends.
    fn until_promoted(&self, archive: Option<&Path>) -> Result<(), RecoveryError> {
        loop {
            match self.sql("postgres", "SELECT pg_is_in_recovery()") {
                Ok(answer) if answer == "f" => break,
                Err(_) if !self.is_running() => return Err(self.why_it_ended(archive)),
                _ => pause(),
            }
        }
        let log = self.log();
        match archive.and_then(newest).zip(stopped_at(&log)) {
            // Without an instant, a segment that cannot be read looks like the end.
            Some((newest, stopped)) if stopped < newest && !log.contains("recovery stopping") => {
                Err(self.damaged(stopped))
            }
            _ => Ok(()),
        }
    }

    fn why_it_ended(&self, archive: Option<&Path>) -> RecoveryError {
        let log = self.log();
        if log.contains("recovery ended before configured recovery target was reached") {
            let stopped = stopped_at(&log).unwrap_or(0);
            if archive.and_then(newest).is_some_and(|newest| stopped < newest) {
                return self.damaged(stopped);
            }
            let until =
                log.lines().rev().find_map(|line| line.split_once("transaction was at log time ")).map(|it| it.1);
            return RecoveryError::Beyond {
                server: self.name.clone(),
                until: until.unwrap_or("before its base backup").to_owned(),
            };
        }
        let why = self.log_tail();
        LocalError::Program { program: "postgres".to_owned(), folder: self.folder.clone(), why }.into()
    }

    fn damaged(&self, stopped: u64) -> RecoveryError {
        let segment = name_of("", stopped);
        RecoveryError::Damaged { server: self.name.clone(), segment }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

/// Segments of 16 MiB in four GiB, which is what the middle of a segment's name counts.
const SEGMENTS: u64 = 256;
const SEGMENT_BITS: u32 = 24;
/// What the names of a timeline's files begin with, and that of its history.
const TIMELINE_DIGITS: usize = 8;
const HISTORY: &str = ".history";
const HISTORY_LEN: usize = TIMELINE_DIGITS + HISTORY.len();

/// The number of the last segment that was read, from the log's `redo done at 0/5000148`; timelines share the numbers.
fn stopped_at(log: &str) -> Option<u64> {
    let (_, place) = log.lines().rev().find_map(|line| line.split_once("redo done at "))?;
    Some(position_of(place.split_whitespace().next()?)? >> SEGMENT_BITS)
}

/// The number of the segment that has the last byte before a place such as `0/5000148`.
pub(crate) fn last_before(place: &str) -> Option<u64> {
    Some(position_of(place)?.checked_sub(1)? >> SEGMENT_BITS)
}

fn position_of(place: &str) -> Option<u64> {
    let (high, low) = place.split_once('/')?;
    Some((u64::from(u32::from_str_radix(high, 16).ok()?) << 32) + u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// The number of the newest segment of an archive along its latest timeline, which is the one that is recovered. What a
/// primary wrote behind the place where its successor went on is not on it.
fn newest(archive: &Path) -> Option<u64> {
    let histories = names_in(archive).filter(|name| name.len() == HISTORY_LEN && name.ends_with(HISTORY));
    let timelines = segments(archive).into_iter().map(|(_, name)| name).chain(histories);
    let latest = timelines.map(|name| name[..TIMELINE_DIGITS].to_owned()).max()?;
    let (own, before): (Vec<_>, Vec<_>) =
        segments(archive).into_iter().partition(|(_, name)| name.starts_with(&latest));
    let fork = || last_before_fork(&fs::read_to_string(archive.join(latest.clone() + HISTORY)).ok()?);
    let own = own.last().map(|(number, _)| *number);
    // One that has just begun may have none of its own yet.
    own.or_else(|| fork().and_then(|fork| before.iter().map(|(number, _)| *number).filter(|it| *it <= fork).max()))
}

/// The number of the last segment before a timeline began, as its history says: each line has a timeline, and where the next
/// one forks from it.
fn last_before_fork(history: &str) -> Option<u64> {
    let line = history.lines().rev().find(|line| line.starts_with(|it: char| it.is_ascii_digit()))?;
    last_before(line.split_whitespace().nth(1)?)
}

fn names_in(archive: &Path) -> impl Iterator<Item = String> {
    let names = fs::read_dir(archive).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok())
}

/// The whole segments of an archive by number, and within that by timeline.
pub(crate) fn segments(archive: &Path) -> Vec<(u64, String)> {
    let names = names_in(archive);
    let mut found: Vec<_> = names.filter_map(|name| Some((number_of(&name)?, name))).collect();
    found.sort();
    found
}

/// The number of a segment, without its timeline: `000000010000000000000005` is 5.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let part = |range| u64::from_str_radix(&name[range], 16).ok();
    Some(part(8..16)? * SEGMENTS + part(16..24)?)
}

/// The name of a segment on a timeline of eight digits.
pub(crate) fn name_of(timeline: &str, number: u64) -> String {
    format!("{timeline}{:08X}{:08X}", number / SEGMENTS, number % SEGMENTS)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{last_before, name_of, newest, number_of, stopped_at};

    /// Guard: what was lost with a primary is nothing that a recovery should have come to.
    #[test]
    fn the_newest_segment_is_one_of_the_latest_history() {
        let archive = std::env::temp_dir().join(format!("pim-newest-{}", std::process::id()));
        fs::create_dir(&archive).expect("a folder");
        let holds = |name: &str, text: &str| fs::write(archive.join(name), text).expect("writes");
        assert_eq!(newest(&archive), None);
        (3..=9).for_each(|number| holds(&name_of("00000001", number), ""));
        assert_eq!(newest(&archive), Some(9));
        holds("00000002.history", "1\t0/5000148\tno recovery target specified\n");
        assert_eq!(newest(&archive), Some(5), "it goes on in the middle of one");
        holds(&name_of("00000002", 6), "");
        assert_eq!(newest(&archive), Some(6));
        holds("00000003.history", "1\t0/5000148\tno reason\n\n2\t0/7000000\tno reason\n");
        assert_eq!(newest(&archive), Some(6), "it begins with one of its own");
        holds(&name_of("00000003", 7), "");
        assert_eq!(newest(&archive), Some(7));
        fs::remove_dir_all(&archive).expect("goes");
    }

    #[test]
    fn places_in_the_log_are_numbers_of_segments() {
        assert_eq!(number_of("000000020000000100000002"), Some(258));
        assert_eq!(number_of("00000002.history"), None);
        assert_eq!(number_of("000000010000000000000005.partial"), None);
        let log = "LOG:  redo starts at 0/2000028\nLOG:  redo done at 1/2000148 system usage: CPU\nLOG:  later";
        assert_eq!(stopped_at(log), Some(258));
        assert_eq!(stopped_at("nothing"), None);
        assert_eq!(
            (last_before("1/2000148"), last_before("1/2000000"), last_before("0/0")),
            (Some(258), Some(257), None)
        );
        assert_eq!(name_of("00000002", 258), "000000020000000100000002");
    }
}
