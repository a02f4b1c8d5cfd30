//! What a program declares and does not mean is refused where it is opened, by name, and not by a table that stays empty.

use std::sync::Arc;

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_data::backend::SqlPair;
use pim_data::unit::Unit;
use pim_events::{
    AppendExt as _, ApplyError, CommandHandler, CommandRunner, ConsumerSettings, DomainEvent as _, Effect, Event,
    Projection, ProjectionRunner, ReadTable, ReadTx, Rebuild, RebuildError, RunnerError, StoreError, Verdict,
};
use uuid::Uuid;

use super::commands_happen_once::settings;
use super::rig::{Answered, Folder, Happened, Patient, Rig, Running, eventually, patient};

/// A read model whose author was not careful.
struct Shelf {
    handles: &'static str,
    tables: &'static [ReadTable],
}

#[async_trait]
impl Projection for Shelf {
    fn name(&self) -> &'static str {
        "shelf"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::same("CREATE TABLE shelf (home BIGINT, things BIGINT)")
    }

    fn tables(&self) -> &'static [ReadTable] {
        self.tables
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == self.handles
    }

    async fn apply(&self, _tx: &mut ReadTx, _batch: &[Event]) -> Result<(), ApplyError> {
        Ok(())
    }
}

const SOUND: &[ReadTable] = &[ReadTable { name: "shelf", columns: &["home", "THINGS"] }];

async fn opened(
    rig: &Rig,
    handles: &'static str,
    tables: &'static [ReadTable],
) -> Result<ProjectionRunner, RunnerError> {
    let all: Vec<Arc<dyn Projection>> = vec![Arc::new(Shelf { handles, tables })];
    ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, all, &ConsumerSettings::default()).await
}

/// Guard: `Registry::has_any`. Heads would move over everything, lag be none, and whoever asks be told of no rows.
#[tokio::test]
async fn a_consumer_that_handles_nothing_that_is_registered() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let refused = opened(&rig, "thing.hapened", SOUND).await.unwrap_err();
    assert_eq!(refused.to_string(), "shelf handles none of the event types that are registered for topic domain.v1");
    let handler: Arc<dyn CommandHandler> = Arc::new(Careless { handles: "thing.hapened" });
    let refused =
        CommandRunner::open(&rig.cluster, &rig.store, rig.subscriber(), &rig.registry, vec![handler], &settings())
            .await;
    assert!(matches!(refused.unwrap_err(), RunnerError::HandlesNothing { name: "careless", .. }));
    assert!(opened(&rig, Happened::TYPE, SOUND).await.is_ok());
}

/// Guard: `Rebuild::run` asks `Registry::has_any`. An empty model would be swapped in for the one that serves.
#[tokio::test]
async fn a_rebuild_to_nothing() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _installed = opened(&rig, Happened::TYPE, SOUND).await.expect("is sound");
    let rebuilt = async |handles| {
        let model: Arc<dyn Projection> = Arc::new(Shelf { handles, tables: SOUND });
        let rebuild = Rebuild::new(&rig.store, rig.subscriber(), &rig.registry, model, Verdict::MayDiffer);
        rebuild.run(folder.path(), |_, _| {}).await
    };
    let refused = rebuilt("thing.hapened").await.unwrap_err();
    assert!(matches!(refused, RebuildError::HandlesNothing { name: "shelf", topic: "domain.v1" }), "{refused}");
    rebuilt(Happened::TYPE).await.expect("is rebuilt");
}

/// Guard: `columns::check`. The first event would park its key.
#[tokio::test]
async fn a_table_or_column_that_is_not_there() {
    const MISTYPED: &[ReadTable] = &[ReadTable { name: "shelf", columns: &["home", "thing"] }];
    const NOWHERE: &[ReadTable] = &[ReadTable { name: "shelves", columns: &["home"] }];
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let lacks = async |tables| match opened(&rig, Happened::TYPE, tables).await {
        Err(RunnerError::Store(StoreError::Lacks { table, column, .. })) => Some((table, column)),
        _ => None,
    };
    assert_eq!(lacks(MISTYPED).await, Some(("shelf", "thing")), "a new one");
    assert_eq!(lacks(NOWHERE).await, Some(("shelves", "*")), "a new one");
    assert_eq!(lacks(SOUND).await, None, "what was refused has left nothing behind");
    assert_eq!(
        lacks(MISTYPED).await,
        Some(("shelf", "thing")),
        "as when the script has got a column at the same version"
    );
    assert_eq!(lacks(SOUND).await, None);
}

/// Appends, and says that there is nothing to do.
struct Careless {
    handles: &'static str,
}

#[async_trait]
impl CommandHandler for Careless {
    fn name(&self) -> &'static str {
        "careless"
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == self.handles
    }

    async fn handle(&self, _cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        unit.append(&Answered { answer: event.derive_id::<Patient>(0).uuid(), cause: event.id })?;
        Ok(Effect::Nothing)
    }
}

/// Guard: `CommandSink::run` asks the unit. What was appended would be gone, and the event counted as applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_did_something_and_says_nothing() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let handler: Arc<dyn CommandHandler> = Arc::new(Careless { handles: Happened::TYPE });
    let runner =
        CommandRunner::open(&rig.cluster, &rig.store, rig.subscriber(), &rig.registry, vec![handler], &settings())
            .await;
    let (relay, commands) = (Running::relay(rig.relay()), Running::commands(runner.unwrap()));
    rig.write(patient(), Uuid::new_v4(), &[1]).await;
    eventually("its key is parked", || async {
        let held = rig.store.held_keys(None, 9).await.unwrap();
        held.first().is_some_and(|key| key.code == "nothing_of_something")
    })
    .await;
    relay.end().await;
    commands.end().await;
}
