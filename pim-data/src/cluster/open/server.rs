//! Shards on servers: the endpoints of the map, by the secrets that it names.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::shard::{EndpointRole, Shard as Described, ShardId, ShardMap};

use super::{OpenError, bring_up_to_date, identity};
use crate::backend::{Db, DbError, Dial, SecretError, ServerSettings, SqlPair, Statement};
use crate::cluster::directory::Directory;
use crate::cluster::group::Members;
use crate::cluster::{CONTROL, ClusterSettings, Endpoint, Group, Servers, Shard, name_of};
use crate::migration::{MigrateError, Migration, check, check_routines, make_routines, survey};
use crate::schema::Schema;

pub(super) const ROLE: SqlPair = SqlPair::postgres("SELECT pg_is_in_recovery()");

/// Longest statement of a migration.
const MIGRATION_MAX: Duration = Duration::from_secs(10 * 60);

/// What a server is, before anything is known of what it holds.
const OFFICE: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN 0 ELSE \
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END";

/// Identifier and secret of an endpoint.
type Named<'m> = (&'m str, &'m str);

/// What is known of the directory that is being opened.
type Known<'a> = (&'a ShardMap, &'a Directory);

/// Looks at the servers of a shard, and changes nothing.
pub(super) async fn look<'a>(
    described: &Described,
    servers: &Servers,
    known: Known<'a>,
    settings: &'a ClusterSettings,
    schema: &'a Schema,
) -> Result<Fit<'a>, OpenError> {
    // The map says who was the primary when it was written; who is one now is found out.
    let (mut named, mut has_primary) = (Vec::with_capacity(described.endpoints.len()), false);
    for endpoint in &described.endpoints {
        let place = if endpoint.role == EndpointRole::Primary { 0 } else { named.len() };
        has_primary |= endpoint.role == EndpointRole::Primary;
        named.insert(place, (endpoint.id.as_str(), endpoint.dsn_ref.as_str()));
    }
    if !has_primary {
        return Err(OpenError::NoPrimary { shard: name_of(described.id) });
    }
    Opening::new(described.id, servers, known, settings, schema).look(&named).await
}

/// As [`look`], at the control database.
pub(super) async fn look_at_control<'a>(
    servers: &Servers,
    known: Known<'a>,
    settings: &'a ClusterSettings,
    schema: &'a Schema,
) -> Result<Fit<'a>, OpenError> {
    let named = [(servers.control.as_str(), servers.control.as_str())];
    Opening::new(CONTROL, servers, known, settings, schema).look(&named).await
}

struct Opening<'a> {
    id: ShardId,
    dial: Dial,
    map: &'a ShardMap,
    directory: &'a Directory,
    settings: &'a ClusterSettings,
    schema: &'a Schema,
}

/// Servers that were looked at and may be used.
pub(super) struct Fit<'a> {
    opening: Opening<'a>,
    endpoints: Vec<Endpoint>,
    primary: usize,
    pub(super) writer: Db,
    owner: Option<Db>,
}

impl Fit<'_> {
    /// Brings the schema up to date, makes a new database known to itself, and begins to look after the servers.
    pub(super) async fn open(self) -> Result<Shard, OpenError> {
        let Self { opening, endpoints, primary, writer, owner } = self;
        if let Some(owner) = &owner {
            opening.prepare(owner).await?;
        }
        identity::check(&writer, opening.id, opening.map).await?;
        let group = Group::new(Members {
            shard: opening.id,
            keyspace: opening.map.keyspace().to_owned(),
            endpoints,
            primary,
            writer,
            owner,
            alarm: Arc::clone(&opening.dial.alarm),
            settings: opening.dial.settings,
            signals: opening.settings.signals.clone(),
        });
        group.look(false).await;
        match group.stranger() {
            Some(endpoint) => Err(opening.is_strange(endpoint)),
            None => Ok(Shard::of_group(opening.id, group, opening.settings.replica_delay)),
        }
    }
}

impl<'a> Opening<'a> {
    fn new(
        id: ShardId,
        servers: &Servers,
        (map, directory): Known<'a>,
        settings: &'a ClusterSettings,
        schema: &'a Schema,
    ) -> Self {
        let (secrets, resolver) = (Arc::clone(&servers.secrets), Arc::clone(&servers.resolver));
        let dial = Dial::with(secrets, resolver, servers.settings);
        Self { id, dial, map, directory, settings, schema }
    }

    /// Looks at the servers, the map's primary first.
    async fn look(self, named: &[Named<'_>]) -> Result<Fit<'a>, OpenError> {
        let primary = self.elect(named).await;
        let dsn_ref = named[primary].1;
        let owner = self.owner(dsn_ref).await?;
        if let Some(owner) = &owner {
            self.check_role(owner, dsn_ref).await?;
            identity::look(owner, self.id, self.map, self.directory).await?;
            survey(owner, self.steps()).await.map_err(|source| self.unfit(source))?;
        }
        let writes_max = self.dial.settings.writes_max();
        let writer = self.connect(dsn_ref, Dial { writes_max, ..self.dial.clone() }).await?;
        self.check_role(&writer, dsn_ref).await?;
        identity::look(&writer, self.id, self.map, self.directory).await?;
        if owner.is_none() {
            check(&writer, self.steps()).await.map_err(|source| self.unfit(source))?;
            let routines = self.schema.routines(self.id == CONTROL);
            check_routines(&writer, &routines).await.map_err(|source| self.unfit(source))?;
        }
        let endpoints: Result<Vec<_>, _> = named.iter().map(|(id, dsn)| Endpoint::new(id, dsn, &self.dial)).collect();
        let endpoints = endpoints.map_err(|source| self.failed(source))?;
        // A server that is not there now may come later; one that is somebody else's is a mistake.
        let patience = self.dial.settings.probe_max;
        let others = endpoints.iter().map(async |it| it.is_of_another(patience, self.map.keyspace(), self.id).await);
        let strange = join_all(others).await.into_iter().zip(&endpoints).find(|(is_strange, _)| *is_strange);
        if let Some((_, endpoint)) = strange {
            return Err(self.is_strange(&endpoint.id));
        }
        Ok(Fit { opening: self, endpoints, primary, writer, owner })
    }

    fn is_strange(&self, endpoint: &str) -> OpenError {
        OpenError::Identity { shard: name_of(self.id), place: endpoint.to_owned(), found: "another one".to_owned() }
    }

    /// Which endpoint is the primary: the one of the highest term. The map's when nobody says so, for what is wrong is told of it.
    async fn elect(&self, named: &[Named<'_>]) -> usize {
        if named.len() < 2 {
            return 0;
        }
        let terms = join_all(named.iter().map(|(_, dsn_ref)| self.term_of(dsn_ref))).await;
        let primaries = terms.iter().enumerate().filter_map(|(index, term)| Some(((*term)?, index)));
        primaries.max_by_key(|&(term, index)| (term, Reverse(index))).map_or(0, |(_, index)| index)
    }

    /// The term of a primary.
    async fn term_of(&self, dsn_ref: &str) -> Option<u64> {
        let settings = ServerSettings { connections_max: 1, ..self.dial.settings };
        let dial = Dial { settings, alarm: Arc::default(), ..self.dial.clone() };
        let until = tokio::time::Instant::now() + settings.connect_timeout;
        let rows = Db::dial(dsn_ref, dial).ok()?.ask(until, OFFICE).await.ok()?;
        let row = rows.first()?;
        (row.int(0).ok()? == 0).then(|| row.count(1).ok()).flatten()
    }

    async fn owner(&self, dsn_ref: &str) -> Result<Option<Db>, OpenError> {
        let settings = ServerSettings {
            connections_max: 2,
            transaction_max: MIGRATION_MAX,
            call_max: MIGRATION_MAX,
            ..self.dial.settings
        };
        match self.connect(&format!("{dsn_ref}-owner"), Dial { settings, ..self.dial.clone() }).await {
            Err(OpenError::Database { source: DbError::Secret { source: SecretError::Absent { .. }, .. }, .. }) => {
                Ok(None)
            }
            connected => connected.map(Some),
        }
    }

    /// Connects once, so that what is wrong is said now.
    async fn connect(&self, name: &str, dial: Dial) -> Result<Db, OpenError> {
        let until = tokio::time::Instant::now() + dial.settings.connect_timeout;
        let connected = async {
            let db = Db::dial(name, dial)?;
            drop(db.read_until(until).await?);
            Ok(db)
        };
        connected.await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: DbError) -> OpenError {
        OpenError::Database { shard: name_of(self.id), source }
    }

    fn unfit(&self, source: MigrateError) -> OpenError {
        OpenError::Schema { shard: name_of(self.id), source }
    }

    fn steps(&self) -> &[Migration] {
        self.schema.migrations_of(self.id == CONTROL)
    }

    async fn prepare(&self, owner: &Db) -> Result<(), OpenError> {
        bring_up_to_date(self.id, owner, self.steps()).await.map_err(|source| self.unfit(source))?;
        let routines = self.schema.routines(self.id == CONTROL);
        make_routines(owner, &routines).await.map_err(|source| self.unfit(source))?;
        identity::introduce(owner, self.id, self.map).await
    }

    async fn check_role(&self, db: &Db, endpoint: &str) -> Result<(), OpenError> {
        let asked = db.query(Statement::of(ROLE)).await;
        let is_standby = asked.and_then(|rows| Ok(rows.first().map_or(Ok(0), |row| row.int(0))? != 0));
        if !is_standby.map_err(|source| self.failed(source))? {
            return Ok(());
        }
        let (found, told) = ("a standby", "a primary");
        Err(OpenError::Role { shard: name_of(self.id), endpoint: endpoint.to_owned(), found, told })
    }
}
