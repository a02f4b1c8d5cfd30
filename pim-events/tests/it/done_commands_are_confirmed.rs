//! A command that was done before counts when whomever a commit waits for has it: after a crash it may be on one server alone.

use std::sync::Arc;

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use pim_data::backend::{Db, SqlPair, Statement};
use pim_data::unit::Unit;
use pim_events::{AppendExt as _, ApplyError, CommandHandler, DomainEvent as _, Effect, Event};
use uuid::Uuid;

use super::commands_happen_once::{answers, commands, commands_of, forget_position};
use super::rig::{Answered, Folder, Happened, Rig, Running, eventually, patient, powerful};

/// As long as no standby confirms anything; who asks in vain is counted.
const SILENCE: &str = "CREATE SEQUENCE public.asked;
GRANT USAGE ON SEQUENCE public.asked TO PUBLIC;
CREATE OR REPLACE FUNCTION pim_settle() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM nextval('public.asked');
  RAISE EXCEPTION 'nobody confirms' USING ERRCODE = '55P03';
END $$";

async fn run(db: &Db, text: &str) {
    let mut tx = db.begin().await.unwrap();
    tx.script(text).await.unwrap();
    tx.commit().await.unwrap();
}

/// A relay that runs, and an event of a home key that commands answer; and whoever may do everything there.
async fn with_an_event(folder: &Folder) -> (Rig, Running, HomeKey, Db) {
    let rig = Rig::open(folder.path()).await;
    let relay = Running::relay(rig.relay());
    let home = patient();
    let db = powerful(&rig, home).await;
    rig.write(home, Uuid::new_v4(), &[2]).await;
    (rig, relay, home, db)
}

/// Lets commands run while nobody confirms, and says what they make of it then and later.
async fn passes_only_when_confirmed(rig: &Rig, db: &Db, home: Uuid, handler: Option<Arc<dyn CommandHandler>>) {
    let defined = Statement::of(SqlPair::postgres("SELECT pg_get_functiondef('pim_settle'::regproc)"));
    let defined = db.query(defined).await.unwrap()[0].text(0).unwrap().to_owned();
    run(db, SILENCE).await;
    let _running = Running::commands(match handler {
        Some(handler) => commands_of(rig, handler).await,
        None => commands(rig).await,
    });
    let asked = || async {
        let asked = Statement::of(SqlPair::postgres("SELECT last_value FROM public.asked"));
        db.query(asked).await.unwrap()[0].count(0).unwrap() >= 3
    };
    eventually("it asks again and again", asked).await;
    assert_eq!(rig.store.head("answer", home).await.unwrap().n, 0, "it does not count yet");
    run(db, &defined).await;
    eventually("it counts", || async { rig.store.head("answer", home).await.unwrap().n >= 1 }).await;
}

/// Guard: `inbox::DONE` settles what it finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_consumer_passes_them() {
    let folder = Folder::new();
    let (rig, _relay, home, db) = with_an_event(&folder).await;
    let running = Running::commands(commands(&rig).await);
    eventually("it is passed", || async { rig.store.head("answer", home.uuid()).await.unwrap().n >= 1 }).await;
    running.end().await;
    forget_position(&rig).await;
    passes_only_when_confirmed(&rig, &db, home.uuid(), None).await;
    assert_eq!(answers(&rig).await.len(), 1);
}

/// Is always second: somebody else has committed the command meanwhile.
struct Second(Db);

#[async_trait]
impl CommandHandler for Second {
    fn name(&self) -> &'static str {
        "answer"
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == Happened::TYPE
    }

    async fn handle(&self, _cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        let (id, home, bucket) = (event.id, event.home, unit.home().bucket().get());
        let first = format!("INSERT INTO command_inbox VALUES ('answer', '{id}', '{home}', {bucket}, 0)");
        run(&self.0, &first).await;
        unit.append(&Answered { answer: Uuid::new_v4(), cause: id })?;
        Ok(Effect::Commit)
    }
}

/// Guard: whoever loses a race looks once more (`CommandSink::run`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_trust_whoever_was_first() {
    let folder = Folder::new();
    let (rig, _relay, home, db) = with_an_event(&folder).await;
    passes_only_when_confirmed(&rig, &db, home.uuid(), Some(Arc::new(Second(db.clone())))).await;
    assert_eq!(answers(&rig).await.len(), 0);
}
