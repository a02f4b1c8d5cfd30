//! The door: how many may be in at once, how long they may take to say what they want, and an end to it when the library closes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// How long nobody is taken after the system refused to give a connection: it would refuse the next one at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The bounds of whoever comes. What a request's body and its answer may take, the desk's layers say.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Most connections at once.
    pub connections_max: usize,
    /// How long a request's head may take to arrive.
    pub head_within: Duration,
    /// How long a connection may last, which is one request's: whoever does not read their answer gives their place back then.
    pub connection_within: Duration,
    /// How long requests in flight may take once the library closes.
    pub drain_within: Duration,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            connections_max: 256,
            head_within: Duration::from_secs(5),
            connection_within: Duration::from_secs(60),
            drain_within: Duration::from_secs(10),
        }
    }
}

impl Door {
    /// Serves until `closing` is ready and what was in flight then has ended, or its time is over.
    pub async fn serve(self, listener: TcpListener, routes: Router, closing: impl Future<Output = ()>) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.head_within).keep_alive(false);
        let slots = Arc::new(Semaphore::new(self.connections_max));
        let graceful = GracefulShutdown::new();
        let mut closing = pin!(closing);
        loop {
            let (stream, slot) = tokio::select! {
                taken = next(&listener, &slots) => taken,
                () = &mut closing => break,
            };
            let service = TowerToHyperService::new(routes.clone());
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            let connection = timeout(self.connection_within, connection);
            tokio::spawn(async move {
                // A connection that breaks is its caller's business.
                let _ended = connection.await;
                drop(slot);
            });
        }
        // Whoever comes now is told so at once.
        drop(listener);
        let _unfinished = timeout(self.drain_within, graceful.shutdown()).await;
    }
}

/// The next connection, with the slot that it keeps until it ends.
async fn next(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        // Nobody closes the semaphore.
        if let (Ok(slot), Ok((stream, _))) = (Arc::clone(slots).acquire_owned().await, listener.accept().await) {
            return (stream, slot);
        }
        sleep(PAUSE).await;
    }
}
