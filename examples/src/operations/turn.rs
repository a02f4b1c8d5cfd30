//! What one operation at a time may do, of all programs of a data directory: a file is locked for as long as somebody does it, and
//! says whose operation that is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use pim_core::problem::{self, Problem, ProblemType};

use crate::ids::OperationId;
use crate::rig::Failure;

/// The turn of an operation; the next one's begins when it is dropped, also by the end of the process.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct Turn {
    locked: File,
}

/// A turn that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// Another operation has it: which, unless it has just begun.
    #[error("another operation is at it")]
    Taken(Option<OperationId>),
    /// The data directory.
    #[error("lock a file of the data directory")]
    Io(#[from] io::Error),
}

impl TurnError {
    /// Why it is not done now: by this name when another one is at it, and which. What goes on when its caller has gone would
    /// otherwise be begun by every new key.
    #[must_use]
    pub fn into_failure(self, taken: ProblemType) -> Failure {
        let Self::Taken(by) = self else {
            return Problem::of(problem::UNAVAILABLE).detail("the data directory cannot be locked").into();
        };
        let refused = Problem::of(taken).retry_after_secs(1);
        match by {
            Some(id) => refused.detail(format!("operation {id} is at it, and listed until it is done")),
            None => refused,
        }
        .with("operation", by.map(|id| id.to_string()))
        .into()
    }
}

impl Turn {
    /// Takes the turn to do what is called so.
    ///
    /// # Errors
    /// [`TurnError::Taken`] while another operation has it.
    pub fn take(data_dir: &Path, what: &str, operation: OperationId) -> Result<Self, TurnError> {
        let path = data_dir.join(format!("{what}.lock"));
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TurnError::Taken(told(&mut file))),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // One that was killed has left its name.
        file.set_len(0)?;
        file.write_all(operation.to_string().as_bytes())?;
        Ok(Self { locked: file })
    }
}

impl Drop for Turn {
    /// Whoever comes between the next one's lock and its name is not told of this one.
    fn drop(&mut self) {
        let _as_after_a_kill = self.locked.set_len(0);
    }
}

fn told(file: &mut File) -> Option<OperationId> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use pim_core::id::Id;

    use super::*;

    #[test]
    fn a_turn_is_one_operations_until_it_is_over() {
        let folder = std::env::temp_dir().join(format!("pim-turns-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let [first, second] = [b"first", b"other"].map(|name| Id::derive(name, 0));
        let take = |what, operation| match Turn::take(&folder, what, operation) {
            Ok(turn) => Ok(turn),
            Err(TurnError::Taken(by)) => Err(by),
            Err(error) => panic!("{error}"),
        };
        let turn = take("audit.verify", first).unwrap();
        assert_eq!(take("audit.verify", second).unwrap_err(), Some(first));
        let _another = take("something.else", second).unwrap();
        drop(turn);
        // As one that has just begun: locked, and not named yet.
        let begun = File::open(folder.join("audit.verify.lock")).unwrap();
        begun.lock().unwrap();
        assert_eq!(take("audit.verify", second).unwrap_err(), None, "the one before is over");
        drop(begun);
        // A process that another test is starting has every file open for a moment.
        let soon = (0..1_000_000).find_map(|_| take("audit.verify", second).ok());
        let _second = soon.expect("it is over");
        assert_eq!(take("audit.verify", first).unwrap_err(), Some(second));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
