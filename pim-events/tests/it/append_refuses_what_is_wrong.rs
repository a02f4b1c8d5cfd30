//! An event that no reader could take is refused at append, by name, and nothing is written.

use pim_data::backend::Statement;
use pim_data::cluster::Cluster;
use pim_data::schema::Schema;
use pim_events::{
    AppendError, AppendExt as _, DomainEvent, EVENT_BYTES_MAX, EVENTS_PER_UNIT_MAX, EventsExt as _, Registry,
    RegistryError,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::rig::{Folder, Happened, Rig, context, patient, powerful, settings};

#[derive(Serialize, Deserialize)]
struct Note {
    text: String,
}

impl DomainEvent for Note {
    const TYPE: &'static str = "note.written";
    const VERSION: u16 = 2;
    const AGGREGATE: &'static str = "note";
    fn aggregate_id(&self) -> Uuid {
        Uuid::nil()
    }
    fn aggregate_version(&self) -> u64 {
        1
    }
    fn check(&self) -> Result<(), &'static str> {
        if self.text.is_empty() { Err("text must not be empty") } else { Ok(()) }
    }
}

/// Its aggregate would stand in headers and subjects as nobody expects it.
#[derive(Serialize, Deserialize)]
struct Shouted {}

impl DomainEvent for Shouted {
    const TYPE: &'static str = "note.shouted";
    const AGGREGATE: &'static str = "Loud Note";
    fn aggregate_id(&self) -> Uuid {
        Uuid::nil()
    }
    fn aggregate_version(&self) -> u64 {
        1
    }
}

/// Guard: `append` asks the registry of the schema.
#[tokio::test]
async fn an_unknown_type() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let mut unit = rig.cluster.begin(&context(), patient());
    let refused = unit.append(&Note { text: "x".into() }).unwrap_err();
    assert_eq!(refused, AppendError::UnknownType { event_type: "note.written" });
}

/// Guard: size, schema rule and number of events are checked before the event is taken.
#[tokio::test]
async fn too_large_or_against_its_schema_or_too_many() {
    let folder = Folder::new();
    let upcast = |value| Ok(value);
    let registry = Registry::builder().event::<Note>().upcast("note.written", 1, upcast).build().unwrap();
    let schema = Schema::builder().events(&registry).build().unwrap();
    let cluster = Cluster::open(settings(folder.path(), 1), schema).await.unwrap();
    let home = patient();
    let mut unit = cluster.begin(&context(), home);
    let large = unit.append(&Note { text: "x".repeat(EVENT_BYTES_MAX) }).unwrap_err();
    assert!(matches!(large, AppendError::TooLarge { event_type: "note.written", .. }));
    let empty = unit.append(&Note { text: String::new() }).unwrap_err();
    assert_eq!(empty, AppendError::Schema { event_type: "note.written", rule: "text must not be empty" });
    for _ in 0..EVENTS_PER_UNIT_MAX {
        unit.append(&Note { text: "x".into() }).unwrap();
    }
    assert_eq!(unit.append(&Note { text: "x".into() }).unwrap_err(), AppendError::TooMany);
    drop(unit);
    let shard = cluster.router().route(&home).shard;
    let rows = cluster.database(shard).unwrap().query(Statement::same("SELECT seq FROM outbox_event")).await.unwrap();
    assert!(rows.is_empty(), "a dropped unit writes nothing");
}

/// Guard: without a registry nothing is appended.
#[tokio::test]
async fn without_a_registry() {
    let folder = Folder::new();
    let cluster = Cluster::open(settings(folder.path(), 1), Schema::builder().build().unwrap()).await.unwrap();
    let mut unit = cluster.begin(&context(), patient());
    let refused = unit.append(&Happened { thing: Uuid::new_v4(), step: 1 }).unwrap_err();
    assert_eq!(refused, AppendError::NoRegistry);
}

/// Guard: `RegistryBuilder::build` insists on a way up from every version.
#[test]
fn a_registry_without_an_upcaster() {
    let built = Registry::builder().event::<Note>().build().unwrap_err();
    assert_eq!(built, RegistryError::Chain { event_type: "note.written", from: 1 });
    let twice = Registry::builder().event::<Happened>().event::<Happened>().build().unwrap_err();
    assert_eq!(twice, RegistryError::Twice { event_type: "thing.happened" });
    let shouting = Registry::builder().event::<Shouted>().build().unwrap_err();
    assert_eq!(shouting, RegistryError::Part { event_type: "note.shouted", what: "aggregate", name: "Loud Note" });
}

/// Guard: the outbox is append-only (trigger `outbox_event_is_immutable`).
#[tokio::test]
async fn a_change_of_what_is_written() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let mut tx = powerful(&rig, home).await.begin().await.unwrap();
    assert!(tx.query(Statement::same("UPDATE outbox_event SET payload = '{}'")).await.is_err());
    tx.rollback().await.unwrap();
}
