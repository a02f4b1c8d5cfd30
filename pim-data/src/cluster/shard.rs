//! One shard: its database, and a connection that lags behind on purpose.

use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::{Bucket, Endpoint, ShardId};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::complaint::Complaint;
use super::endpoint::EndpointHealth;
use super::group::{Group, Need, PrimaryState};
use crate::backend::{Db, DbError, Row, Snapshot, SqlPair, Statement};
use crate::degradation::Degraded;
use crate::fence::HERE;

/// How long it is waited for a file to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// The number under which the control database goes where a shard is meant.
pub const CONTROL: ShardId = ShardId::RESERVED;

/// Of nothing that grows with the rows: whoever has many of them is as reachable as others.
pub(super) const PROBE: SqlPair =
    SqlPair::same("SELECT COUNT(*), COALESCE(MAX(map_version), 0) FROM pim_bucket_owned WHERE state = 'owned'");

/// A shard of the cluster; the control database is one too.
#[derive(Clone, Debug)]
pub(crate) struct Shard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: ShardId,
    db: Db,
    /// Its servers, where it has some.
    group: Option<Arc<Group>>,
    replica: Replica,
    complaint: Complaint,
}

/// How a shard is.
#[derive(Clone, Debug, Serialize)]
pub struct ShardHealth {
    /// Which shard; `None` for the control database.
    pub shard: Option<ShardId>,
    /// Whether it answers.
    pub reachable: bool,
    /// How long the answer took, in microseconds.
    pub probe_us: u64,
    /// How many buckets it owns.
    pub buckets_owned: u64,
    /// The newest map version that its fence knows.
    pub map_version: u64,
    /// How far its replica connection may be behind, in milliseconds.
    pub replica_lag_ms_max: u64,
    /// The term of its primary: it rises with each promotion. `None` for a file.
    pub term: Option<u64>,
    /// Whether its primary can be used. `None` for a file.
    pub primary: Option<PrimaryState>,
    /// Since when its primary acknowledges commits alone, or did without a standby's confirmation since; `None` when
    /// whatever it acknowledged is as safe as commits are meant to be.
    pub degraded: Option<Degraded>,
    /// Its servers; none for a file.
    pub endpoints: Vec<EndpointHealth>,
}

impl ShardHealth {
    /// Of a shard that could not be opened.
    pub(super) const fn missing(id: ShardId) -> Self {
        Self {
            shard: Some(id),
            reachable: false,
            probe_us: 0,
            buckets_owned: 0,
            map_version: 0,
            replica_lag_ms_max: 0,
            term: None,
            primary: None,
            degraded: None,
            endpoints: Vec::new(),
        }
    }
}

impl Shard {
    /// A shard in a file.
    pub(super) fn new(id: ShardId, db: Db, delay: Duration) -> Self {
        let replica = Replica { db: db.clone(), delay, held: Arc::new(Mutex::new(None)) };
        Self(Arc::new(Inner { id, db, group: None, replica, complaint: Complaint::default() }))
    }

    /// A shard on servers, which are looked after from now on.
    pub(super) fn of_group(id: ShardId, group: Group, delay: Duration) -> Self {
        let db = group.writer().clone();
        let group = Arc::new(group);
        super::group::watch(&group);
        let replica = Replica { db: db.clone(), delay, held: Arc::new(Mutex::new(None)) };
        Self(Arc::new(Inner { id, db, group: Some(group), replica, complaint: Complaint::default() }))
    }

    /// Whether it is this very one, not another of its number.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether its servers are those that a map names, whichever of them is the primary. A file is where it is.
    pub(super) fn is_at(&self, endpoints: &[Endpoint]) -> bool {
        self.group().is_none_or(|group| group.is_of(endpoints))
    }

    /// Whether anybody else has it.
    pub(super) fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// How long one who has it may use it before he asks for it again.
    pub(super) fn longest_use(&self) -> Duration {
        self.group().map_or(Duration::ZERO, |group| group.settings().call_max + group.settings().transaction_max)
    }

    /// Nobody is sent there any more. A file is closed when nobody has it.
    pub(super) fn leave(&self) {
        self.group().into_iter().for_each(Group::leave);
    }

    /// Gives up what is under way.
    pub(super) fn close(&self) {
        self.group().into_iter().flat_map(Group::pools).for_each(Db::close);
    }

    /// Its number.
    pub(crate) fn id(&self) -> ShardId {
        self.0.id
    }

    /// Its database.
    pub(crate) fn db(&self) -> &Db {
        &self.0.db
    }

    /// Its database for what only the owner may do. A server refuses by name when this program has no such rights.
    pub(crate) fn governed(&self) -> &Db {
        self.0.group.as_ref().and_then(|group| group.owner()).unwrap_or(&self.0.db)
    }

    /// Whether this program may do what only the owner may. A file is everybody's.
    pub(crate) fn is_governed(&self) -> bool {
        self.0.group.as_ref().is_none_or(|group| group.owner().is_some())
    }

    /// Its servers; `None` for a file.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.0.group.as_deref()
    }

    /// Waits until its primary can be used; a file always can.
    ///
    /// # Errors
    /// [`DbError::NoPrimary`] or [`DbError::NoStandby`] when it cannot be until then.
    pub(crate) async fn ready(&self, until: Instant, need: Need) -> Result<(), DbError> {
        match self.group() {
            Some(group) => group.ready(until, need).await,
            None => Ok(()),
        }
    }

    /// After a call failed and did nothing: waits until it may be made again. See [`Group::recover`].
    ///
    /// # Errors
    /// The error itself when waiting does not help.
    pub(crate) async fn recover(&self, until: Instant, need: Need, error: DbError) -> Result<(), DbError> {
        match self.group() {
            Some(group) => group.recover(until, need, error).await,
            None => Err(error),
        }
    }

    /// Whether it owns a bucket, or did until a moment ago: by its primary, whoever that is until then.
    ///
    /// # Errors
    /// When nobody says so in time.
    pub(crate) async fn has(&self, bucket: Bucket, until: Instant) -> Result<bool, DbError> {
        let ask = async || self.0.db.read_until(until).await?.query(Statement::of(HERE).bind(bucket.get())).await;
        self.ready(until, Need::Read).await?;
        // Ends with the deadline.
        loop {
            match ask().await {
                Ok(rows) => return Ok(!rows.is_empty()),
                Err(error) => self.recover(until, Need::Read, error).await?,
            }
        }
    }

    /// What was told of it last.
    pub(super) fn complaint(&self) -> &Complaint {
        &self.0.complaint
    }

    /// Its replica.
    pub(crate) fn replica(&self) -> &Replica {
        &self.0.replica
    }

    pub(super) async fn health(&self) -> ShardHealth {
        let begun = Instant::now();
        let servers = self.group().map(Group::health);
        let (term, primary, endpoints) =
            servers.map_or((None, None, Vec::new()), |(term, state, endpoints)| (Some(term), Some(state), endpoints));
        // A server that stands still is not reachable, and whoever asks has others to look at.
        let patience = self.group().map_or(PATIENCE, |group| group.settings().probe_max);
        let asked = async { self.0.db.read_until(Instant::now() + patience).await?.query(Statement::of(PROBE)).await };
        let rows = asked.await;
        let count = |index| rows.as_ref().ok().and_then(|rows| rows.first()?.count(index).ok()).unwrap_or(0);
        ShardHealth {
            shard: (self.0.id != CONTROL).then_some(self.0.id),
            reachable: rows.is_ok(),
            probe_us: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            buckets_owned: count(0),
            map_version: count(1),
            replica_lag_ms_max: u64::try_from(self.0.replica.delay.as_millis()).unwrap_or(u64::MAX),
            term,
            primary,
            degraded: self.group().and_then(Group::degraded),
            endpoints,
        }
    }
}

/// A reading connection that keeps its snapshot for a while, so that staleness can be practised without a server.
#[derive(Debug)]
pub(crate) struct Replica {
    db: Db,
    delay: Duration,
    held: Arc<Mutex<Option<Held>>>,
}

#[derive(Debug)]
struct Held {
    snapshot: Snapshot,
    since: Instant,
}

impl Replica {
    /// Whether its answers are at most this old.
    pub(crate) fn is_within(&self, most: Duration) -> bool {
        self.delay <= most
    }

    /// Whether it is never behind.
    pub(crate) const fn is_primary(&self) -> bool {
        self.delay.is_zero()
    }

    /// Runs a statement in the replica's snapshot, and never takes longer than until `until`.
    pub(crate) async fn query(&self, statement: Statement, until: Instant) -> Result<Vec<Row>, DbError> {
        timeout_at(until, self.query_held(statement)).await.unwrap_or(Err(DbError::Late))
    }

    async fn query_held(&self, statement: Statement) -> Result<Vec<Row>, DbError> {
        let mut slot = self.held.lock().await;
        let fresh = slot.take().filter(|held| held.since.elapsed() < self.delay);
        let mut held = match fresh {
            Some(held) => held,
            None => self.hold().await?,
        };
        let rows = held.snapshot.query(statement).await?;
        *slot = Some(held);
        Ok(rows)
    }

    /// Whether its snapshot is from when the bucket was here: one from before the bucket's move says nothing of its rows.
    pub(crate) async fn has_received(&self, bucket: Bucket, until: Instant) -> Result<bool, DbError> {
        Ok(!self.query(Statement::of(HERE).bind(bucket.get()), until).await?.is_empty())
    }

    /// Takes a new snapshot. The old one is let go first, so that the log behind it can be cleaned up.
    async fn hold(&self) -> Result<Held, DbError> {
        let snapshot = self.db.hold().await?;
        self.let_go_later();
        Ok(Held { snapshot, since: Instant::now() })
    }

    /// Ends the snapshot when its time is up, also when nobody reads: the log behind it could not be cleaned up else.
    fn let_go_later(&self) {
        let (slot, delay) = (Arc::downgrade(&self.held), self.delay);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(slot) = slot.upgrade() {
                let _closed = slot.lock().await.take_if(|held| held.since.elapsed() >= delay);
            }
        });
    }
}
