//! A small world of its own: tickets of customers, their notes, and a part that records facts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pim_core::clock::{Clock, Timestamp};
use pim_core::context::{IdempotencyScope, RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Policy, Reach, Read, SystemScope, Write};
use pim_core::shard::{HomeKey, ShardMap};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::backend::{Db, Engine, Statement};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::entity::{Column, ColumnKind};
use pim_data::fan_out::{FanOut, Next};
use pim_data::migration::Migration;
use pim_data::relocation::{Belongs, MovedTable};
use pim_data::repository::{Page, Period};
use pim_data::schema::{Schema, SchemaBuilder};
use pim_data::unit::{CommitFacts, Committed, PartCall, PartError, Unit, UnitError, UnitPart};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ENGINE;

pim_core::id_kinds! {
    /// A customer, the home key.
    Customer = "customer",
    /// A note of a customer.
    Note = "note",
    /// A depot, in the control database.
    Depot = "depot",
}
pim_core::roles! { pub(crate) enum ShopRole { Customer = "customer", Clerk = "clerk", Owner = "owner" } }
pim_core::actions! { pub(crate) enum ShopAction { Look = "look": Read, Change = "change": Write } }
pim_core::resources! { pub(crate) enum ShopResource { Account = "account", Note = "note", Depot = "depot" } }

/// The home key's own row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) id: Id<Customer>,
    pub(crate) version: u64,
    pub(crate) facility: Option<Uuid>,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) points: i64,
    pub(crate) since: Option<Timestamp>,
    pub(crate) vip: bool,
    pub(crate) tags: Vec<String>,
}

pim_data::entity! {
    impl Entity for Account {
        kind: Customer,
        resource: ShopResource::Account,
        table: "account",
        home: id,
        facility: facility,
        columns: [
            Column::new("name", ColumnKind::Text),
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("points", ColumnKind::Int).shown(),
            Column::new("since", ColumnKind::Time).nullable(),
            Column::new("vip", ColumnKind::Bool).shown(),
            Column::new("tags", ColumnKind::Json),
        ],
    }
}

impl Account {
    pub(crate) fn new(id: Id<Customer>) -> Self {
        let (name, state) = ("Ada Example".to_owned(), "open".to_owned());
        let tags = vec!["a".to_owned()];
        Self { id, version: 0, facility: None, name, state, points: 0, since: None, vip: false, tags }
    }
}

/// A row that lives with a customer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CustomerNote {
    pub(crate) id: Id<Note>,
    pub(crate) version: u64,
    pub(crate) customer: Id<Customer>,
    pub(crate) account: Id<Customer>,
    pub(crate) text: String,
}

pim_data::entity! {
    impl Entity for CustomerNote {
        kind: Note,
        resource: ShopResource::Note,
        table: "note",
        home: customer,
        columns: [Column::new("account", ColumnKind::Uuid).shown(), Column::new("text", ColumnKind::Text)],
        references: [("account", "account")],
    }
}

/// A row of the control database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DepotRow {
    pub(crate) id: Id<Depot>,
    pub(crate) version: u64,
    pub(crate) code: String,
}

pim_data::entity! {
    impl Entity for DepotRow {
        kind: Depot,
        resource: ShopResource::Depot,
        table: "depot",
        home: id,
        columns: [Column::new("code", ColumnKind::Text).shown().unique()],
    }
}

/// Stands for an outbox: one row a fact.
#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<String>);

impl UnitPart for Facts {
    fn facts(&self) -> u64 {
        self.0.len() as u64
    }
    fn statements(&mut self, facts: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError> {
        let insert = |(offset, text): (usize, &String)| {
            let n = facts.n_first + offset as u64;
            let insert = Statement::sqlite("INSERT INTO fact (key, n, text) VALUES (?, ?, ?)");
            insert.bind(facts.home.uuid()).bind(n).bind(text.as_str())
        };
        Ok(self.0.iter().enumerate().map(insert).collect())
    }
    fn call(&mut self, _facts: &CommitFacts<'_>) -> Result<Option<PartCall>, PartError> {
        Ok((!self.0.is_empty()).then(|| PartCall { part: "fact", data: serde_json::json!(self.0) }))
    }
}

pub(crate) fn tell(unit: &mut Unit, text: &str) {
    unit.part::<Facts>().0.push(text.to_owned());
}

pub(crate) fn schema() -> Schema {
    schema_builder().build().expect("a sound schema")
}

pub(crate) fn schema_builder() -> SchemaBuilder {
    let fact = "CREATE TABLE fact (key BLOB NOT NULL, n INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (key, n))";
    let fact_postgres =
        "CREATE TABLE fact (key uuid NOT NULL, n bigint NOT NULL, text text NOT NULL, PRIMARY KEY (key, n));
        GRANT SELECT, INSERT ON fact TO pim_app;
        CREATE FUNCTION fact_append(context pim_context, data jsonb, n_first bigint) RETURNS void LANGUAGE sql AS $$
          INSERT INTO public.fact (key, n, text) SELECT context.home, n_first + number - 1, text
            FROM jsonb_array_elements_text(data) WITH ORDINALITY AS given(text, number) $$;
        SELECT pim_register_part('fact', 'fact_append')";
    Schema::builder()
        .everywhere(&[Migration::new(1000, "facts", fact).with_postgres(fact_postgres)])
        .entity::<Account>(10_000)
        .entity::<CustomerNote>(10_001)
        .control_entity::<DepotRow>(10_000)
        .moved(MovedTable { name: "fact", columns: &["key", "n", "text"], belongs: Belongs::Key("key") })
}

/// A directory that goes when the test ends.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pim-data-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        #[cfg(feature = "postgres")]
        if ENGINE == Engine::Postgres {
            crate::server::forget(&self.0);
        }
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) policy: Policy,
    pub(crate) folder: Folder,
}

pub(crate) fn settings(folder: &Folder, shards: u16) -> ClusterSettings {
    let mut settings = ClusterSettings::at(folder.path()).with_map(ShardMap::even(shards).expect("a few shards"));
    // Whoever is to be behind stays behind.
    settings.maps_every = Duration::from_secs(3600);
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        return settings.with_servers(crate::server::provide(folder.path(), shards));
    }
    settings
}

pub(crate) fn policy() -> Policy {
    let mut builder = Policy::builder(1);
    for resource in [ShopResource::Account, ShopResource::Note, ShopResource::Depot] {
        for (role, reach) in
            [(ShopRole::Customer, Reach::Own), (ShopRole::Clerk, Reach::SameFacility), (ShopRole::Owner, Reach::All)]
        {
            builder = builder.permit(role, ShopAction::Look, resource, reach);
            builder = builder.permit(role, ShopAction::Change, resource, reach);
        }
    }
    builder.build().expect("a sound policy")
}

impl World {
    pub(crate) async fn new(shards: u16) -> Self {
        Self::with(shards, |settings| settings).await
    }

    pub(crate) async fn with(shards: u16, change: impl FnOnce(ClusterSettings) -> ClusterSettings) -> Self {
        let folder = Folder::new();
        let cluster = Cluster::open(change(settings(&folder, shards)), schema()).await.expect("opens");
        Self { cluster, policy: policy(), folder }
    }

    pub(crate) async fn with_clock(shards: u16) -> (Self, Clock) {
        let clock = Clock::manual(Timestamp::from_micros(1_000_000));
        let world = Self::with(shards, |mut settings| {
            settings.clock = clock.clone();
            settings
        });
        (world.await, clock)
    }

    /// Writes a new account and returns it as stored.
    pub(crate) async fn register(&self) -> Account {
        self.register_as(Account::new(Id::random())).await
    }

    pub(crate) async fn register_as(&self, mut account: Account) -> Account {
        let mut unit = self.cluster.begin(&cx(), account.id);
        account.version = unit.save(&write(ShopResource::Account), &account).expect("saves");
        tell(&mut unit, "registered");
        unit.commit().await.expect("commits");
        account
    }

    /// One load-change-commit.
    pub(crate) async fn change(&self, id: Id<Customer>, change: impl Fn(&mut Account)) -> Result<Committed, UnitError> {
        let mut unit = self.cluster.begin(&cx(), id);
        let permit = write(ShopResource::Account);
        let mut account = unit.load::<Account>(&permit, id).await?.expect("is there");
        change(&mut account);
        unit.save(&permit, &account)?;
        tell(&mut unit, "changed");
        unit.commit().await
    }

    /// A world of two shards with an account in four versions.
    pub(crate) async fn with_changes() -> (Self, Account) {
        let world = Self::new(2).await;
        let account = world.register().await;
        for points in 1..=3 {
            world.change(account.id, |account| account.points = points).await.expect("commits");
        }
        (world, account)
    }

    /// Every period of an account, page by page.
    pub(crate) async fn history(&self, id: Id<Customer>) -> Vec<Period<Account>> {
        let (mut page, mut periods) = (Page::FIRST, Vec::<Period<Account>>::new());
        loop {
            let part = self.cluster.history(&cx(), &read(ShopResource::Account), id, page).await.expect("reads");
            periods.extend(part.periods);
            page.after = part.next;
            if page.after.is_none() {
                return periods;
            }
        }
    }

    /// A number that a statement selects on the shard of a key.
    pub(crate) async fn count(&self, home: impl Into<HomeKey>, sql: &'static str) -> u64 {
        let db = self.all_powerful(home).await;
        db.query(Statement::same(sql)).await.expect("runs")[0].count(0).expect("a number")
    }

    /// Hand-typed SQL on the shard of a key.
    pub(crate) async fn raw(&self, home: impl Into<HomeKey>, sql: &str) -> Result<(), pim_data::backend::DbError> {
        let mut tx = self.all_powerful(home).await.begin().await?;
        tx.script(sql).await?;
        tx.commit().await
    }

    /// The database of a key's shard, for somebody who may do everything there.
    pub(crate) async fn all_powerful(&self, home: impl Into<HomeKey>) -> Db {
        self.powerful(self.cluster.router().route(&home.into()).shard).await
    }

    /// As [`World::all_powerful`], by the shard's number.
    pub(crate) async fn powerful(&self, shard: pim_core::shard::ShardId) -> Db {
        #[cfg(feature = "postgres")]
        if ENGINE == Engine::Postgres {
            return crate::server::superuser(self.folder.path(), shard.0).await;
        }
        self.cluster.database(shard).expect("a shard").clone()
    }
}

/// Every record that matches.
pub(crate) async fn trail_of(cluster: &Cluster, filter: AuditFilter) -> Vec<AuditEntry> {
    let (mut page, mut trail) = (Page::FIRST, Vec::new());
    loop {
        let permit = read(ShopResource::Account);
        let part = cluster
            .audit(&cx(), &permit, FanOut::because("a test").time_max(Duration::from_secs(60)), &filter, page)
            .await
            .expect("begins");
        assert!(part.failed.is_empty(), "{:?}", part.failed);
        trail.extend(part.rows);
        match part.next {
            Next::End => return trail,
            Next::After(place) => page.after = Some(place),
            Next::Again => panic!("the map changes"),
        }
    }
}

/// Bytes in the engine's own notation.
pub(crate) fn bytes(hex: &str) -> String {
    if ENGINE == Engine::Postgres { format!("'\\x{hex}'::bytea") } else { format!("X'{hex}'") }
}

/// A UUID in the engine's own notation.
pub(crate) fn uuid(id: Uuid) -> String {
    if ENGINE == Engine::Postgres { format!("'{id}'") } else { format!("X'{}'", id.simple()) }
}

pub(crate) fn cx() -> RequestContext {
    cx_of(Actor::new("u-1".parse().expect("a subject"), ShopRole::Owner))
}

pub(crate) fn cx_of(actor: Actor) -> RequestContext {
    RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)))
}

/// Of somebody who has so much time.
pub(crate) fn within(time: Duration) -> RequestContext {
    let actor = Actor::new("u-1".parse().expect("a subject"), ShopRole::Owner);
    RequestContext::new(RequestId::mint(), actor, Deadline::after(time))
}

pub(crate) fn keyed(key: &str, body: &str) -> RequestContext {
    cx().with_idempotency(IdempotencyScope::new("u-1", "POST", "/accounts", key, body.as_bytes()))
}

pub(crate) fn write(resource: ShopResource) -> Permit<Write> {
    Permit::system(SystemScope::new("test"), ShopAction::Change, resource)
}

pub(crate) fn read(resource: ShopResource) -> Permit<Read> {
    Permit::system(SystemScope::new("test"), ShopAction::Look, resource)
}
