//! A setting that would lose, hold or spin is refused when a part is opened, by its name and with its bounds.

use std::sync::Arc;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_events::{
    BusError, BusSettings, CommandHandler, CommandRunner, CommandSettings, ConsumerSettings, EVENT_BYTES_MAX,
    EmbeddedBus, HEADER_BYTES_MAX, Projection, ProjectionRunner, RunnerError,
};

use super::commands_happen_once::{Answer, settings};
use super::rig::{Folder, Journal, Rig};

/// Guard: `ConsumerSettings::check`. A batch of none looks like a quiet partition, and without a pause a worker never rests.
#[tokio::test]
async fn of_consumers() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let of_projections = async |settings: ConsumerSettings| {
        let all: Vec<Arc<dyn Projection>> = vec![Arc::new(Journal::default())];
        let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, all, &settings).await;
        let refused @ RunnerError::Settings(_) = opened.unwrap_err() else { panic!("refused for something else") };
        refused.to_string()
    };
    let of_commands = async |settings: CommandSettings| {
        let (cluster, all): (_, Vec<Arc<dyn CommandHandler>>) = (&rig.cluster, vec![Arc::new(Answer)]);
        let opened = CommandRunner::open(cluster, &rig.store, rig.subscriber(), &rig.registry, all, &settings).await;
        let refused @ RunnerError::Settings(_) = opened.unwrap_err() else { panic!("refused for something else") };
        refused.to_string()
    };
    let sound = ConsumerSettings::default;
    assert_eq!(
        of_projections(ConsumerSettings { batch_max: 0, ..sound() }).await,
        "consumer setting batch_max must be between 1 and 10000, not 0"
    );
    for (key, consumer) in [
        ("batch_max", ConsumerSettings { batch_max: 10_001, ..sound() }),
        ("pause_max_ms", ConsumerSettings { pause_max_ms: 0, ..sound() }),
        ("tries_max", ConsumerSettings { tries_max: u32::MAX, ..sound() }),
        ("apply_ms_max", ConsumerSettings { apply_ms_max: 0, ..sound() }),
        ("held_keys_max", ConsumerSettings { held_keys_max: 0, ..sound() }),
        ("held_events_max", ConsumerSettings { held_events_max: 0, ..sound() }),
        ("dead_records_max", ConsumerSettings { dead_records_max: u64::MAX, ..sound() }),
    ] {
        let start = format!("consumer setting {key} must be between ");
        let told = of_projections(consumer.clone()).await;
        assert!(told.starts_with(&start), "{told}");
        let told = of_commands(CommandSettings { consumer, ..settings() }).await;
        assert!(told.starts_with(&start), "{told}");
    }
    let hasty = CommandSettings { patience: Duration::ZERO, ..settings() };
    assert_eq!(of_commands(hasty).await, "consumer setting patience must be between 10 and 3600000, not 0");
}

/// Guard: `BusSettings::check`. A bus that takes less than a unit may append has the relay hold the key of what is larger.
#[tokio::test]
async fn of_the_bus() {
    let folder = Folder::new();
    let refused = async |settings: BusSettings| {
        let opened = EmbeddedBus::open(&folder.path().join("bus.db"), settings, Clock::system()).await;
        let refused @ BusError::Settings(_) = opened.unwrap_err() else { panic!("refused for something else") };
        refused.to_string()
    };
    let least = EVENT_BYTES_MAX + HEADER_BYTES_MAX;
    assert_eq!(
        refused(BusSettings { record_bytes_max: least - 1, ..BusSettings::default() }).await,
        format!("bus setting record_bytes_max must be between {least} and 67108864, not {}", least - 1)
    );
    for partitions in [0, 1025] {
        let told = refused(BusSettings { partitions, ..BusSettings::default() }).await;
        assert!(told.starts_with("bus setting partitions must be between "), "{told}");
    }
    assert!(!folder.path().join("bus.db").exists(), "nothing is made by settings that are refused");
}
