//! What many sessions need and one of them asks for: the others take what came of it, a failure too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// How long an answer and a failure hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holds {
    /// An older answer is asked for anew, and given meanwhile.
    pub(super) fresh: Duration,
    /// An older answer is given to nobody.
    pub(super) good: Duration,
    /// Whoever comes so soon after a failure is told of it instead of asking again.
    pub(super) failed: Duration,
}

/// One thing to look up, on one way at a time.
#[derive(Debug)]
pub(super) struct Lookup<T> {
    holds: Holds,
    known: Mutex<Option<(Instant, Arc<T>)>>,
    /// Held by whoever asks: when that failed last.
    turn: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl<T: Send + Sync + 'static> Lookup<T> {
    pub(super) fn new(holds: Holds) -> Arc<Self> {
        Arc::new(Self { holds, known: Mutex::default(), turn: Arc::default() })
    }

    /// What is known, if it is not older.
    fn known(&self, within: Duration) -> Option<Arc<T>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(since, _)| since.elapsed() < within).map(|(_, value)| Arc::clone(value))
    }

    /// What is known, or what asking comes to; `None` when it fails, or has just failed for another one.
    pub(super) async fn get(self: &Arc<Self>, ask: impl Future<Output = Option<T>> + Send + 'static) -> Option<Arc<T>> {
        let Some(known) = self.known(self.holds.good) else {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            return self.take(turn, ask).await;
        };
        if self.known(self.holds.fresh).is_none() {
            // Nobody waits for the next one while this one is good. One task at most: it has the turn.
            if let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() {
                let lookup = Arc::clone(self);
                tokio::spawn(async move { lookup.take(turn, ask).await });
            }
        }
        Some(known)
    }

    async fn take(
        &self,
        mut failed: OwnedMutexGuard<Option<Instant>>,
        ask: impl Future<Output = Option<T>>,
    ) -> Option<Arc<T>> {
        // Whoever has waited for the turn takes what the one before made of it.
        if let Some(known) = self.known(self.holds.fresh) {
            return Some(known);
        }
        if failed.is_some_and(|at| at.elapsed() < self.holds.failed) {
            return None;
        }
        let since = Instant::now();
        let Some(value) = ask.await.map(Arc::new) else {
            *failed = Some(Instant::now());
            return None;
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((since, Arc::clone(&value)));
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    const NEVER: Duration = Duration::ZERO;
    const ALWAYS: Duration = Duration::MAX;

    /// What five who ask at once are told, and how many of them asked.
    async fn at_once(lookup: &Arc<Lookup<u32>>, answer: Option<u32>) -> (Vec<Option<u32>>, u32) {
        let asked = Arc::new(AtomicU32::new(0));
        let ask = || {
            let asked = Arc::clone(&asked);
            async move {
                asked.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
                answer
            }
        };
        let told = join_all((0..5).map(|_| lookup.get(ask()))).await;
        (told.into_iter().map(|value| value.as_deref().copied()).collect(), asked.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn one_asks_and_the_others_take_its_answer() {
        let lookup = Lookup::new(Holds { fresh: ALWAYS, good: ALWAYS, failed: NEVER });
        assert_eq!(at_once(&lookup, Some(7)).await, (vec![Some(7); 5], 1));
        assert_eq!(at_once(&lookup, Some(8)).await, (vec![Some(7); 5], 0));
    }

    /// Guard: of many who wait for one that does not answer none waits for it a second time.
    #[tokio::test]
    async fn one_fails_and_the_others_take_its_failure() {
        let lookup = Lookup::new(Holds { fresh: ALWAYS, good: ALWAYS, failed: ALWAYS });
        assert_eq!(at_once(&lookup, None).await, (vec![None; 5], 1));
        let lookup = Lookup::new(Holds { fresh: ALWAYS, good: ALWAYS, failed: NEVER });
        assert_eq!(at_once(&lookup, None).await, (vec![None; 5], 5), "a failure does not hold for ever");
        assert_eq!(at_once(&lookup, Some(7)).await, (vec![Some(7); 5], 1));
    }

    /// Guard: whoever has a good answer does not wait for a newer one.
    #[tokio::test]
    async fn what_is_good_is_given_while_it_is_asked_for_anew() {
        let lookup = Lookup::new(Holds { fresh: NEVER, good: ALWAYS, failed: NEVER });
        assert_eq!(lookup.get(ready(Some(7))).await.as_deref(), Some(&7));
        let (answer, answered) = tokio::sync::oneshot::channel();
        let asking = async { answered.await.ok() };
        assert_eq!(lookup.get(asking).now_or_never().flatten().as_deref(), Some(&7));
        assert_eq!(lookup.get(pending()).now_or_never().flatten().as_deref(), Some(&7), "and it is asked for once");
        answer.send(8).unwrap();
        while lookup.known(ALWAYS).as_deref() != Some(&8) {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_not_good_any_more_is_given_to_nobody() {
        let lookup = Lookup::new(Holds { fresh: NEVER, good: NEVER, failed: NEVER });
        assert_eq!(lookup.get(ready(Some(7))).await.as_deref(), Some(&7));
        assert_eq!(lookup.get(ready(None)).await, None);
        assert_eq!(lookup.get(ready(Some(8))).await.as_deref(), Some(&8));
    }
}
