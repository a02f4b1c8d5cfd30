//! A bounded set of connections to one endpoint.
//!
//! Each is opened by a task of its own: a caller who gives up does not throw away a connection that is nearly there, and
//! a slow server cannot use up more slots than there are. The connection string is asked for each time.

use std::collections::VecDeque;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::conn::Conn;
use super::refusal;
use crate::backend::secret::{SecretError, Secrets, check_name};
use crate::backend::{DbError, ServerSettings};

#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    secrets: Arc<dyn Secrets>,
    settings: ServerSettings,
    slots: Arc<Semaphore>,
    /// The one used last stands last and is used first, so that the others grow old and are checked.
    idle: Mutex<VecDeque<Conn>>,
}

/// A connection on loan; goes back by itself.
#[derive(Debug)]
pub(super) struct Lent {
    conn: Option<Conn>,
    pool: Pool,
    slot: Option<OwnedSemaphorePermit>,
    /// When whoever asked for it gives up; without it each call has the settings' own bound.
    until: Option<Instant>,
}

impl Pool {
    pub(super) fn new(name: &str, secrets: Arc<dyn Secrets>, settings: ServerSettings) -> Self {
        let slots = Arc::new(Semaphore::new(settings.connections_max.max(1)));
        Self(Arc::new(Inner { name: name.to_owned(), secrets, settings, slots, idle: Mutex::default() }))
    }

    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn transaction_max(&self) -> std::time::Duration {
        self.0.settings.transaction_max
    }

    /// Lends a connection, and never takes longer than until `until`.
    pub(super) async fn lend(&self, until: Option<Instant>) -> Result<Lent, DbError> {
        let give_up = until.unwrap_or_else(|| Instant::now() + self.0.settings.call_max);
        let slots = Arc::clone(&self.0.slots);
        let slot = timeout_at(give_up, slots.acquire_owned()).await;
        let slot = slot.map_err(|_| DbError::Late)?.map_err(|_| DbError::Closed)?;
        while let Some(mut conn) = self.take_idle() {
            if conn.idle_for() < self.0.settings.idle_check_after {
                return Ok(self.lent(conn, slot, until));
            }
            // It may have been cut meanwhile; one that does not answer at once is not worth the wait.
            let patience = (Instant::now() + self.0.settings.connect_timeout).min(give_up);
            if matches!(timeout_at(patience, conn.ping()).await, Ok(Ok(()))) {
                return Ok(self.lent(conn, slot, until));
            }
        }
        let (answer, asked) = oneshot::channel();
        let pool = self.clone();
        tokio::spawn(async move {
            let opened = pool.connect().await;
            // Nobody waits any more: the connection is for whoever comes next, and the slot is free again.
            if let Err(Ok((conn, _slot))) = answer.send(opened.map(|conn| (conn, slot))) {
                pool.keep(conn);
            }
        });
        let opened = timeout_at(give_up, asked).await.map_err(|_| DbError::Late)?;
        let (conn, slot) = opened.map_err(|_| DbError::Closed)??;
        Ok(self.lent(conn, slot, until))
    }

    fn lent(&self, conn: Conn, slot: OwnedSemaphorePermit, until: Option<Instant>) -> Lent {
        Lent { conn: Some(conn), pool: self.clone(), slot: Some(slot), until }
    }

    fn take_idle(&self) -> Option<Conn> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_back()
    }

    fn keep(&self, conn: Conn) {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push_back(conn);
    }

    async fn connect(&self) -> Result<Conn, DbError> {
        let (name, settings) = (&self.0.name, &self.0.settings);
        let options = self.options().map_err(|source| DbError::Secret { place: name.clone(), source })?;
        let opening = timeout(settings.connect_timeout, options.connect());
        let raw = opening.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let raw = raw.map_err(|error| refusal::not_let_in(error, name))?;
        let mut conn = Conn::new(raw, name);
        conn.assert_durable().await?;
        Ok(conn)
    }

    fn options(&self) -> Result<PgConnectOptions, SecretError> {
        let (name, settings) = (&self.0.name, &self.0.settings);
        check_name(name)?;
        let dsn = self.0.secrets.secret(name)?;
        // The driver's own complaint may repeat the string.
        let options = PgConnectOptions::from_str(&dsn).map_err(|_| SecretError::Malformed { name: name.clone() })?;
        let millis = |length: std::time::Duration| length.as_millis().to_string();
        Ok(options
            .application_name("pim-data")
            .statement_cache_capacity(256)
            .options([
                ("statement_timeout", millis(settings.transaction_max)),
                ("lock_timeout", millis(settings.transaction_max)),
                ("idle_in_transaction_session_timeout", millis(settings.transaction_max)),
                ("default_transaction_isolation", "read committed".to_owned()),
                // A plan for any parameters: ours are look-ups by key, and planning costs as much as running them.
                ("plan_cache_mode", "force_generic_plan".to_owned()),
                // A plan is kept for as long as the connection, and a table that was small when it was made grows.
                ("enable_seqscan", "off".to_owned()),
                ("jit", "off".to_owned()),
            ])
            .disable_statement_logging())
    }
}

impl Lent {
    /// Runs a call on the connection, and gives up when it is time to.
    pub(super) async fn call<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let until = self.until.unwrap_or_else(|| Instant::now() + self.pool.0.settings.call_max);
        let conn = self.conn.as_mut().ok_or(DbError::Closed)?;
        conn.begin_call();
        let outcome = timeout_at(until, work(conn)).await;
        match outcome {
            Ok(outcome) => {
                conn.end_call(outcome.as_ref().err());
                outcome
            }
            // Whatever the server is still at, nobody will read its answer: the connection goes.
            Err(_elapsed) => Err(DbError::Unanswered),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(mut conn), slot) = (self.conn.take(), self.slot.take()) else { return };
        if conn.is_clean() {
            self.pool.keep(conn);
            return;
        }
        // A call that was cut short, or an open transaction. Closing the socket ends either on the server; a transaction
        // between two calls is rolled back, which keeps the connection.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let pool = self.pool.clone();
        if conn.is_between_calls() {
            runtime.spawn(async move {
                let patience = pool.0.settings.connect_timeout;
                if matches!(timeout(patience, conn.roll_back()).await, Ok(Ok(()))) {
                    pool.keep(conn);
                }
                drop(slot);
            });
        }
    }
}
