//! Listening, serving and draining: bounds on connections and heads, and an end within a deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::RefusedHeads;
use super::accept::Accepting;
use super::peer::Peer;
use super::unread::{Unread, shown_soon};

/// For how long readiness says no before a listener closes, unless something else is set.
pub(crate) const DRAIN_GRACE_MS: u64 = 200;

/// How a program listens.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Where; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Most connections at once.
    pub connections_max: usize,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// How long nothing of what is written to a peer may be seen to go. On Linux it is seen in steps of about 128 KiB on loopback, and
    /// of a sixteenth of what the peer's own system holds for it where that is more (6 MiB at most, unless somebody has set it):
    /// who takes one such step in this time is not hung up on. Elsewhere the steps are those of the system.
    pub write_timeout: Duration,
    /// How long requests in flight may take once the program is told to stop.
    pub drain_timeout: Duration,
}

impl ServeSettings {
    /// The defaults, on an address.
    #[must_use]
    pub const fn at(listen: SocketAddr) -> Self {
        Self {
            listen,
            connections_max: 2048,
            header_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}: {}", hint(source))]
pub struct ServeError {
    /// Where.
    pub listen: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is in use, stop what has it or choose another",
        io::ErrorKind::PermissionDenied => "not allowed, choose a port above 1023",
        _ => "the address cannot be used",
    }
}

/// Told to everything that serves: from now on finish what is there and take nothing new.
#[derive(Clone, Debug)]
pub struct Drain(watch::Sender<bool>);

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Not draining yet.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::channel(false).0)
    }

    /// Begins.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when it begins. Does not borrow, so that it can be handed to a task.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut told = self.0.subscribe();
        async move {
            // The sender lives in every clone; when all are gone nothing is left to serve either.
            let _closed = told.wait_for(|begun| *begun).await;
        }
    }

    /// One that begins this much later. In between readiness says no, and the listener still takes whoever has not heard of it.
    #[must_use]
    pub fn later_by(&self, grace: Duration) -> Self {
        let later = Self::new();
        let (begun, then) = (self.begun(), later.clone());
        tokio::spawn(async move {
            begun.await;
            tokio::time::sleep(grace).await;
            then.begin();
        });
        later
    }

    /// Begins when the process is told to stop, by Ctrl-C or SIGTERM.
    pub fn on_signal(&self) {
        let drain = self.clone();
        tokio::spawn(async move {
            let terminate = async {
                match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                    Ok(mut signal) => drop(signal.recv().await),
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = terminate => {}
                interrupted = tokio::signal::ctrl_c() => drop(interrupted),
            }
            drain.begin();
        });
    }
}

/// A listener that has its port.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    settings: ServeSettings,
    address: SocketAddr,
    heads: Option<RefusedHeads>,
}

/// Takes the port.
///
/// # Errors
/// [`ServeError`] with what to do.
pub async fn bind(settings: ServeSettings) -> Result<Bound, ServeError> {
    let listen = settings.listen;
    let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|source| ServeError { listen, source })?;
    Ok(Bound { listener, settings, address, heads: None })
}

impl Bound {
    /// The address that was taken.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Tells of heads that nobody could read.
    #[must_use]
    pub fn telling(mut self, heads: RefusedHeads) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Serves until the drain begins and what was in flight has ended, or the drain's time is over.
    pub async fn serve(self, router: Router, drain: Drain) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.settings.header_timeout);
        // One above the guard's own bounds, so that the guard answers with a named problem.
        http.max_headers(65).max_buf_size(32 * 1024);
        let slots = Arc::new(Semaphore::new(self.settings.connections_max));
        let graceful = GracefulShutdown::new();
        let mut accepting = Accepting::default();
        let begun = drain.begun();
        tokio::pin!(begun);
        loop {
            let slot = tokio::select! {
                slot = Arc::clone(&slots).acquire_owned() => slot,
                () = &mut begun => break,
            };
            // Nobody closes the semaphore.
            let Ok(slot) = slot else { break };
            let (stream, peer) = tokio::select! {
                taken = accepting.next(|| self.listener.accept()) => taken,
                () = &mut begun => break,
            };
            // Small answers must not wait for the peer's delayed acknowledgement.
            let _unsupported = stream.set_nodelay(true);
            shown_soon(&stream);
            let take = move |request: http::Request<Incoming>| {
                let mut request = request.map(axum::body::Body::new);
                request.extensions_mut().insert(Peer(peer));
                request
            };
            let service = tower::util::MapRequest::new(router.clone(), take);
            let service = TowerToHyperService::new(service);
            let stream = TokioIo::new(Unread::for_at_most(self.settings.write_timeout, stream));
            let connection = graceful.watch(http.serve_connection(stream, service));
            let heads = self.heads.clone();
            tokio::spawn(async move {
                // A connection that breaks is the peer's business; its requests have their own signals, but for those that never were.
                if let (Err(ended), Some(heads)) = (connection.await, heads) {
                    heads.take(&ended);
                }
                drop(slot);
            });
        }
        drop(self.listener);
        let _unfinished = tokio::time::timeout(self.settings.drain_timeout, graceful.shutdown()).await;
    }
}
