//! Taking connections, without haste where none can be taken.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long nobody is taken after the system refused to give a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is told at most that none can be taken.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Takes the next connection, again and again.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    told_at: Option<Instant>,
}

impl Accepting {
    /// The next connection. Nothing is lost when this is dropped.
    ///
    /// Where none can be taken, for want of file descriptors say, the listener's answer is there at once each time: without a pause
    /// asking again would take all of a core, and none of the requests that could give back what is wanting would get on.
    pub(super) async fn next<T, F: Future<Output = io::Result<T>>>(&mut self, accept: impl Fn() -> F) -> T {
        loop {
            match accept().await {
                Ok(taken) => return taken,
                // Somebody left before being taken; there may be others.
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    self.tell(&error);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn tell(&mut self, error: &io::Error) {
        let now = Instant::now();
        if self.told_at.is_some_and(|at| now.duration_since(at) < TOLD_EVERY) {
            return;
        }
        self.told_at = Some(now);
        pim_core::error!("listener.takes_nobody", os_error = error.raw_os_error().map(i64::from));
    }
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::timeout;

    use super::*;

    /// What the system answers when there are no file descriptors left, as it is on Linux.
    const EMFILE: i32 = 24;

    #[tokio::test]
    async fn who_cannot_be_taken_is_asked_for_in_peace_and_taken_when_it_is_over() {
        let (asked, mut accepting) = (AtomicU32::new(0), Accepting::default());
        let none = || async {
            // A turn of the runtime for each attempt, so that a haste without end is seen and not waited for.
            tokio::task::yield_now().await;
            assert!(asked.fetch_add(1, Ordering::SeqCst) < 100, "no pause");
            Err::<u32, _>(io::Error::from_raw_os_error(EMFILE))
        };
        assert!(timeout(PAUSE * 5 / 2, accepting.next(none)).await.is_err());
        let told_at = accepting.told_at.expect("told");
        assert!(timeout(PAUSE * 3 / 2, accepting.next(none)).await.is_err());
        assert_eq!(accepting.told_at, Some(told_at), "once");
        assert!((2..=5).contains(&asked.load(Ordering::SeqCst)), "one in each tenth of a second");
        assert_eq!(accepting.next(|| async { Ok(7) }).await, 7);
    }

    #[tokio::test]
    async fn who_leaves_early_keeps_nobody_waiting() {
        let (asked, mut accepting) = (AtomicU32::new(0), Accepting::default());
        let third = || async {
            match asked.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
                _ => Ok(()),
            }
        };
        accepting.next(third).await;
        assert_eq!((asked.load(Ordering::SeqCst), accepting.told_at), (3, None));
    }
}
