//! Fencing where commits wait for a standby that is not there: it gives up by name instead of waiting.

use std::pin::pin;
use std::time::Duration;

use pim_core::shard::ShardId;
use tokio::time::{Instant, timeout};

use super::{PublishError, Step};
use crate::backend::{Db, DbError, Engine};
use crate::cluster::{Cluster, Need, Shard};

/// How long a shard has for what it is told before it is asked what it waits for.
const CONFIRM_MAX: Duration = Duration::from_secs(3);
/// How long it has for that answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Whether commits of this login wait for a standby. Only its own can be seen by it, and its own by nobody else.
const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database() \
    AND usename = current_user AND state_change < now() - interval '750 milliseconds'";

impl Cluster {
    /// Refuses while a shard waits for a standby with what it was told: nobody sees until then what it follows.
    pub(super) async fn is_settled(&self, id: ShardId) -> Result<(), PublishError> {
        match self.shard(id).filter(Shard::is_governed) {
            Some(shard) => confirms(shard.governed()).await.map_err(|source| PublishError::Shard { shard: id, source }),
            None => Ok(()),
        }
    }

    /// Refuses a step while a shard whose buckets it changes takes no writes, or still waits for a standby with what it was told
    /// before: its writers would wait for the fence behind that.
    pub(super) async fn takes_writes(
        &self,
        step: &Step<'_>,
        green: &[Shard],
        until: Instant,
    ) -> Result<(), PublishError> {
        let changes = |id: &_| !step.next.buckets_of(*id).eq(step.current.buckets_of(*id));
        for id in step.takers().filter(changes) {
            let found = green.iter().find(|shard| shard.id() == id).cloned().or_else(|| self.shard(id));
            let shard = found.ok_or(PublishError::UnknownShard(id))?;
            let failed = |source| PublishError::Shard { shard: id, source };
            shard.ready(until, Need::Write).await.map_err(failed)?;
            confirms(shard.governed()).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Waits for what a server was told, unless it waits for a standby with it. The server goes on waiting then, and keeps its locks:
/// whoever wants them would have to wait for the same standby.
pub(super) async fn told<T>(db: &Db, call: impl Future<Output = Result<T, DbError>>) -> Result<T, DbError> {
    let mut call = pin!(call);
    loop {
        if let Ok(outcome) = timeout(CONFIRM_MAX, &mut call).await {
            return outcome;
        }
        match confirms(db).await {
            // All of the owner's connections are in use: nobody knows.
            Ok(()) | Err(DbError::Late) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Refuses a server where what was told waits for a standby. A file waits for nobody.
async fn confirms(db: &Db) -> Result<(), DbError> {
    if db.engine() == Engine::Sqlite {
        return Ok(());
    }
    let rows = db.ask(Instant::now() + ANSWER_MAX, WAITS).await?;
    let waiting = rows.first().map_or(Ok(0), |row| row.count(0))?;
    if waiting > 0 { Err(DbError::NoStandby { place: db.name() }) } else { Ok(()) }
}
