//! One connection. Statements go one a trip: the driver does not pipeline.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{
    AssertSqlSafe, Column as _, Connection as _, Either, Executor as _, SqlSafeStr as _, SqlStr, Statement as _,
    TypeInfo as _,
};

use super::codec::{arguments, row_of};
use super::refusal::explain;
use crate::backend::sql::Text;
use crate::backend::{DbError, Demand, Described, Engine, Row, SqlPair, Statement};

/// What the next user of a connection must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is open.
    Clean,
    /// A transaction is open, no call is under way.
    Open,
    /// A call is under way; seen from outside: it was cut short.
    Busy { in_transaction: bool },
    /// It broke.
    Broken,
}

#[derive(Debug)]
pub(super) struct Conn {
    raw: PgConnection,
    place: String,
    state: State,
    used_at: Instant,
    /// Of the target that it was opened by.
    generation: u64,
}

impl Conn {
    pub(super) fn new(raw: PgConnection, place: &str, generation: u64) -> Self {
        Self { raw, place: place.to_owned(), state: State::Clean, used_at: Instant::now(), generation }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) const fn used_at(&self) -> Instant {
        self.used_at
    }

    pub(super) fn idle_for(&self) -> Duration {
        self.used_at.elapsed()
    }

    pub(super) fn is_clean(&self) -> bool {
        self.state == State::Clean
    }

    pub(super) fn is_between_calls(&self) -> bool {
        self.state == State::Open
    }

    /// From here until [`Conn::end_call`] the connection is in the middle of something. `false` where it still is: a call was cut
    /// short, what comes next would be its answer, and nobody knows what it has opened.
    #[must_use]
    pub(super) fn begin_call(&mut self) -> bool {
        match self.state {
            State::Busy { .. } => return false,
            State::Broken => {}
            State::Clean => self.state = State::Busy { in_transaction: false },
            State::Open => self.state = State::Busy { in_transaction: true },
        }
        true
    }

    pub(super) fn end_call(&mut self, error: Option<&DbError>) {
        self.used_at = Instant::now();
        self.state = match (self.state, error) {
            (State::Busy { .. }, Some(DbError::Lost | DbError::Engine(_) | DbError::Column(_)))
            | (State::Broken, _) => State::Broken,
            (State::Busy { in_transaction: true }, _) => State::Open,
            (State::Busy { in_transaction: false }, _) => State::Clean,
            (other, _) => other,
        };
    }

    /// Says that what runs in the present call opens, or has ended, a transaction.
    pub(super) fn in_transaction(&mut self, in_transaction: bool) {
        if matches!(self.state, State::Busy { .. }) {
            self.state = State::Busy { in_transaction };
        }
    }

    pub(super) async fn ping(&mut self) -> Result<(), DbError> {
        self.raw.ping().await.map_err(|error| explain(error, &self.place))
    }

    pub(super) async fn roll_back(&mut self) -> Result<(), DbError> {
        self.script("ROLLBACK").await?;
        self.state = State::Clean;
        self.used_at = Instant::now();
        Ok(())
    }

    pub(super) async fn query(&mut self, statement: &Statement) -> Result<Vec<Row>, DbError> {
        let query = sqlx::query_with(sql_of(statement)?, arguments(statement)?);
        let rows = self.raw.fetch_all(query).await.map_err(|error| explain(error, &self.place))?;
        rows.iter().map(|row| row_of(row, &self.place)).collect()
    }

    pub(super) async fn describe(&mut self, sql: &SqlPair) -> Result<Vec<Described>, DbError> {
        let text = sql.text(Engine::Postgres).ok_or(DbError::NoText { engine: "PostgreSQL" })?;
        let prepared = self.raw.prepare(AssertSqlSafe(text).into_sql_str()).await;
        let prepared = prepared.map_err(|error| explain(error, &self.place))?;
        Ok(prepared.columns().iter().map(|it| Described::of(it.name(), it.type_info().name())).collect())
    }

    /// Stops at the first row; the server's closing words are read before the next statement.
    pub(super) async fn first(&mut self, statement: &Statement) -> Result<Option<Row>, DbError> {
        let query = sqlx::query_with(sql_of(statement)?, arguments(statement)?);
        let row = self.raw.fetch_optional(query).await.map_err(|error| explain(error, &self.place))?;
        row.map(|row| row_of(&row, &self.place)).transpose()
    }

    pub(super) async fn hop(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        let mut answers = Vec::with_capacity(statements.len());
        for statement in statements {
            answers.push(self.query(statement).await?);
        }
        Ok(answers)
    }

    /// Runs a script without parameters and returns the rows of its last statement that has some.
    pub(super) async fn script(&mut self, text: &str) -> Result<Vec<Row>, DbError> {
        let mut rows = Vec::new();
        {
            let mut stream = self.raw.fetch_many(sqlx::raw_sql(AssertSqlSafe(text.to_owned())));
            while let Some(step) = stream.try_next().await.map_err(|error| explain(error, &self.place))? {
                if let Either::Right(row) = step {
                    rows.push(row);
                }
            }
        }
        rows.iter().map(|row| row_of(row, &self.place)).collect()
    }

    /// A commit that is acknowledged must survive the server's power cut, and go to the server that is meant.
    pub(super) async fn check_server(&mut self, demand: Demand) -> Result<(), DbError> {
        const ASK: SqlPair = SqlPair::postgres(
            "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
            current_setting('synchronous_commit'), pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN 0 ELSE \
            ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END",
        );
        let rows = self.query(&Statement::of(ASK)).await?;
        let row = rows.first().ok_or(DbError::Closed)?;
        for (index, setting) in ["fsync", "full_page_writes", "synchronous_commit"].into_iter().enumerate() {
            let found = row.text(index)?;
            // The second waits for no standby: what it acknowledges can be lost with the primary.
            if matches!(found, "off" | "local") {
                return Err(DbError::NotDurable { place: self.place.clone(), setting, found: found.to_owned() });
            }
        }
        let (is_standby, term) = (row.int(3)? != 0, row.count(4)?);
        if is_standby && demand.primary {
            return Err(DbError::ReadOnly { place: self.place.clone() });
        }
        if !is_standby && term < demand.term {
            return Err(DbError::FormerPrimary { place: self.place.clone(), term });
        }
        Ok(())
    }
}

/// What is sent. It is made of our own statements alone.
fn sql_of(statement: &Statement) -> Result<SqlStr, DbError> {
    Ok(match statement.postgres_text()? {
        Text::Fixed(text) => text.into_sql_str(),
        Text::Made(text) => AssertSqlSafe(text).into_sql_str(),
    })
}
