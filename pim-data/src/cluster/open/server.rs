//! Shards on servers: the endpoints of the map, by the secrets that it names.

use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::{Endpoint, EndpointRole, Shard as Described, ShardId, ShardMap};

use super::{IDENTITY, OpenError, introduce, name_of, somebody_else};
use crate::backend::{Db, DbError, SecretError, ServerSettings, SqlPair, Statement};
use crate::cluster::{CONTROL, ClusterSettings, Servers, Shard};
use crate::migration::{check, make_routines, migrate};
use crate::schema::Schema;

pub(super) const ROLE: SqlPair = SqlPair::postgres("SELECT pg_is_in_recovery()");

/// Longest statement of a migration.
const MIGRATION_MAX: Duration = Duration::from_secs(10 * 60);

pub(super) async fn open_shard(
    described: &Described,
    servers: &Servers,
    map: &ShardMap,
    settings: &ClusterSettings,
    schema: &Schema,
) -> Result<Shard, OpenError> {
    let of_role = |role| described.endpoints.iter().find(move |endpoint| endpoint.role == role);
    let primary = of_role(EndpointRole::Primary);
    let primary = primary.ok_or_else(|| OpenError::NoPrimary { shard: name_of(described.id) })?;
    let opening = Opening { id: described.id, servers, map, schema };
    let (db, owner) = opening.primary(&primary.dsn_ref).await?;
    let copy = match of_role(EndpointRole::Replica) {
        Some(endpoint) => Some(opening.replica(endpoint).await?),
        None => None,
    };
    Ok(Shard::new(described.id, db, owner, copy, settings.replica_delay))
}

pub(super) async fn open_control(
    servers: &Servers,
    map: &ShardMap,
    settings: &ClusterSettings,
    schema: &Schema,
) -> Result<Shard, OpenError> {
    let opening = Opening { id: CONTROL, servers, map, schema };
    let (db, owner) = opening.primary(&servers.control).await?;
    Ok(Shard::new(CONTROL, db, owner, None, settings.replica_delay))
}

struct Opening<'a> {
    id: ShardId,
    servers: &'a Servers,
    map: &'a ShardMap,
    schema: &'a Schema,
}

impl Opening<'_> {
    /// The application's connections, and the owner's if this program has them.
    async fn primary(&self, dsn_ref: &str) -> Result<(Db, Option<Db>), OpenError> {
        let owner = self.owner(dsn_ref).await?;
        if let Some(owner) = &owner {
            self.prepare(owner, dsn_ref).await?;
        }
        let db = self.connect(dsn_ref, self.servers.settings).await?;
        self.check_role(&db, dsn_ref, EndpointRole::Primary).await?;
        if owner.is_none() {
            let checked = check(&db, self.steps()).await;
            checked.map_err(|source| OpenError::Schema { shard: name_of(self.id), source })?;
        }
        self.check_identity(&db).await?;
        Ok((db, owner))
    }

    async fn replica(&self, endpoint: &Endpoint) -> Result<Db, OpenError> {
        let db = self.connect(&endpoint.dsn_ref, self.servers.settings).await?;
        self.check_role(&db, &endpoint.id, EndpointRole::Replica).await?;
        self.check_identity(&db).await?;
        Ok(db)
    }

    async fn owner(&self, dsn_ref: &str) -> Result<Option<Db>, OpenError> {
        let settings = ServerSettings {
            connections_max: 2,
            transaction_max: MIGRATION_MAX,
            call_max: MIGRATION_MAX,
            ..self.servers.settings
        };
        match self.connect(&format!("{dsn_ref}-owner"), settings).await {
            Err(OpenError::Database { source: DbError::Secret { source: SecretError::Absent { .. }, .. }, .. }) => {
                Ok(None)
            }
            connected => connected.map(Some),
        }
    }

    async fn connect(&self, name: &str, settings: ServerSettings) -> Result<Db, OpenError> {
        let connected = Db::connect(name, Arc::clone(&self.servers.secrets), settings).await;
        connected.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: DbError) -> OpenError {
        OpenError::Database { shard: name_of(self.id), source }
    }

    fn steps(&self) -> &[crate::migration::Migration] {
        if self.id == CONTROL { self.schema.control_migrations() } else { self.schema.shard_migrations() }
    }

    /// Brings the schema up to date and makes a new database known to itself.
    async fn prepare(&self, owner: &Db, dsn_ref: &str) -> Result<(), OpenError> {
        self.check_role(owner, dsn_ref, EndpointRole::Primary).await?;
        let schema = |source| OpenError::Schema { shard: name_of(self.id), source };
        migrate(owner, self.steps()).await.map_err(schema)?;
        make_routines(owner, &self.schema.routines(self.id == CONTROL)).await.map_err(schema)?;
        match introduce(owner, self.id, self.map).await.map_err(|source| self.failed(source))? {
            Some(found) => Err(OpenError::Identity { shard: name_of(self.id), found }),
            None => Ok(()),
        }
    }

    async fn check_role(&self, db: &Db, endpoint: &str, told: EndpointRole) -> Result<(), OpenError> {
        let asked = db.query(Statement::of(ROLE)).await;
        let is_standby = asked.and_then(|rows| Ok(rows.first().map_or(Ok(0), |row| row.int(0))? != 0));
        let found = if is_standby.map_err(|source| self.failed(source))? { "a standby" } else { "a primary" };
        let told = if told == EndpointRole::Replica { "a standby" } else { "a primary" };
        if found == told {
            return Ok(());
        }
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
