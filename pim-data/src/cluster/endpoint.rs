//! One server of a shard, as probes and calls show it.

mod breaker;
mod finding;
mod load;
mod patience;

pub use finding::EndpointFinding;

pub(crate) use breaker::Breaker;
pub(crate) use load::Load;
pub(crate) use patience::Patience;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pim_core::shard::{EndpointRole, ShardId};
use serde::Serialize;
use tokio::sync::Notify;

use crate::backend::{Db, DbError, Demand, Dial, Row, ServerSettings};
use crate::degradation::Degraded;

/// Role, term, position of the log, the term that its rows tell of, identity, how many commits wait for a standby, whether
/// they have to, and whether it is set to take no writes: by what new sessions begin with, whatever this one did.
/// Asked in the simple protocol, so that nothing is prepared.
const PROBE: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN 0 ELSE public.pim_timeline() END, \
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint, \
    (SELECT term FROM public.pim_term), (SELECT keyspace FROM public.pim_identity), (SELECT shard FROM public.pim_identity), \
    (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database() \
      AND state_change < now() - interval '750 milliseconds'), \
    (SELECT since FROM public.pim_degraded), (SELECT is_on FROM public.pim_degraded), \
    coalesce((SELECT split_part(c, '=', 2)::boolean FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) c \
        WHERE c LIKE 'default_transaction_read_only=%' \
        AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
        AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user)) \
        ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1), current_setting('default_transaction_read_only')::boolean)";

/// Ends the sessions of this login whose commits have waited for a standby for so long. They have committed, and hold their
/// locks until they need not wait any more; whoever is at the other end finds out by the idempotency record.
pub(super) const RELEASE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
    AND datname = current_database() AND usename = current_user AND state_change < now() - interval '750 milliseconds'";

/// A primary writes its term down, for its standbys to hand on.
const TAKE_OFFICE: &str = "SELECT public.pim_take_office()";

const WHICH: &str = "SELECT pg_postmaster_start_time()::text";

/// One server of a shard.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(super) id: String,
    pub(super) dsn_ref: String,
    /// For reads that need not be the newest.
    pub(crate) reads: Db,
    /// One connection, apart from the others: a busy pool is no dead server.
    probe: Db,
    pub(crate) breaker: Breaker,
    pub(crate) load: Load,
    pub(crate) patience: Patience,
    seen: Mutex<Seen>,
}

/// What a probe has shown last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) role: Option<EndpointRole>,
    pub(super) term: u64,
    /// Of which instant its rows are at least.
    pub(super) fresh_at: Option<Instant>,
    pub(super) finding: Option<EndpointFinding>,
    /// How many probes in a row were not answered in time.
    pub(super) misses: u32,
}

/// What a server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) asked_at: Instant,
    pub(super) is_standby: bool,
    /// The primary's own; zero on a standby.
    pub(super) term: u64,
    pub(super) position: u64,
    /// Of the primary whose rows it has.
    pub(super) told_term: Option<u64>,
    pub(super) keyspace: String,
    pub(super) shard: Option<u64>,
    /// Commits that wait for a standby.
    pub(super) waiting: u64,
    /// Whether new ones need not.
    pub(super) degraded: Option<Degraded>,
    /// Whether it refuses writes by a setting.
    pub(super) is_read_only: bool,
}

/// How a server of a shard is.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointHealth {
    /// Its name in the map.
    pub id: String,
    /// What it is at present; `None` when it was not found out.
    pub role: Option<EndpointRole>,
    /// As the primary of which term it was found, or whose rows it has.
    pub term: u64,
    /// How old its rows are at most, in milliseconds; `None` when that is not known.
    pub lag_ms: Option<u64>,
    /// Whether it is left alone for a while because calls to it failed.
    pub breaker_open: bool,
    /// What is wrong with it.
    pub finding: Option<EndpointFinding>,
}

impl Endpoint {
    pub(super) fn new(id: &str, dsn_ref: &str, dial: &Dial) -> Result<Self, DbError> {
        let patience = dial.settings.probe_max;
        let settings = ServerSettings {
            connections_max: 1,
            connect_timeout: patience,
            call_max: patience,
            transaction_max: patience,
            ..dial.settings
        };
        // What probes find out rings nobody: they are what is rung for.
        let probe = Dial { settings, alarm: Arc::new(Notify::new()), ..dial.clone() };
        Ok(Self {
            id: id.to_owned(),
            dsn_ref: dsn_ref.to_owned(),
            reads: Db::dial(dsn_ref, dial.clone())?,
            probe: Db::dial(dsn_ref, probe)?,
            breaker: Breaker::default(),
            load: Load::default(),
            patience: Patience::default(),
            seen: Mutex::default(),
        })
    }

    /// What leads to it.
    pub(super) const fn pools(&self) -> [&Db; 2] {
        [&self.reads, &self.probe]
    }

    /// Looks whether its name stands for another place by now.
    pub(super) async fn refresh(&self) {
        let (probe, reads) = (self.probe.refresh(), self.reads.refresh());
        futures_util::future::join(probe, reads).await;
    }

    /// Two answers are equal if one and the same server gave them.
    pub(super) async fn which_server(&self, patience: Duration) -> Result<String, DbError> {
        let rows = self.probe.ask(tokio::time::Instant::now() + patience, WHICH).await?;
        Ok(rows.first().ok_or(DbError::Closed)?.text(0)?.to_owned())
    }

    pub(super) async fn ask(&self, patience: Duration) -> Result<Answer, DbError> {
        let until = tokio::time::Instant::now() + patience;
        let asked_at = Instant::now();
        let rows = match self.probe.ask(until, PROBE).await {
            // The connection may be of before a restart.
            Err(DbError::Lost) => self.probe.ask(until, PROBE).await,
            outcome => outcome,
        }?;
        let answer = Answer::of(rows.first().ok_or(DbError::Closed)?, asked_at)?;
        if answer.is_read_only {
            // It may be this session alone that still is.
            self.probe.renew();
        }
        Ok(answer)
    }

    /// Whether it says that it is of another shard or key space. Who does not answer, or is nobody yet, says no such thing.
    pub(super) async fn is_of_another(&self, patience: Duration, keyspace: &str, shard: ShardId) -> bool {
        let said = self.ask(patience).await.ok().and_then(|answer| Some((answer.keyspace, answer.shard?)));
        said.is_some_and(|(said, number)| said != keyspace || number != u64::from(shard.0))
    }

    /// Has a primary write its term down. It does not wait for a standby.
    pub(super) async fn take_office(&self, patience: Duration) {
        // A primary that takes no writes has standbys without a known lag; the next probe tries again.
        let _refused = self.probe.ask(tokio::time::Instant::now() + patience, TAKE_OFFICE).await;
    }

    /// Ends sessions of this program's login that wait for a standby in vain.
    pub(super) async fn release(&self, patience: Duration) {
        // Who could not be asked is asked again in the next round.
        let _released = self.probe.ask(tokio::time::Instant::now() + patience, RELEASE).await;
    }

    /// From this term on, whoever calls itself the primary of an earlier one answers no reads.
    pub(super) fn know_term(&self, term: u64) {
        self.reads.turn_to(&self.dsn_ref, Demand { primary: false, term });
    }

    pub(super) fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a probe has shown; says what was found before.
    pub(super) fn show(&self, seen: Seen) -> Seen {
        std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), seen)
    }

    /// How old the rows of a replica are at most; `None` when it may not answer.
    pub(super) fn lag(&self, now: Instant) -> Option<Duration> {
        let seen = self.seen();
        let is_replica = seen.role == Some(EndpointRole::Replica) && seen.finding.is_none();
        seen.fresh_at.filter(|_| is_replica).map(|fresh_at| now.saturating_duration_since(fresh_at))
    }

    pub(super) fn health(&self) -> EndpointHealth {
        let (seen, lag) = (self.seen(), self.lag(Instant::now()));
        EndpointHealth {
            id: self.id.clone(),
            role: seen.role,
            term: seen.term,
            lag_ms: lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            breaker_open: self.breaker.is_open(),
            finding: seen.finding,
        }
    }
}

impl Answer {
    fn of(row: &Row, asked_at: Instant) -> Result<Self, DbError> {
        use crate::backend::Value;
        let optional =
            |index: usize| if *row.get(index) == Value::Null { Ok(None) } else { row.count(index).map(Some) };
        Ok(Self {
            asked_at,
            is_standby: row.int(0)? != 0,
            term: row.count(1)?,
            position: optional(2)?.unwrap_or(0),
            told_term: optional(3)?,
            keyspace: if *row.get(4) == Value::Null { String::new() } else { row.text(4)?.to_owned() },
            shard: optional(5)?,
            waiting: row.count(6)?,
            degraded: Degraded::of(row, 7)?,
            is_read_only: row.int(9)? != 0,
        })
    }
}

/// What is wrong with an endpoint whose probe failed.
pub(super) const fn finding_of(error: &DbError) -> EndpointFinding {
    EndpointFinding::of(error)
}
