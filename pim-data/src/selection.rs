//! Reading by a statement of the caller's own, within the permit's scope: for what no list by id can ask.

use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Read, Scope};
use pim_core::shard::ShardId;

use crate::backend::{Engine, Row, SqlPair, Statement, Value};
use crate::cluster::{Cluster, Need};
use crate::entity::Entity;
use crate::repository::{ReadError, check_resource, in_time};
use crate::scope;

/// Ends with the transaction that the statement runs in.
const SCOPE_POSTGRES: SqlPair = SqlPair::postgres("SELECT set_config('app.scope', ?, true)");
const SCOPE_SQLITE: SqlPair = SqlPair::sqlite("UPDATE pim_scope SET mode = ?, own = ?, facilities = ?");
const NO_SCOPE: SqlPair = SqlPair::sqlite("UPDATE pim_scope SET mode = 0, own = NULL, facilities = NULL");

impl Cluster {
    /// Runs one reading statement on a shard, or on the control database by [`CONTROL`](crate::cluster::CONTROL), and shows it
    /// the rows of the permit's scope. It names tables as the entities do (`claim`, not `claim_row`), and their history by
    /// `claim_past`; on both engines these are views that show nothing outside of such a call. It reads the newest commit.
    ///
    /// While a bucket moves two shards have its rows: whoever asks several selects `bucket` too, and believes what the map
    /// says of it. Whoever must see each row once compares the map's version before and after.
    ///
    /// It takes four round trips on a server where [`Cluster::list`] takes one: meant for jobs, not for requests.
    ///
    /// ```no_run
    /// # use pim_data::backend::{DbError, Row, Statement};
    /// # use pim_data::cluster::Cluster;
    /// # use pim_data::entity::Entity;
    /// # use pim_data::repository::ReadError;
    /// use pim_core::shard::Bucket;
    ///
    /// # async fn overdue<Loan: Entity>(cluster: Cluster, cx: pim_core::context::RequestContext,
    /// #     permit: pim_core::rbac::Permit<pim_core::rbac::Read>) -> Result<(), ReadError> {
    /// const OVERDUE: &str = "SELECT id, bucket FROM loan WHERE due_at < ? ORDER BY id LIMIT 100";
    /// let map = cluster.map();
    /// for shard in map.serving() {
    ///     let overdue = Statement::same(OVERDUE).bind(cluster.clock().now());
    ///     for row in cluster.select::<Loan>(&cx, &permit, shard.id, overdue).await? {
    ///         let bucket = Bucket::new(row.count(1)?.try_into().unwrap_or(u16::MAX));
    ///         if bucket.is_ok_and(|bucket| map.owner(bucket).0 == shard.id) {
    ///             println!("{}", row.uuid(0)?);
    ///         }
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn select<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        shard: ShardId,
        statement: Statement,
    ) -> Result<Vec<Row>, ReadError> {
        check_resource::<E>(permit)?;
        let outcome = self.selected(cx, permit.scope(), shard, statement).await;
        self.0.settings.signals.read(shard, &outcome);
        if let Err(ReadError::Database(error)) = &outcome {
            self.complain(shard, error, cx);
        }
        outcome
    }

    async fn selected(
        &self,
        cx: &RequestContext,
        scope: &Scope,
        shard: ShardId,
        statement: Statement,
    ) -> Result<Vec<Row>, ReadError> {
        in_time(cx)?;
        let shard = self.shard(shard).ok_or(ReadError::UnknownShard(shard))?;
        let db = shard.db();
        let statements = match db.engine() {
            Engine::Postgres => vec![Statement::of(SCOPE_POSTGRES).bind(scope::setting(scope)), statement],
            Engine::Sqlite => vec![seen_by(scope), statement, Statement::of(NO_SCOPE)],
        };
        let until = cx.deadline().instant();
        let ask = async || db.read_until(until).await?.snapshot(&statements).await;
        shard.ready(until, Need::Read).await?;
        // Ends with the deadline.
        let answers = loop {
            match ask().await {
                Ok(answers) => break answers,
                Err(error) => shard.recover(until, Need::Read, error).await?,
            }
        };
        Ok(answers.into_iter().nth(1).unwrap_or_default())
    }
}

/// Sets what the embedded engine's views consult. The transaction takes it back when the statement behind it fails.
fn seen_by(scope: &Scope) -> Statement {
    let (mode, own, facilities) = match scope {
        Scope::Own(own) => (1_i64, Value::from(*own), Value::Null),
        Scope::Facilities(set) => {
            let listed: String = set.iter().map(|facility| format!("{:X},", facility.as_simple())).collect();
            (2, Value::Null, Value::Text(format!(",{listed}")))
        }
        Scope::All => (3, Value::Null, Value::Null),
    };
    Statement::of(SCOPE_SQLITE).bind(mode).bind_all([own, facilities])
}

/// Every statement of this room.
pub(crate) fn pairs() -> [SqlPair; 3] {
    [SCOPE_POSTGRES, SCOPE_SQLITE, NO_SCOPE]
}
