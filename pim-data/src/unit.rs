//! The unit of work: rows, history, audit, outbox and idempotency commit together or not at all.

mod batch;
mod bulk;
mod commit;
mod error;
mod message;
mod part;
mod server;
mod tries;
mod write;

use batch::Ticket;
pub(crate) use batch::{BATCH_MAX, Batches};
pub use bulk::BULK_MAX;
pub use commit::Committed;
pub use error::UnitError;
pub use part::{CommitFacts, PartCall, PartError, UnitPart};
pub(crate) use server::SETTLE;
use server::SETTLE_ANSWER;
pub use tries::Tries;
use write::Told;
pub use write::{Answer, Written};

use std::any::Any;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::rbac::{Permit, Scope, Write as WriteAccess};
use pim_core::shard::{Bucket, HomeKey, Route, ShardId};
use serde_json::{Map, Value as Json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::backend::{DbError, Engine, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster, Need, Shard};
use crate::entity::{Calls, Entity, Stored, Table, from_row, json_of, select_list, stored, stored_as, values_of};
use crate::schema::Schema;
use crate::{idempotency, scope};

/// Most rows that one unit may write.
pub const WRITES_MAX: usize = 64;
/// Most rows that one unit may load and keep for their change.
pub const LOADS_MAX: usize = 256;

/// A buffered transaction on one home key. Loads read at once; saves only collect; [`Unit::commit`] sends everything.
///
/// Dropping it writes nothing.
#[derive(Debug)]
#[must_use = "a unit that is not committed writes nothing"]
pub struct Unit {
    pub(crate) cluster: Cluster,
    pub(crate) cx: RequestContext,
    pub(crate) home: HomeKey,
    pub(crate) route: Route,
    pub(crate) at: Timestamp,
    /// The key's n when it was first read; commit insists that nobody has written since.
    pub(crate) head: Option<u64>,
    pub(crate) loaded: Vec<(Uuid, Stored)>,
    pub(crate) writes: Vec<Pending>,
    pub(crate) parts: Vec<Box<dyn UnitPart>>,
    /// Status and body.
    pub(crate) answer: Option<(u16, Json)>,
    /// Of the server that it has read from, while it is on its way there.
    ticket: Option<Ticket>,
    /// Who runs it again and wants to know what it was told.
    told: Option<Told>,
}

/// One row to be written.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) table: &'static Table,
    pub(crate) id: Uuid,
    pub(crate) before: Option<Stored>,
    pub(crate) after: Map<String, Json>,
    pub(crate) values: Vec<Value>,
    pub(crate) facility: Option<Uuid>,
    pub(crate) version: u64,
    pub(crate) scope: Scope,
    pub(crate) action: &'static str,
    pub(crate) system: Option<&'static str>,
}

impl Unit {
    pub(crate) fn new(cluster: Cluster, cx: RequestContext, home: HomeKey, route: Route) -> Self {
        let at = cluster.clock().now();
        let (loaded, writes, parts) = (Vec::new(), Vec::new(), Vec::new());
        Self { cluster, cx, home, route, at, head: None, loaded, writes, parts, answer: None, ticket: None, told: None }
    }

    /// Goes by another route from now on.
    fn turn_to(&mut self, route: Route) {
        self.route = route;
        self.ticket = None;
        self.cx.went_to(route.shard);
    }

    /// Goes where the map says, and waits until that shard is open here.
    async fn find_shard(&mut self) -> Result<Shard, UnitError> {
        loop {
            if let Some(shard) = self.cluster.shard(self.route.shard) {
                return Ok(shard);
            }
            if !self.cluster.is_found(self.route, self.cx.deadline()).await {
                return Err(UnitError::UnknownShard(self.route.shard));
            }
            self.turn_to(self.cluster.router().route(&self.home));
        }
    }

    fn complain(&self, error: &DbError) {
        self.cluster.complain(self.route.shard, error, &self.cx);
    }

    /// For which request.
    #[must_use]
    pub fn context(&self) -> &RequestContext {
        &self.cx
    }

    /// Whose rows.
    #[must_use]
    pub const fn home(&self) -> HomeKey {
        self.home
    }

    /// The instant that this unit's rows, audit records and events will carry.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// Reads a row in order to change it. In the same snapshot it looks up whether this request was answered before.
    ///
    /// `None` when there is no such row with this home key within the permit's scope.
    ///
    /// # Errors
    /// [`UnitError::Replay`] with the stored answer of an earlier, equal submission; [`UnitError::Denied`] when the permit
    /// speaks of something else; [`UnitError::UnknownEntity`]; [`UnitError::Conflict`] when the key was written since an earlier
    /// load;
    /// [`UnitError::TooLarge`] above [`LOADS_MAX`] rows.
    pub async fn load<E: Entity>(
        &mut self,
        permit: &Permit<WriteAccess>,
        id: Id<E::Kind>,
    ) -> Result<Option<E>, UnitError> {
        let loaded = self.look_for(permit, id).await;
        if let (Err(error), Some(told)) = (&loaded, &self.told) {
            told.note(error);
        }
        loaded
    }

    async fn look_for<E: Entity>(
        &mut self,
        permit: &Permit<WriteAccess>,
        id: Id<E::Kind>,
    ) -> Result<Option<E>, UnitError> {
        check_resource::<E>(permit)?;
        let wanted = (self.home.uuid(), id.uuid());
        let mut tries = 0;
        // Ends: leaving is believed a bounded number of times, and a failed call is repeated until the deadline.
        let row = loop {
            let shard = self.find_shard().await?;
            let calls = calls_of::<E>(&self.cluster, self.route.shard)?;
            let (engine, submission) = (shard.db().engine(), idempotency::scope_bind(&self.cx));
            let select = select(E::TABLE, calls, engine, permit.scope(), submission, wanted);
            let until = in_time(&self.cx)?;
            if let Err(error) = shard.ready(until, Need::Read).await {
                self.go_on_elsewhere(&shard, error)?;
                continue;
            }
            if self.ticket.is_none() {
                self.ticket = shard.group().map(|group| group.batches().ticket());
            }
            let asked = async { shard.db().read_until(until).await?.first(select).await };
            let found = match asked.await {
                Ok(found) => found,
                // A load does nothing: it may go to whoever is the primary next.
                Err(error) => {
                    if let Err(error) = shard.recover(until, Need::Read, error).await {
                        self.go_on_elsewhere(&shard, error)?;
                    }
                    continue;
                }
            };
            let is_there = found.as_ref().is_some_and(|row| *row.get(ROW) != Value::Null);
            if is_there || !self.cluster.has_left(self.route, self.cx.deadline(), tries).await? {
                break found;
            }
            self.turn_to(self.cluster.router().route(&self.home));
            tries += 1;
        };
        let Some(row) = row else { return Ok(None) };
        if let Err(found) = idempotency::check(&self.cx, self.home, &row, 0) {
            return Err(self.settled(found).await?);
        }
        let head = if *row.get(HEAD) == Value::Null { 0 } else { row.count(HEAD)? };
        if *self.head.get_or_insert(head) != head {
            return Err(UnitError::Conflict);
        }
        if *row.get(ROW) == Value::Null {
            return Ok(None);
        }
        let entity = from_row::<E>(&row, ROW)?;
        self.loaded.retain(|(known, _)| *known != id.uuid());
        if self.loaded.len() == LOADS_MAX {
            return Err(UnitError::TooLarge { most: LOADS_MAX });
        }
        self.loaded.push((id.uuid(), stored(E::TABLE, &row, ROW)?));
        Ok(Some(entity))
    }

    /// What an earlier submission came to, as soon as no lost server takes it away: on servers an answer is given again when a
    /// commit would be, and waits for a standby as one does.
    async fn settled(&self, found: UnitError) -> Result<UnitError, UnitError> {
        let shard = self.cluster.shard(self.route.shard).ok_or(UnitError::UnknownShard(self.route.shard))?;
        if let (UnitError::Replay(_), Engine::Postgres) = (&found, shard.db().engine()) {
            // Without a standby nobody keeps a connection for it.
            let until = in_time(&self.cx)?;
            shard.ready(until, Need::Write).await.inspect_err(|error| self.complain(error))?;
            let settle = Statement::of(SETTLE_ANSWER).bind(idempotency::scope_bind(&self.cx));
            if shard.db().write_until(until).await?.query(settle).await?.is_empty() {
                // Another server took over meanwhile that never had it: the next run finds out.
                return Err(UnitError::Conflict);
            }
        }
        Ok(found)
    }

    /// Whether another one has taken the shard's place, where a load may go instead. Ends: each time it has.
    fn go_on_elsewhere(&mut self, shard: &Shard, error: DbError) -> Result<(), UnitError> {
        if !matches!(error, DbError::Closed) || !self.cluster.is_replaced(shard) {
            self.complain(&error);
            return Err(error.into());
        }
        self.ticket = None;
        Ok(())
    }

    /// Begins the unit that comes after this one in a bulk, as if it had loaded what this one saves: of the units of one
    /// [`Cluster::commit_bulk`] none can read what the others write.
    ///
    /// Commit compares versions: a unit whose predecessor was not written is refused as stale.
    ///
    /// # Errors
    /// [`UnitError::TooLarge`] above [`LOADS_MAX`] rows.
    pub fn following(&self) -> Result<Self, UnitError> {
        let mut next = Self::new(self.cluster.clone(), self.cx.clone(), self.home, self.route);
        next.loaded.clone_from(&self.loaded);
        for pending in &self.writes {
            next.loaded.retain(|(known, _)| *known != pending.id);
            next.loaded.push((pending.id, stored_as(pending.table, &pending.after)));
        }
        if next.loaded.len() > LOADS_MAX { Err(UnitError::TooLarge { most: LOADS_MAX }) } else { Ok(next) }
    }

    /// Collects a row to be written: inserted when its version is 0, else changed from the version that was loaded.
    ///
    /// Returns the version that it will have.
    ///
    /// # Errors
    /// [`UnitError::Denied`] outside the permit's scope, [`UnitError::UnknownEntity`], [`UnitError::NotLoaded`],
    /// [`UnitError::WrongHome`], [`UnitError::ReferenceElsewhere`], [`UnitError::TooLarge`] above [`WRITES_MAX`] rows.
    pub fn save<E: Entity>(&mut self, permit: &Permit<WriteAccess>, entity: &E) -> Result<u64, UnitError> {
        check_resource::<E>(permit)?;
        calls_of::<E>(&self.cluster, self.route.shard)?;
        if entity.home() != self.home || entity.id().bucket() != self.home.bucket() {
            return Err(UnitError::WrongHome { entity: E::TABLE.name });
        }
        if !permit.scope().sees(self.home.uuid(), entity.facility()) {
            return Err(UnitError::Denied { entity: E::TABLE.name });
        }
        let id = entity.id().uuid();
        let before = self.loaded.iter().find(|(known, _)| *known == id).map(|(_, stored)| stored.clone());
        if entity.version() > 0 && before.is_none() {
            return Err(UnitError::NotLoaded { entity: E::TABLE.name });
        }
        let after = json_of(entity)?;
        if self.route.shard != CONTROL {
            refers_to_neighbours::<E>(&after, self.home.bucket())?;
        }
        let pending = Pending {
            table: E::TABLE,
            id,
            before,
            values: values_of(E::TABLE, &after)?,
            after,
            facility: entity.facility(),
            version: entity.version() + 1,
            scope: permit.scope().clone(),
            action: permit.action().name(),
            system: permit.system_scope().map(pim_core::rbac::SystemScope::reason),
        };
        let version = pending.version;
        // A row that is saved twice in one unit is written once, as it was saved last.
        self.writes.retain(|other| other.id != id);
        if self.writes.len() == WRITES_MAX {
            return Err(UnitError::TooLarge { most: WRITES_MAX });
        }
        self.writes.push(pending);
        Ok(version)
    }

    /// What databases this unit writes to hold.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        self.cluster.schema()
    }

    /// Whether no row was saved and no part has a fact: nothing is lost with it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.facts() == 0
    }

    /// The slot that another crate fills; made when first asked for.
    #[expect(clippy::missing_panics_doc, reason = "it never does: the position is that of a part of this very type")]
    pub fn part<P: UnitPart + Default>(&mut self) -> &mut P {
        let position = self.parts.iter().position(|part| (part.as_ref() as &dyn Any).is::<P>());
        let position = position.unwrap_or_else(|| {
            self.parts.push(Box::new(P::default()));
            self.parts.len() - 1
        });
        let part = self.parts[position].as_mut() as &mut dyn Any;
        #[expect(clippy::expect_used, reason = "the position was found by this very type")]
        part.downcast_mut().expect("a part of this type")
    }

    /// The answer that an equal submission will get from now on; commits with the rest. Without one nothing is recorded of the
    /// request's idempotency key, and an equal submission is carried out again.
    pub fn answer(&mut self, status: u16, body: &Json) {
        self.answer = Some((status, body.clone()));
    }
}

/// Where the key's number is in an answer of [`select`], and where the row begins.
const HEAD: usize = idempotency::WIDTH;
const ROW: usize = HEAD + 1;

/// The stored answer's columns, the key's number and the row's, whichever of them there are.
fn select(
    table: &Table,
    calls: &Calls,
    engine: Engine,
    scope: &Scope,
    submission: Value,
    (home, id): (Uuid, Uuid),
) -> Statement {
    if engine == Engine::Postgres {
        let select = Statement::of(calls.load.clone());
        return select.bind(submission).bind(home).bind(scope::setting(scope)).bind(id);
    }
    let (reach, reach_binds) = scope::predicate(scope);
    let select = format!(
        "SELECT {}, k.n, {} FROM (SELECT 1) {} LEFT JOIN key_head k ON k.key = ? \
         LEFT JOIN {}_row r ON r.id = ? AND r.home_key = ? AND {reach}",
        idempotency::COLUMNS,
        select_list(table),
        idempotency::JOIN,
        table.name,
    );
    let select = Statement::of(SqlPair::generated_sqlite(select)).bind(submission).bind(home);
    select.bind(id).bind(home).bind_all(reach_binds)
}

/// Every statement of a unit on these tables.
pub(crate) fn pairs(schema: &Schema, tables: &[&'static Table]) -> Vec<SqlPair> {
    let nobody = (Uuid::nil(), Uuid::nil());
    let loads = tables.iter().filter_map(|table| Some((table, schema.calls(table)?))).flat_map(|(table, calls)| {
        scope::shapes().map(|scope| {
            let load = |engine| select(table, calls, engine, &scope, Value::Null, nobody).into_pair();
            SqlPair::joined(load(Engine::Postgres), load(Engine::Sqlite))
        })
    });
    let calls = tables.iter().filter_map(|table| schema.calls(table));
    loads.chain(commit::pairs(tables)).chain(server::pairs(calls)).chain(bulk::pairs()).collect()
}

/// The deadline, unless it has passed.
fn in_time(cx: &RequestContext) -> Result<Instant, UnitError> {
    cx.deadline().remaining().map(|_| cx.deadline().instant()).ok_or(UnitError::Deadline)
}

/// The functions of an entity, unless it does not live where the unit writes.
fn calls_of<E: Entity>(cluster: &Cluster, shard: ShardId) -> Result<&Calls, UnitError> {
    let (schema, control) = (cluster.schema(), shard == CONTROL);
    let calls = schema.calls(E::TABLE).filter(|_| schema.holds(E::TABLE, control));
    calls.ok_or(UnitError::UnknownEntity { entity: E::TABLE.name, place: place_name(control) })
}

/// What an error calls the database that lacks an entity.
pub(crate) const fn place_name(control: bool) -> &'static str {
    if control { "the control database" } else { "the shards" }
}

/// Refuses references to rows of other buckets, which would keep this one and theirs from ever moving.
fn refers_to_neighbours<E: Entity>(after: &Map<String, Json>, bucket: Bucket) -> Result<(), UnitError> {
    for (column, _) in E::TABLE.references {
        let named = after.get(*column).and_then(Json::as_str).and_then(|text| text.parse::<Id<E::Kind>>().ok());
        if named.is_some_and(|named| named.bucket() != bucket) {
            return Err(UnitError::ReferenceElsewhere { entity: E::TABLE.name, column });
        }
    }
    Ok(())
}

fn check_resource<E: Entity>(permit: &Permit<WriteAccess>) -> Result<(), UnitError> {
    if permit.resource() == E::resource() { Ok(()) } else { Err(UnitError::Denied { entity: E::TABLE.name }) }
}
