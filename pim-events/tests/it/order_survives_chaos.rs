//! Whatever the bus does and whoever dies: each event is applied once, in the order of its patient, across aggregates.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_core::context::{RequestId, TraceContext};
use pim_core::shard::{Epoch, HomeKey};
use pim_events::{
    Ack, BusError, DOMAIN_TOPIC, Disposition, DomainEvent as _, EmbeddedBus, Event, Head, HoldReason, KeyState,
    NewRecord, Origin, Publisher, Relay, Source,
};
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::Config;
use uuid::Uuid;

use super::rig::{Folder, Happened, Journal, Rig, Running, eventually, patient, relay_settings};

/// The event that a history has at a number.
fn event(history: u64, n: u64) -> Uuid {
    Uuid::from_u64_pair(history, n)
}

/// What the bus does to one record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Stores it, as it should.
    None,
    /// Says that it stored it; delivers it when it is healed, behind its successors, as an old relay would.
    Late,
    /// Stores it twice.
    Twice,
    /// Stores what came before in the batch, then fails the batch.
    Fail,
}

/// A bus that lies.
struct Liar {
    bus: EmbeddedBus,
    faults: Vec<Fault>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many records it was given.
    given: usize,
    /// What it has kept back.
    late: Vec<NewRecord>,
    /// Whether it tells the truth by now.
    healed: bool,
}

impl Liar {
    /// What goes to the log of this batch, and whether the batch fails behind it.
    fn twist(&self, batch: Vec<NewRecord>) -> (Vec<NewRecord>, bool) {
        let mut state = self.state.lock().unwrap();
        if state.healed {
            // It forgets none of them: whoever publishes may be cut off before they are stored.
            let late = state.late.iter().cloned();
            return (late.chain(batch).collect(), false);
        }
        let mut sending = Vec::new();
        for record in batch {
            let fault = self.faults[state.given % self.faults.len()];
            state.given += 1;
            match fault {
                Fault::None => sending.push(record),
                Fault::Late => state.late.push(record),
                Fault::Twice => sending.extend([record.clone(), record]),
                Fault::Fail => return (sending, true),
            }
        }
        (sending, false)
    }

    fn heal(&self) {
        self.state.lock().unwrap().healed = true;
    }
}

#[async_trait]
impl Publisher for Liar {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        let count = batch.len() as u64;
        let (sending, fails) = self.twist(batch);
        self.bus.publish(sending).await?;
        if fails {
            return Err(BusError::Closed);
        }
        Ok((0..count).map(|offset| Ack::Stored { partition: 0, offset }).collect())
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    (0..10_u8).prop_map(|it| match it {
        0 => Fault::Fail,
        1 => Fault::Late,
        2 | 3 => Fault::Twice,
        _ => Fault::None,
    })
}

/// One turn: who writes how many events, and for how long everything runs before it is killed.
type Turn = (usize, usize, u8);

async fn run(faults: Vec<Fault>, turns: Vec<Turn>) -> Vec<(u64, Vec<u64>)> {
    let folder = Folder::new();
    let homes: Vec<HomeKey> = (0..3).map(|_| patient()).collect();
    let mut written = [0_u64; 3];
    let rig = Rig::open(folder.path()).await;
    let liar = Arc::new(Liar { bus: rig.bus.clone(), faults, state: Mutex::default() });
    let publisher: Arc<dyn Publisher> = liar.clone();
    let settings = pim_events::RelaySettings { lease_ms: 20, ..relay_settings() };
    let relay = || Relay::new(Source::all(&rig.cluster), &publisher, &settings).unwrap();
    for (who, events, millis) in turns {
        let running = Running::relay(relay());
        // A second store on the same file: two owners of each partition.
        let other = Rig::open(folder.path()).await;
        let runners = [
            Running::projections(rig.projections(&Journal::default()).await),
            Running::projections(other.projections(&Journal::default()).await),
        ];
        for _ in 0..events {
            written[who] += 1;
            rig.write(homes[who], Uuid::new_v4(), &[written[who]]).await;
        }
        tokio::time::sleep(Duration::from_millis(u64::from(millis))).await;
        running.crash().await;
        for runner in runners {
            runner.crash().await;
        }
    }
    liar.heal();
    // One more event each, so that the healed bus is asked to deliver what it kept back.
    for (who, home) in homes.iter().enumerate() {
        written[who] += 1;
        rig.write(*home, Uuid::new_v4(), &[written[who]]).await;
    }
    let running = Running::relay(relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    let total: u64 = written.iter().sum();
    eventually("everything is applied", || async { rig.journal().await.len() as u64 >= total }).await;
    eventually("nothing is held", || async { rig.store.held_keys(None, 9).await.unwrap().is_empty() }).await;
    running.end().await;
    runner.end().await;
    let mut outcome = Vec::new();
    for (who, home) in homes.into_iter().enumerate() {
        outcome.push((written[who], rig.order_of(home).await));
    }
    outcome
}

pub(super) fn numbered(home: HomeKey, n: u64) -> NewRecord {
    let happened = Happened { thing: Uuid::new_v4(), step: n };
    let event = Event {
        id: Uuid::now_v7(),
        origin: Origin::Control,
        event_type: Happened::TYPE.into(),
        schema_version: 1,
        time: Clock::system().now(),
        home: home.uuid(),
        bucket: home.bucket(),
        n,
        owner_epoch: Epoch(1),
        aggregate: Happened::AGGREGATE.into(),
        aggregate_id: happened.thing,
        aggregate_version: n,
        correlation: RequestId::mint(),
        causation: None,
        trace: TraceContext::root(),
        actor: "u-1".into(),
        role: "person".into(),
        seq: n,
        published_at: None,
        payload: serde_json::value::to_raw_value(&happened).unwrap(),
    };
    NewRecord::of(&event, DOMAIN_TOPIC)
}

/// Guard: a drain stops at a gap inside the held sequence (`Engine::found`), so that nothing is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_inside_a_held_sequence_is_held_too() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    let home = patient();
    for (n, applied, held) in [(1, 1, 0), (3, 1, 1), (5, 1, 2), (6, 1, 3), (2, 3, 2), (2, 3, 2), (4, 6, 0)] {
        rig.bus.publish(vec![numbered(home, n)]).await.unwrap();
        eventually("the bus is read and what follows is applied", || async {
            let status = rig.store.status(&rig.bus).await.unwrap();
            let keys = rig.store.held_keys(None, 9).await.unwrap();
            let events: u64 = keys.iter().map(|key| key.events).sum();
            let read = status.iter().flat_map(|it| &it.partitions).all(|partition| partition.lag == 0);
            let settled = keys.iter().all(|key| key.reason != "draining");
            read && settled && events == held && rig.order_of(home).await.len() as u64 == applied
        })
        .await;
        if let Some(key) = rig.store.held_keys(None, 9).await.unwrap().first() {
            assert_eq!(
                (key.reason.as_str(), rig.store.head("journal", home.uuid()).await.unwrap().n),
                ("gap", applied)
            );
        }
    }
    assert_eq!(rig.order_of(home).await, (1..=6).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(Config { cases: 12, failure_persistence: None, max_shrink_iters: 2, ..Config::default() })]

    /// Guards: `Head::order`, `KeyState::take`, the compare-and-set of the checkpoint, the single transaction, the drain
    /// of a filled gap. Relays and consumers are dropped at whatever await they are in.
    #[test]
    fn each_event_once_and_in_order(
        faults in proptest::collection::vec(fault(), 40),
        turns in proptest::collection::vec((0..3_usize, 0..12_usize, 0..25_u8), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let outcome = runtime.block_on(run(faults, turns));
        for (written, order) in outcome {
            prop_assert_eq!(order, (1..=written).collect::<Vec<_>>());
        }
    }

    /// The pure decision against an oracle: any delivery of 1..=N, with repeats and any order, applies each n once,
    /// ascending, and holds exactly what cannot follow yet.
    #[test]
    fn the_decision_agrees_with_an_oracle(deliveries in proptest::collection::vec(1..12_u64, 0..60)) {
        let mut state = KeyState::default();
        let mut applied = Vec::new();
        for n in deliveries {
            let before = state.head.n;
            match state.take(Epoch(1), n, event(1, n)) {
                Disposition::Apply => {
                    prop_assert_eq!(n, before + 1);
                    applied.push(n);
                }
                Disposition::Duplicate => prop_assert!(n <= before),
                Disposition::Hold(reason) => {
                    prop_assert_eq!(reason, HoldReason::Gap);
                    prop_assert!(n > before + 1);
                }
            }
        }
        prop_assert_eq!(&applied, &(1..=applied.len() as u64).collect::<Vec<_>>());
    }

    /// History that was cut and goes on under the same epoch is held as well, when it comes by the head at the latest, however
    /// far it was cut: then its number is another event's.
    #[test]
    fn history_that_was_cut_is_held(head in 1..10_u64, back in any::<proptest::sample::Index>()) {
        let mut state = KeyState::default();
        for n in 1..=head {
            prop_assert_eq!(state.take(Epoch(1), n, event(1, n)), Disposition::Apply);
        }
        let from = 1 + back.index(usize::try_from(head).unwrap()) as u64;
        for n in from..head {
            prop_assert_eq!(state.take(Epoch(1), n, event(2, n)), Disposition::Duplicate);
        }
        prop_assert_eq!(state.take(Epoch(1), head, event(1, head)), Disposition::Duplicate, "the same once more");
        for n in head..head + 3 {
            prop_assert_eq!(state.take(Epoch(1), n, event(2, n)), Disposition::Hold(HoldReason::Rewound));
        }
        prop_assert_eq!(state.head.n, head);
    }

    /// A parked key takes nothing but repeats, and its head stays, whatever comes.
    #[test]
    fn a_parked_key_stands_still(head in 0..5_u64, later in proptest::collection::vec(0..12_u64, 0..30)) {
        let mut state = KeyState { head: Head { epoch: Epoch(1), n: head }, ..KeyState::default() };
        state.park(Epoch(1), head + 1);
        for n in later {
            let disposition = state.take(Epoch(1), n + 1, event(1, n + 1));
            prop_assert!(matches!(disposition, Disposition::Duplicate | Disposition::Hold(HoldReason::Poison)));
            prop_assert_eq!(disposition == Disposition::Duplicate, n < head);
            prop_assert_eq!(state.head.n, head);
        }
    }

    /// History that was restored is held, never dropped as a repeat and never applied on top.
    #[test]
    fn rewound_history_is_held(head in 1..10_u64, back in any::<proptest::sample::Index>()) {
        let mut state = KeyState { head: Head { epoch: Epoch(1), n: head }, ..KeyState::default() };
        let n = 1 + back.index(usize::try_from(head).unwrap()) as u64;
        prop_assert_eq!(state.take(Epoch(2), n, event(2, n)), Disposition::Hold(HoldReason::Rewound));
        prop_assert_eq!(state.take(Epoch(2), n + 1, event(2, n + 1)), Disposition::Hold(HoldReason::Rewound));
        prop_assert_eq!(state.take(Epoch(2), head + 1, event(2, head + 1)), Disposition::Hold(HoldReason::Rewound));
        prop_assert_eq!(state.head.n, head);
    }
}
