//! Claims of a lab's folder: who starts, stops or changes a lab or its servers, or copies them, is not disturbed meanwhile.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};

use super::journal;
use crate::exit::Failure;

/// Where the kernel tells who holds which lock.
const LOCKS: &str = "/proc/locks";

/// A claim, for as long as the value lives. The folder itself is locked, so that nothing is left in it.
#[derive(Debug)]
pub(super) struct Claim {
    _locked: File,
}

/// Keeps everybody else from the folder. None where there is no folder, and nothing to stop.
pub(super) fn alone() -> Result<Option<Claim>> {
    claim(File::try_lock)
}

/// Keeps away whoever starts, stops or changes something, and not who copies as well.
pub(super) fn shared() -> Result<Option<Claim>> {
    claim(File::try_lock_shared)
}

fn claim(lock: impl FnOnce(&File) -> Result<(), TryLockError>) -> Result<Option<Claim>> {
    let folder = journal::folder();
    let shown = folder.display();
    let file = match File::open(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("cannot open {shown}"))?,
    };
    match lock(&file) {
        Ok(()) => Ok(Some(Claim { _locked: file })),
        Err(TryLockError::WouldBlock) => {
            let who = holder_of(&file).map_or_else(|| "somebody".to_owned(), |pid| format!("process {pid}"));
            let what = "is starting or stopping a lab, or changing or copying its servers,";
            Err(Failure::Precondition.because(format!("{who} {what} in {shown}: wait until that has ended")))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {shown}")),
    }
}

/// Who has it locked, where that can be told.
fn holder_of(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino();
    holder_in(&fs::read_to_string(LOCKS).ok()?, inode)
}

/// `3: FLOCK  ADVISORY  WRITE 2817 fe:00:10948233 0 EOF`; who only waits has an arrow behind the number. Devices are left
/// alone: of some file systems they are others than a file's own.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[_, "FLOCK", _, _, pid, place, ..] = fields.as_slice() else { return None };
        let is_it = place.rsplit(':').next()?.parse() == Ok(inode);
        // One of another namespace has no number here.
        pid.parse().ok().filter(|pid| is_it && *pid > 0)
    };
    locks.lines().find_map(holder)
}

#[cfg(test)]
mod tests {
    use super::holder_in;

    #[test]
    fn who_holds_a_lock_is_told_from_who_waits_for_it_and_from_others() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:00:17 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 fe:00:7 0 EOF\n4: FLOCK  ADVISORY  READ 14 fe:00:7 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 0 fe:00:8 0 EOF\n";
        assert_eq!([7, 17, 8, 9].map(|inode| holder_in(locks, inode)), [Some(14), Some(12), None, None]);
    }
}
