//! What has been revoked: in bounded memory, and in a file of the data directory, which a restart reads.
//!
//! Signing keys outlive a restart, and with them every access token; so must the word that ends one.

mod file;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moka::future::Cache;
use pim_core::problem::{self, Problem};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::file::Reader;
pub use self::file::RevocationError;
use super::session::{REVOKED_FOR, bounded, digest};
use crate::rig::Failure;

/// Most revocations of each kind, in memory and in the file; of more, the newest are kept.
pub(super) const REVOKED_MAX: u64 = 100_000;

/// What is no good any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ended {
    /// One session.
    Session(Uuid),
    /// Every session of a subject that began when the word came or before. By digest: so its length is known, and no name is kept.
    Subject([u8; 32]),
}

impl Ended {
    /// Of whoever signs in as this subject.
    pub(super) fn subject(subject: &str) -> Self {
        Self::Subject(digest(subject))
    }
}

/// A revocation, and the second in which it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Revoked {
    what: Ended,
    at: i64,
}

/// The revocations that are in force. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Revocations {
    sessions: Cache<Uuid, ()>,
    /// Sessions that began in this second or before are no good.
    subjects: Cache<[u8; 32], i64>,
    folder: PathBuf,
    reader: Arc<Mutex<Reader>>,
}

impl Revocations {
    /// Of a data directory whose keys are there already; what is over by now goes from the file, if that can be written.
    pub(super) fn open(data_dir: &Path, now: i64, entries_max: u64) -> Result<Self, RevocationError> {
        let folder = file::folder_of(data_dir);
        file::tidy(&folder, over_before(now))?;
        Ok(Self {
            sessions: bounded(entries_max, REVOKED_FOR),
            subjects: bounded(entries_max, REVOKED_FOR),
            reader: Arc::new(Mutex::new(Reader::of(&folder))),
            folder,
        })
    }

    /// Ends them. Whoever gets no error may say so: a restart will know, after a power cut too. Whoever gets one may say that
    /// they have ended for as long as this program runs.
    pub(super) async fn end(&self, ended: &[Ended], now: i64) -> Result<(), RevocationError> {
        let revoked: Vec<_> = ended.iter().map(|what| Revoked { what: *what, at: now }).collect();
        for one in &revoked {
            self.take(one).await;
        }
        let folder = self.folder.clone();
        let kept = tokio::task::spawn_blocking(move || file::append(&folder, &revoked, over_before(now))).await;
        kept.unwrap_or_else(|stopped| Err(RevocationError::stopped(&self.folder, stopped)))
    }

    /// Whether this session of a subject, which began in this second, has been ended, here or by another broker of this folder:
    /// where one is replaced, the last word may have gone to the one that leaves.
    pub(super) async fn have_ended(&self, sid: Uuid, subject: &str, began_at: i64) -> Result<bool, RevocationError> {
        self.follow().await?;
        Ok(self.were_heard_to_end(sid, subject, began_at).await)
    }

    /// The same, by what was there at the last look.
    pub(super) async fn were_heard_to_end(&self, sid: Uuid, subject: &str, began_at: i64) -> bool {
        let before = self.subjects.get(&digest(subject)).await;
        self.sessions.get(&sid).await.is_some() || before.is_some_and(|before| began_at <= before)
    }

    /// Looks what others have ended.
    pub(super) async fn follow(&self) -> Result<(), RevocationError> {
        // Held until all is taken: whoever comes meanwhile must not look before that.
        let mut reader = self.reader.lock().await;
        let Some(news) = reader.news()? else { return Ok(()) };
        for revoked in news.revoked() {
            self.take(revoked).await;
        }
        // Not before: a caller who hangs up in between would take them from all others.
        reader.go_on_after(&news);
        Ok(())
    }

    async fn take(&self, revoked: &Revoked) {
        match revoked.what {
            Ended::Session(sid) => self.sessions.insert(sid, ()).await,
            Ended::Subject(subject) => {
                let (at, entry) = (revoked.at, self.subjects.entry(subject));
                // The latest word counts, in whatever order they are heard.
                entry.and_upsert_with(|held| async move { held.map_or(at, |held| held.into_value().max(at)) }).await;
            }
        }
    }

    #[cfg(test)]
    pub(super) async fn settle(&self) {
        self.sessions.run_pending_tasks().await;
        self.subjects.run_pending_tasks().await;
    }
}

impl From<RevocationError> for Failure {
    /// Nobody passes while it cannot be said who has been ended.
    fn from(error: RevocationError) -> Self {
        pim_core::error!("broker.revocations_unread", os_error = error.os_error());
        Problem::of(problem::UNAVAILABLE).detail("what has been revoked cannot be read").retry_after_secs(1).into()
    }
}

/// Whatever was revoked before that is of no token that is good any more.
fn over_before(now: i64) -> i64 {
    now.saturating_sub(i64::try_from(REVOKED_FOR.as_secs()).unwrap_or(i64::MAX))
}
