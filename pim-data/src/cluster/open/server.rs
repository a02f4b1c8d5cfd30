//! Shards on servers: the endpoints of the map, by the secrets that it names.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::shard::{EndpointRole, Shard as Described, ShardId, ShardMap};

use super::{IDENTITY, OpenError, introduce, name_of, somebody_else};
use crate::backend::{Db, DbError, Dial, SecretError, ServerSettings, SqlPair, Statement};
use crate::cluster::group::Members;
use crate::cluster::{CONTROL, ClusterSettings, Endpoint, Group, Servers, Shard};
use crate::migration::{check, make_routines, migrate};
use crate::schema::Schema;

pub(super) const ROLE: SqlPair = SqlPair::postgres("SELECT pg_is_in_recovery()");

/// Longest statement of a migration.
const MIGRATION_MAX: Duration = Duration::from_secs(10 * 60);

/// What a server is, before anything is known of what it holds.
const OFFICE: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN 0 ELSE \
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END";

/// Identifier and secret of an endpoint.
type Named<'m> = (&'m str, &'m str);

pub(super) async fn open_shard(
    described: &Described,
    servers: &Servers,
    map: &ShardMap,
    settings: &ClusterSettings,
    schema: &Schema,
) -> Result<Shard, OpenError> {
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
    Opening::new(described.id, servers, map, settings, schema).shard(&named).await
}

pub(super) async fn open_control(
    servers: &Servers,
    map: &ShardMap,
    settings: &ClusterSettings,
    schema: &Schema,
) -> Result<Shard, OpenError> {
    let named = [(servers.control.as_str(), servers.control.as_str())];
    Opening::new(CONTROL, servers, map, settings, schema).shard(&named).await
}

struct Opening<'a> {
    id: ShardId,
    dial: Dial,
    map: &'a ShardMap,
    settings: &'a ClusterSettings,
    schema: &'a Schema,
}

impl<'a> Opening<'a> {
    fn new(
        id: ShardId,
        servers: &Servers,
        map: &'a ShardMap,
        settings: &'a ClusterSettings,
        schema: &'a Schema,
    ) -> Self {
        let (secrets, resolver) = (Arc::clone(&servers.secrets), Arc::clone(&servers.resolver));
        let dial = Dial { secrets, resolver, settings: servers.settings, alarm: Arc::default() };
        Self { id, dial, map, settings, schema }
    }

    /// The shard with its servers, the map's primary first.
    async fn shard(&self, named: &[Named<'_>]) -> Result<Shard, OpenError> {
        let primary = self.elect(named).await;
        let (writer, owner) = self.primary(named[primary].1).await?;
        let endpoints: Result<Vec<_>, _> = named.iter().map(|(id, dsn)| Endpoint::new(id, dsn, &self.dial)).collect();
        let group = Group::new(Members {
            shard: self.id,
            keyspace: self.map.keyspace().to_owned(),
            endpoints: endpoints.map_err(|source| self.failed(source))?,
            primary,
            writer,
            owner,
            alarm: Arc::clone(&self.dial.alarm),
            settings: self.dial.settings,
            signals: self.settings.signals.clone(),
        });
        group.look(false).await;
        // A server that is not there now may come later; one that is somebody else's is a mistake.
        if let Some(endpoint) = group.stranger() {
            let found = format!("another one, says its endpoint {endpoint}");
            return Err(OpenError::Identity { shard: name_of(self.id), found });
        }
        Ok(Shard::of_group(self.id, group, self.settings.replica_delay))
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

    /// The application's connections, and the owner's if this program has them.
    async fn primary(&self, dsn_ref: &str) -> Result<(Db, Option<Db>), OpenError> {
        let owner = self.owner(dsn_ref).await?;
        if let Some(owner) = &owner {
            self.prepare(owner, dsn_ref).await?;
        }
        let db = self.connect(dsn_ref, self.dial.settings).await?;
        self.check_role(&db, dsn_ref).await?;
        if owner.is_none() {
            let checked = check(&db, self.steps()).await;
            checked.map_err(|source| OpenError::Schema { shard: name_of(self.id), source })?;
        }
        self.check_identity(&db).await?;
        Ok((db, owner))
    }

    async fn owner(&self, dsn_ref: &str) -> Result<Option<Db>, OpenError> {
        let settings = ServerSettings {
            connections_max: 2,
            transaction_max: MIGRATION_MAX,
            call_max: MIGRATION_MAX,
            ..self.dial.settings
        };
        match self.connect(&format!("{dsn_ref}-owner"), settings).await {
            Err(OpenError::Database { source: DbError::Secret { source: SecretError::Absent { .. }, .. }, .. }) => {
                Ok(None)
            }
            connected => connected.map(Some),
        }
    }

    /// Connects once, so that what is wrong is said now.
    async fn connect(&self, name: &str, settings: ServerSettings) -> Result<Db, OpenError> {
        let until = tokio::time::Instant::now() + settings.connect_timeout;
        let connected = async {
            let db = Db::dial(name, Dial { settings, ..self.dial.clone() })?;
            drop(db.read_until(until).await?);
            Ok(db)
        };
        connected.await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: DbError) -> OpenError {
        OpenError::Database { shard: name_of(self.id), source }
    }

    fn steps(&self) -> &[crate::migration::Migration] {
        if self.id == CONTROL { self.schema.control_migrations() } else { self.schema.shard_migrations() }
    }

    /// Brings the schema up to date and makes a new database known to itself.
    async fn prepare(&self, owner: &Db, dsn_ref: &str) -> Result<(), OpenError> {
        self.check_role(owner, dsn_ref).await?;
        let schema = |source| OpenError::Schema { shard: name_of(self.id), source };
        migrate(owner, self.steps()).await.map_err(schema)?;
        make_routines(owner, &self.schema.routines(self.id == CONTROL)).await.map_err(schema)?;
        match introduce(owner, self.id, self.map).await.map_err(|source| self.failed(source))? {
            Some(found) => Err(OpenError::Identity { shard: name_of(self.id), found }),
            None => Ok(()),
        }
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

    async fn check_identity(&self, db: &Db) -> Result<(), OpenError> {
        let found = async {
            let rows = db.query(Statement::of(IDENTITY)).await?;
            rows.first().map_or(Ok(Some("nobody yet".to_owned())), |row| somebody_else(row, self.id, self.map))
        };
        match found.await.map_err(|source| self.failed(source))? {
            Some(found) => Err(OpenError::Identity { shard: name_of(self.id), found }),
            None => Ok(()),
        }
    }
}
