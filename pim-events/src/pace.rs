//! When a loop looks again: at once when told, else after an adaptive pause with jitter; and when it ends.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

/// Shortest pause between two empty looks.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Pauses that double while nothing is found.
#[derive(Debug)]
pub(crate) struct Pace {
    next: Duration,
    max: Duration,
}

impl Pace {
    pub(crate) const fn new(max: Duration) -> Self {
        Self { next: PAUSE_MIN, max }
    }

    /// Something was found: look again soon.
    pub(crate) const fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    /// The next pause: half of it fixed, half of it jitter, so that workers do not march in step.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.max);
        let jitter = f64::from(Uuid::new_v4().as_bytes()[0]) / 512.0;
        pause.mul_f64(0.5 + jitter)
    }
}

/// Says whether there is time for another step. Long work that commits step by step asks before each.
pub(crate) type GoesOn<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// Tells loops to end. Clones see the same signal.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// The other end of [`Stop`]; dropping it stops too.
pub(crate) struct Stopper(watch::Sender<bool>);

impl Stop {
    pub(crate) fn pair() -> (Stopper, Self) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(sender), Self(receiver))
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits for it.
    pub(crate) async fn wait(&mut self) {
        // An error means that the other end is gone, which is a stop as well.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

impl Stopper {
    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Sleeps until `pause` is over, `wake` changes, or the stop comes; whichever is first.
pub(crate) async fn rest(pause: Duration, wake: &mut watch::Receiver<u64>, stop: &mut Stop) {
    let woken = async {
        // A closed channel never wakes again; the pause alone then sets the pace.
        if wake.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = woken => {}
        () = stop.wait() => {}
    }
}

/// Sleeps until `pause` is over or the stop comes.
pub(crate) async fn sleep(pause: Duration, stop: &mut Stop) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = stop.wait() => {}
    }
}

/// Runs `work` until it ends by itself or `shutdown` comes; in the latter case lets it end in order.
pub(crate) async fn until(shutdown: impl Future<Output = ()>, stopper: Stopper, work: impl Future<Output = ()>) {
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => return,
        () = shutdown => stopper.stop(),
    }
    work.await;
}
