//! Opening a connection: the string behind a name, the addresses behind its host, and what the server there must be.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{Instant, timeout};

use super::conn::Conn;
use super::refusal;
use super::target::Target;
use crate::backend::secret::{SecretError, check_name};
use crate::backend::{DbError, Dial, ServerSettings};

/// Most addresses of one host that are tried.
const ADDRESSES_MAX: usize = 4;

/// Within which time a server that is at a statement notices that whoever sent it is gone, and ends the session.
const GONE_AFTER: Duration = Duration::from_millis(500);

/// Opens a connection, and refuses a server that is not what is asked for.
pub(super) async fn open(dial: &Dial, target: &Target) -> Result<Conn, DbError> {
    let name = &target.name;
    let (options, _) = options(dial, name).map_err(|source| DbError::Secret { place: name.clone(), source })?;
    // A server may fall silent after it has let somebody in: a slot is not kept for it either.
    let opening = timeout(dial.settings.connect_timeout, async {
        let raw = connect(dial, options).await.map_err(|error| refusal::not_let_in(error, name))?;
        let mut conn = Conn::new(raw, name, target.generation);
        conn.check_server(target.demand).await?;
        Ok(conn)
    });
    opening.await.unwrap_or_else(|_late| Err(refusal::not_let_in(sqlx::Error::PoolTimedOut, name)))
}

/// What a name stands for now: the digest of its string, and the addresses behind its host.
pub(super) async fn look_up(dial: &Dial, name: &str) -> Result<([u8; 32], Vec<IpAddr>), SecretError> {
    let (options, digest) = options(dial, name)?;
    Ok((digest, addresses(dial, &options).await))
}

/// One address after the other; the driver would ask the machine's resolver by itself, and not again.
async fn connect(dial: &Dial, options: PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let addresses = addresses(dial, &options).await;
    let mut outcome = Err(sqlx::Error::PoolTimedOut);
    if addresses.is_empty() {
        return options.connect().await;
    }
    let until = Instant::now() + dial.settings.connect_timeout;
    let tried = addresses.len().min(ADDRESSES_MAX);
    for (index, address) in addresses.into_iter().take(tried).enumerate() {
        // One that swallows what is sent to it leaves time for those behind it.
        let share = until.saturating_duration_since(Instant::now()) / u32::try_from(tried - index).unwrap_or(u32::MAX);
        let connected = timeout(share, options.clone().host(&address.to_string()).connect()).await;
        outcome = connected.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if !matches!(outcome, Err(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut)) {
            break;
        }
    }
    outcome
}

/// Empty when there is nothing to ask for, or nobody knows.
async fn addresses(dial: &Dial, options: &PgConnectOptions) -> Vec<IpAddr> {
    let host = options.get_host().to_owned();
    if options.get_socket().is_some() || host.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    let resolver = Arc::clone(&dial.resolver);
    let Ok(place) = Arc::clone(&dial.lookups).acquire_owned().await else { return Vec::new() };
    let asked = tokio::task::spawn_blocking(move || {
        // Whoever asked may have gone; the thread is in use until here.
        let _place = place;
        resolver.resolve(&host)
    });
    asked.await.ok().and_then(Result::ok).unwrap_or_default()
}

fn options(dial: &Dial, name: &str) -> Result<(PgConnectOptions, [u8; 32]), SecretError> {
    check_name(name)?;
    let dsn = dial.secrets.secret(name)?;
    // The driver's own complaint may repeat the string.
    let options = PgConnectOptions::from_str(&dsn).map_err(|_| SecretError::Malformed { name: name.to_owned() })?;
    Ok((with_settings(options, &dial.settings), Sha256::digest(dsn.as_bytes()).into()))
}

fn with_settings(options: PgConnectOptions, settings: &ServerSettings) -> PgConnectOptions {
    let millis = |length: Duration| length.as_millis().to_string();
    // Operators tell sessions apart by it: a name in the connection string stays.
    let own_name = options.get_application_name().unwrap_or("pim-data").to_owned();
    options
        .application_name(&own_name)
        .statement_cache_capacity(512)
        .options([
            ("statement_timeout", millis(settings.transaction_max)),
            ("lock_timeout", millis(settings.transaction_max)),
            ("idle_in_transaction_session_timeout", millis(settings.transaction_max)),
            // A server reads nothing while it is at a statement, or waits for a lock: it must look whether anybody is there.
            ("client_connection_check_interval", millis(GONE_AFTER)),
            ("default_transaction_isolation", "read committed".to_owned()),
            // A plan for any parameters: ours are look-ups by key, and planning costs as much as running them.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            // A plan is kept for as long as the connection, and a table that was small when it was made grows.
            ("enable_seqscan", "off".to_owned()),
            ("jit", "off".to_owned()),
        ])
        .disable_statement_logging()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;
    use crate::backend::{Resolver, Secrets};

    /// A connection string for everybody.
    #[derive(Debug)]
    struct Same(String);

    impl Secrets for Same {
        fn secret(&self, _name: &str) -> Result<String, SecretError> {
            Ok(self.0.clone())
        }
    }

    /// Guard: a server that lets somebody in and says nothing more keeps no slot.
    #[tokio::test]
    async fn a_server_that_falls_silent_at_the_first_question_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.expect("comes");
            let mut startup = [0; 1024];
            let _greeting = client.read(&mut startup).await.expect("says who it is");
            // AuthenticationOk, and ready for a query.
            client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.expect("lets it in");
            std::future::pending::<()>().await;
            drop(client);
        });
        let settings = ServerSettings { connect_timeout: Duration::from_millis(300), ..ServerSettings::default() };
        let secrets = Arc::new(Same(format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable")));
        let dial = Dial::new(secrets, settings);
        let opened = timeout(Duration::from_secs(20), open(&dial, &Target::new("a".to_owned()))).await;
        let refused = opened.expect("ends");
        assert!(matches!(refused, Err(DbError::Unreachable { .. })), "{refused:?}");
        server.abort();
    }

    /// Two addresses for everybody.
    #[derive(Debug)]
    struct Twofold;

    impl Resolver for Twofold {
        fn resolve(&self, _host: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(vec![IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 1])])
        }
    }

    /// Guard: an address from which nothing comes back leaves time for the next one.
    #[tokio::test]
    async fn an_address_that_is_silent_does_not_take_all_of_the_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let silent = TcpListener::bind(("127.0.0.2", port)).await.expect("listens");
        let settings = ServerSettings { connect_timeout: Duration::from_secs(10), ..ServerSettings::default() };
        let secrets = Arc::new(Same(format!("postgres://u@shard.invalid:{port}/d?sslmode=disable")));
        let dial = Dial::with(secrets, Arc::new(Twofold), settings);
        let opening = tokio::spawn(async move { open(&dial, &Target::new("a".to_owned())).await });
        let comes = timeout(Duration::from_secs(20), listener.accept()).await.expect("the other one is tried");
        let (mut comes, _) = comes.expect("comes");
        assert!(comes.read(&mut [0; 8]).await.is_ok_and(|length| length > 0), "it has time to say who it is");
        drop(comes);
        assert!(opening.await.expect("runs").is_err(), "it was turned away");
        drop(silent);
    }

    /// Never answers; counts who asks.
    #[derive(Debug)]
    struct Hanging(AtomicUsize, Mutex<Receiver<()>>);

    impl Resolver for Hanging {
        fn resolve(&self, _host: &str) -> std::io::Result<Vec<IpAddr>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let _until_the_test_ends = self.1.lock().map(|hangs| hangs.recv());
            Ok(Vec::new())
        }
    }

    /// Guard: whoever gives up a look-up leaves its thread behind, and looks again: not without end.
    #[tokio::test]
    async fn a_resolver_that_hangs_keeps_few_threads() {
        let (end, hangs) = channel();
        let resolver = Arc::new(Hanging(AtomicUsize::new(0), Mutex::new(hangs)));
        let settings = ServerSettings { connect_timeout: Duration::from_millis(20), ..ServerSettings::default() };
        let secrets = Arc::new(Same("postgres://u@shard.invalid/d".to_owned()));
        let dial = Dial::with(secrets, Arc::clone(&resolver) as Arc<dyn Resolver>, settings);
        for _ in 0..10 {
            let refused = open(&dial, &Target::new("a".to_owned())).await;
            assert!(matches!(refused, Err(DbError::Unreachable { .. })), "{refused:?}");
        }
        // Threads begin when they begin; no third one is ever asked for.
        let asked = async || {
            while resolver.0.load(Ordering::SeqCst) < 2 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), asked()).await.expect("two look it up");
        assert_eq!(resolver.0.load(Ordering::SeqCst), 2);
        drop(end);
    }
}
