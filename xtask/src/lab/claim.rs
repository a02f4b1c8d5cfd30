//! Claims of a lab's folder, and of the servers of one shard: who starts, stops or changes a lab or its servers, or copies them,
//! is not disturbed meanwhile.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{journal, servers};
use crate::exit::Failure;

/// Where the kernel tells who holds which lock.
const LOCKS: &str = "/proc/locks";

/// A claim, for as long as the value lives.
#[derive(Debug)]
pub(super) struct Claim {
    _locked: File,
}

/// Keeps everybody else from the folder. None where there is no folder, and nothing to stop.
pub(super) fn alone() -> Result<Option<Claim>> {
    claim(File::try_lock)
}

/// Keeps away whoever starts, stops or changes something, and not who copies as well, or is at the servers of a shard.
pub(super) fn shared() -> Result<Option<Claim>> {
    claim(File::try_lock_shared)
}

/// What of the servers of a shard is claimed: the end of a file's name, and what whoever has it is at.
type Part = (&'static str, &'static str);

/// Which server is the primary, and what may be lost with it.
const ROLE: Part = ("lock", "is promoting or degrading");
/// What is on the other one.
const COPY: Part = ("copy.lock", "is promoting, or copying the primary of,");

/// Keeps everybody else from the servers of one shard. The other shards are free: to copy one may take hours, and the next one
/// may lose its primary meanwhile.
pub(super) fn to_promote(shard: u16) -> Result<Vec<Claim>> {
    of_shard(shard, &[ROLE, COPY])
}

/// Keeps away whoever promotes or degrades.
pub(super) fn to_degrade(shard: u16) -> Result<Vec<Claim>> {
    of_shard(shard, &[ROLE])
}

/// Keeps away whoever promotes or copies. Commits may wait for the copy, and whoever cannot may degrade the shard.
pub(super) fn to_copy(shard: u16) -> Result<Vec<Claim>> {
    of_shard(shard, &[COPY])
}

/// Keeps away whoever starts, stops or changes something in the folder as well.
fn of_shard(shard: u16, parts: &[Part]) -> Result<Vec<Claim>> {
    let mut claims: Vec<Claim> = shared()?.into_iter().collect();
    let place = servers::place()?;
    if !place.is_dir() {
        return Ok(claims);
    }
    for (end, what) in parts {
        // Goes with the servers. Their own folders come and go with each copy.
        let path = place.join(format!("shard-{shard}.{end}"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        claims.push(locked(file, &place, &format!("{what} shard {shard}"), File::try_lock)?);
    }
    Ok(claims)
}

/// The folder itself is locked, so that nothing is left in it.
fn claim(lock: impl FnOnce(&File) -> Result<(), TryLockError>) -> Result<Option<Claim>> {
    let folder = journal::folder();
    let file = match File::open(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("cannot open {}", folder.display()))?,
    };
    locked(file, &folder, "is starting or stopping a lab, or changing or copying its servers,", lock).map(Some)
}

fn locked(
    file: File,
    folder: &Path,
    what: &str,
    lock: impl FnOnce(&File) -> Result<(), TryLockError>,
) -> Result<Claim> {
    let shown = folder.display();
    match lock(&file) {
        Ok(()) => Ok(Claim { _locked: file }),
        Err(TryLockError::WouldBlock) => {
            let who = holder_of(&file).map_or_else(|| "somebody".to_owned(), |pid| format!("process {pid}"));
            Err(Failure::Precondition.because(format!("{who} {what} in {shown}: wait until that has ended")))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {shown}")),
    }
}

/// Who has it locked, where that can be told.
fn holder_of(file: &File) -> Option<u32> {
    let it = file.metadata().ok()?;
    holder_in(&fs::read_to_string(LOCKS).ok()?, it.dev(), it.ino())
}

/// `3: FLOCK  ADVISORY  WRITE 2817 fe:00:10948233 0 EOF`; who only waits has an arrow behind the number. Of some file systems the
/// device is another than a file's own: the number of the file alone counts where nobody else has locked one of that number.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let lock_of = |line| {
        let fields: Vec<&str> = str::split_whitespace(line).collect();
        let &[_, "FLOCK", _, _, pid, place, ..] = fields.as_slice() else { return None };
        let (device, file) = place.rsplit_once(':')?;
        (file.parse() == Ok(inode)).then_some((device.to_owned(), pid.parse::<u32>().ok()?))
    };
    let mut locks: Vec<(String, u32)> = locks.lines().filter_map(lock_of).collect();
    let device = shown(device);
    if locks.len() > 1 || locks.iter().any(|it| it.0 == device) {
        locks.retain(|it| it.0 == device);
    }
    // One of another namespace has no number here.
    locks.into_iter().map(|it| it.1).find(|pid| *pid > 0)
}

/// A device as the kernel shows it, from the number that a program has of it.
fn shown(device: u64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    format!("{major:02x}:{minor:02x}")
}

#[cfg(test)]
mod tests {
    use super::{holder_in, shown};

    #[test]
    fn who_holds_a_lock_is_told_from_who_waits_for_it_and_from_others() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:00:17 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 fe:00:7 0 EOF\n4: FLOCK  ADVISORY  READ 14 fe:00:7 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 0 fe:00:8 0 EOF\n";
        assert_eq!([7, 17, 8, 9].map(|inode| holder_in(locks, 0xfe00, inode)), [Some(14), Some(12), None, None]);
    }

    /// Guard: whoever is named may be ended by who reads it.
    #[test]
    fn who_has_a_file_of_that_number_on_another_disk_is_not_named() {
        let locks = "1: FLOCK  ADVISORY  WRITE 11 00:2e:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:100:7 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 00:2e:17 0 EOF\n";
        assert_eq!([0x2e, 0x10_0800, 0x2f].map(|device| holder_in(locks, device, 7)), [Some(11), Some(12), None]);
        assert_eq!(holder_in(locks, 0x2f, 17), Some(13), "there is no other");
        assert_eq!([0xfe00, 0x10_0800, 0x2e].map(shown), ["fe:00", "08:100", "00:2e"]);
    }
}
