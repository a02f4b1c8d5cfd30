//! What the promises of a move need: a mover, an outlet that says what the test wants, and an account with everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pim_core::id::Id;
use pim_core::shard::{Bucket, ShardId};
use pim_data::backend::{Db, DbError, Engine};
use pim_data::cluster::Cluster;
use pim_data::relocation::{MoveRecord, MoveSettings, MoveStep, Mover, Outflow, Outlet, Run};
use pim_data::unit::UnitError;

use super::ENGINE;
use super::world::{Account, CustomerNote, ShopResource, World, cx, keyed, tell, write};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// Says what the test wants; there is no outbox here.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    pub(crate) parked: AtomicBool,
    pub(crate) waiting: AtomicBool,
    pub(crate) asked: AtomicU64,
    /// Whoever asks for this time is not answered while this says so.
    pub(crate) silent_at: AtomicU64,
    /// From this time on nothing waits; never, if it is nought.
    pub(crate) dry_from: AtomicU64,
}

impl Tap {
    /// Comes back when it has been asked so often.
    pub(crate) async fn is_asked(&self, times: u64) {
        eventually("it is asked", async || self.asked.load(Ordering::SeqCst) >= times).await;
    }
}

#[async_trait]
impl Outlet for Tap {
    async fn outflow(&self, _shard: &Db, _buckets: &[Bucket]) -> Result<Outflow, DbError> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let give_up = Instant::now() + LONG;
        while self.silent_at.load(Ordering::SeqCst) == number {
            assert!(Instant::now() < give_up, "nobody lets it answer");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(if self.parked.load(Ordering::SeqCst) {
            Outflow::Parked
        } else if self.waiting.load(Ordering::SeqCst) && !(1..=number).contains(&self.dry_from.load(Ordering::SeqCst)) {
            Outflow::Waiting
        } else {
            Outflow::Dry
        })
    }
}

/// Comes back when this holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < give_up, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// As patient as a stalled disk may need it.
pub(crate) fn mover(cluster: &Cluster) -> (Mover, Arc<Tap>) {
    mover_of(cluster, Duration::from_secs(15))
}

/// For what keeps a bucket fenced as long as that may be.
pub(crate) fn hasty_mover(cluster: &Cluster) -> (Mover, Arc<Tap>) {
    mover_of(cluster, Duration::from_secs(3))
}

fn mover_of(cluster: &Cluster, pause_max: Duration) -> (Mover, Arc<Tap>) {
    let tap = Arc::new(Tap::default());
    let short = MoveSettings { pause_max, lull_max: Duration::ZERO, ..MoveSettings::default() };
    (Mover::new(cluster, tap.clone()).with_settings(short), tap)
}

/// Takes a move up and brings it as far as this.
pub(crate) async fn at_step(mover: &Mover, planned: &MoveRecord, step: MoveStep) -> Run {
    let mut run = mover.take_up(planned.id).await.expect("is free");
    go_on_to(&mut run, step).await;
    run
}

pub(crate) async fn go_on_to(run: &mut Run, step: MoveStep) {
    while run.record().step != step {
        run.step(&cx()).await.expect("goes on");
    }
}

/// An account with notes, some history and an answered request.
pub(crate) async fn filled(world: &World) -> Account {
    let account = world.register().await;
    for points in 1..=3 {
        world.change(account.id, |account| account.points = points).await.expect("commits");
    }
    for _ in 0..3 {
        note(world, account.id).await.expect("commits");
    }
    let mut unit = world.cluster.begin(&keyed(&account.id.to_string(), "body"), account.id);
    tell(&mut unit, "answered");
    unit.answer(201, &serde_json::json!({"kept": true}));
    unit.commit().await.expect("commits");
    account
}

pub(crate) async fn note(world: &World, customer: Id<super::world::Customer>) -> Result<(), UnitError> {
    let note = CustomerNote {
        id: Id::child_of(customer.bucket(), world.cluster.clock().now()),
        version: 0,
        customer,
        account: customer,
        text: "hello".to_owned(),
    };
    let mut unit = world.cluster.begin(&cx(), customer);
    unit.save(&write(ShopResource::Note), &note)?;
    tell(&mut unit, "noted");
    unit.commit().await.map(drop)
}

pub(crate) fn home_of(world: &World, account: &Account) -> (ShardId, ShardId) {
    let from = world.cluster.router().route(&account.id).shard;
    (from, ShardId(1 - from.0))
}

/// What the shard holds of the account, table by table.
pub(crate) async fn rows_on(world: &World, shard: ShardId, account: &Account) -> Vec<u64> {
    let db = world.powerful(shard).await;
    let id = super::world::uuid(account.id.uuid());
    let mut counts = Vec::new();
    for (table, key) in [
        ("account_row", "home_key"),
        ("account_history", "home_key"),
        ("note_row", "home_key"),
        ("note_history", "home_key"),
        ("key_head", "key"),
        ("fact", "key"),
    ] {
        let text = format!("SELECT COUNT(*) FROM {table} WHERE {key} = {id}");
        let statement = pim_data::backend::Statement::of(pim_data::backend::SqlPair::generated(text));
        counts.push(db.query(statement).await.expect("reads")[0].count(0).expect("a count"));
    }
    let text = format!("SELECT COUNT(*) FROM idempotency WHERE bucket = {}", account.id.bucket());
    let statement = pim_data::backend::Statement::of(pim_data::backend::SqlPair::generated(text));
    counts.push(db.query(statement).await.expect("reads")[0].count(0).expect("a count"));
    counts
}

pub(crate) const FILLED: [u64; 7] = [1, 4, 3, 3, 1, 8, 1];

/// Has a shard refuse to write down what becomes of its buckets, or not any more.
pub(crate) async fn refuse_owners(world: &World, shard: ShardId, refuses: bool) {
    let script = match (ENGINE, refuses) {
        (Engine::Postgres, true) => {
            "CREATE FUNCTION stays() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
             CREATE TRIGGER stays BEFORE INSERT OR UPDATE ON pim_bucket_owned FOR EACH ROW EXECUTE FUNCTION stays()"
        }
        (Engine::Postgres, false) => "DROP FUNCTION stays CASCADE",
        (Engine::Sqlite, true) => {
            "CREATE TRIGGER stays BEFORE UPDATE ON pim_bucket_owned BEGIN SELECT RAISE(ABORT, 'not now'); END"
        }
        (Engine::Sqlite, false) => "DROP TRIGGER stays",
    };
    let mut tx = world.powerful(shard).await.begin().await.expect("begins");
    tx.script(script).await.expect("runs");
    tx.commit().await.expect("commits");
}
