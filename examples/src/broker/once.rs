//! What is good once: whoever shows it has what it stands for, and who shows it again is told apart from who makes one up.

use std::time::Duration;

use moka::future::Cache;
use uuid::Uuid;

use super::keyfile::{KeyFileError, random_token};
use super::session::{bounded, digest};

/// Grants by the digest of a random text, so that the text itself is kept nowhere.
#[derive(Clone, Debug)]
pub(super) struct Once<G: Clone + Send + Sync + 'static> {
    waiting: Cache<[u8; 32], (Uuid, G)>,
    used: Cache<[u8; 32], Uuid>,
}

/// What a text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown<G> {
    /// Good, until now.
    Good(G),
    /// It was used before: one of two has stolen it, and its session with it (RFC 9700, 4.14.2; RFC 6749, 4.1.2).
    Again(Uuid),
    /// Nobody knows it, or it is too old.
    Unknown,
}

impl<G: Clone + Send + Sync + 'static> Once<G> {
    /// Room for so many that wait and as many that were used, each for so long.
    pub(super) fn of(entries_max: u64, lifetime: Duration) -> Self {
        Self { waiting: bounded(entries_max, lifetime), used: bounded(entries_max, lifetime) }
    }

    /// The text that stands for a grant of a session.
    pub(super) async fn issue(&self, sid: Uuid, grant: G) -> Result<String, KeyFileError> {
        let text = random_token()?;
        self.waiting.insert(digest(&text), (sid, grant)).await;
        Ok(text)
    }

    /// Uses it up.
    pub(super) async fn take(&self, text: &str) -> Shown<G> {
        let text = digest(text);
        if let Some((sid, _)) = self.waiting.get(&text).await {
            // Noted before it goes, so that of two who come at once the second is seen.
            self.used.insert(text, sid).await;
            if let Some((_, grant)) = self.waiting.remove(&text).await {
                return Shown::Good(grant);
            }
        }
        self.used.get(&text).await.map_or(Shown::Unknown, Shown::Again)
    }

    /// Forgets that it was used: its session has been ended, and nobody has it ended again and again.
    pub(super) async fn forget(&self, text: &str) {
        self.used.remove(&digest(text)).await;
    }

    #[cfg(test)]
    pub(super) async fn waiting(&self) -> u64 {
        self.waiting.run_pending_tasks().await;
        self.waiting.entry_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_who_come_at_once_one_is_seen_to_be_the_second() {
        let once = Once::of(1000, Duration::from_secs(60));
        for _ in 0..200 {
            let sid = Uuid::new_v4();
            let text = once.issue(sid, 7).await.expect("random");
            let both = [(); 2].map(|()| {
                let (once, text) = (once.clone(), text.clone());
                tokio::spawn(async move { once.take(&text).await })
            });
            let mut shown = Vec::new();
            for one in both {
                shown.push(one.await.expect("no panic"));
            }
            assert!(shown.contains(&Shown::Good(7)) && shown.contains(&Shown::Again(sid)), "{shown:?}");
        }
        assert_eq!(once.take("made up").await, Shown::Unknown);
    }
}
