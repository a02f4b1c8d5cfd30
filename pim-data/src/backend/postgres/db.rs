//! One endpoint as a database: transactions, reads, and calls of one statement.

use tokio::time::Instant;

use super::conn::Conn;
use super::pool::{Errand, Lent, Pool};
use crate::audit::hex;
use crate::backend::{DbError, Demand, Described, Dial, Row, SqlPair, Statement};

const BEGIN: &str = "BEGIN";
/// While the shard is degraded. The database has the last word whether this transaction's end waits for a standby.
const BEGIN_ALONE: &str = "BEGIN; SELECT public.pim_alone()";
const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
/// The snapshot is taken by the first statement. Whoever holds it is bounded by its own delay.
const HOLD: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
                    SET LOCAL idle_in_transaction_session_timeout = 0; SELECT 1 FROM public.pim_identity";

#[derive(Clone, Debug)]
pub(crate) struct Db(Pool);

impl Db {
    pub(crate) fn new(name: &str, dial: Dial) -> Self {
        Self(Pool::new(name, dial))
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.is(&other.0)
    }

    pub(crate) fn name(&self) -> String {
        self.0.name()
    }

    pub(crate) fn demand(&self) -> Demand {
        self.0.demand()
    }

    pub(crate) fn turn_to(&self, name: &str, demand: Demand) {
        self.0.turn_to(name, demand);
    }

    pub(crate) fn stand_alone(&self, alone: bool) {
        self.0.stand_alone(alone);
    }

    pub(crate) fn stands_alone(&self) -> bool {
        self.0.stands_alone()
    }

    pub(crate) fn renew(&self) {
        self.0.renew();
    }

    pub(crate) fn has_room(&self) -> bool {
        self.0.has_room()
    }

    pub(crate) fn drain(&self) {
        self.0.drain();
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }

    pub(crate) async fn refresh(&self) -> bool {
        self.0.refresh().await
    }

    /// Asks in the simple protocol: nothing is prepared.
    pub(crate) async fn ask(&self, until: Instant, script: &str) -> Result<Vec<Row>, DbError> {
        self.0.lend(Some(until), Errand::Read).await?.call(async |conn| conn.script(script).await).await
    }

    pub(crate) async fn begin_with(
        &self,
        until: Option<Instant>,
        first: &[Statement],
    ) -> Result<(Transaction, Vec<Vec<Row>>), DbError> {
        let mut begun = Transaction { lent: self.0.lend(until, Errand::Write).await?, failed: false, bounded: false };
        let begin = if self.stands_alone() { BEGIN_ALONE } else { BEGIN };
        begun.call(async |conn| open(conn, begin).await).await?;
        let answers = begun.hop(first).await?;
        Ok((begun, answers))
    }

    pub(crate) async fn read(&self, until: Option<Instant>) -> Result<ReadGuard, DbError> {
        Ok(ReadGuard { lent: self.0.lend(until, Errand::Read).await? })
    }

    /// For calls that write, each as a transaction by itself.
    pub(crate) async fn write(&self, until: Instant) -> Result<ReadGuard, DbError> {
        Ok(ReadGuard { lent: self.0.lend(Some(until), Errand::Write).await? })
    }

    /// Keeps one snapshot until it is dropped.
    pub(crate) async fn hold(&self) -> Result<ReadGuard, DbError> {
        let mut held = ReadGuard { lent: self.0.lend(None, Errand::Read).await? };
        held.lent.call(async |conn| open(conn, HOLD).await).await?;
        Ok(held)
    }
}

async fn open(conn: &mut Conn, script: &str) -> Result<Vec<Row>, DbError> {
    conn.in_transaction(true);
    conn.script(script).await
}

#[derive(Debug)]
pub(crate) struct Transaction {
    lent: Lent,
    /// The server answers COMMIT of a failed transaction with success, having rolled it back.
    failed: bool,
    /// Whether its time ends before that of its caller.
    bounded: bool,
}

impl Transaction {
    /// A call before the end: whatever became of it, nothing was written.
    async fn call<T>(&mut self, work: impl AsyncFnOnce(&mut Conn) -> Result<T, DbError>) -> Result<T, DbError> {
        let outcome = self.lent.call(work).await;
        self.failed |= outcome.is_err();
        outcome.map_err(|error| match error {
            DbError::Unanswered if self.bounded => DbError::Cancelled { place: self.lent.place() },
            error => error.without_effect(),
        })
    }

    pub(crate) async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.call(async |conn| conn.query(&statement).await).await
    }

    pub(crate) async fn hop(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        self.call(async |conn| conn.hop(statements).await).await
    }

    pub(crate) async fn script(&mut self, text: &str) -> Result<(), DbError> {
        self.call(async |conn| conn.script(text).await).await.map(drop)
    }

    pub(crate) async fn commit_with(mut self, last: Vec<Statement>) -> Result<Vec<Vec<Row>>, DbError> {
        let answers = self.hop(&last).await?;
        if self.failed {
            let rule = "a transaction in which a statement failed cannot commit".to_owned();
            return Err(DbError::Refused { rule, unique: false });
        }
        self.end("COMMIT").await?;
        Ok(answers)
    }

    pub(crate) async fn rollback(mut self) -> Result<(), DbError> {
        self.end("ROLLBACK").await
    }

    async fn end(&mut self, how: &str) -> Result<(), DbError> {
        let end = async |conn: &mut Conn| {
            conn.script(how).await?;
            conn.in_transaction(false);
            Ok(())
        };
        self.lent.call(end).await
    }
}

#[derive(Debug)]
pub(crate) struct ReadGuard {
    lent: Lent,
}

impl ReadGuard {
    /// Begins a transaction and calls a function with a context, given as JSON, in one trip. The simple protocol takes no binds,
    /// so the text goes as hexadecimal digits: nothing in it can end it.
    pub(crate) async fn begin_calling(
        self,
        until: Instant,
        function: &'static str,
        argument: &str,
    ) -> Result<(Transaction, Vec<Row>), DbError> {
        let argument = hex(argument.as_bytes());
        let script = format!(
            "{BEGIN}; SELECT * FROM public.{function}(jsonb_populate_record(NULL::public.pim_context, \
             convert_from('\\x{argument}'::bytea, 'UTF8')::jsonb))"
        );
        // A fence waits for writers, and a writer must not be kept by a network that has fallen silent.
        let mut lent = self.lent;
        let latest = Instant::now() + lent.transaction_max();
        lent.end_by(latest);
        let mut begun = Transaction { lent, failed: false, bounded: latest < until };
        let rows = begun.call(async |conn| open(conn, &script).await).await?;
        Ok((begun, rows))
    }

    pub(crate) async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.lent.call(async |conn| conn.query(&statement).await).await
    }

    pub(crate) async fn first(&mut self, statement: Statement) -> Result<Option<Row>, DbError> {
        self.lent.call(async |conn| conn.first(&statement).await).await
    }

    pub(crate) async fn describe(&mut self, sql: &SqlPair) -> Result<Vec<Described>, DbError> {
        self.lent.call(async |conn| conn.describe(sql).await).await
    }

    pub(crate) async fn snapshot(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        let run = async |conn: &mut Conn| {
            open(conn, BEGIN_SNAPSHOT).await?;
            let answers = conn.hop(statements).await?;
            conn.script("COMMIT").await?;
            conn.in_transaction(false);
            Ok(answers)
        };
        self.lent.call(run).await
    }
}
