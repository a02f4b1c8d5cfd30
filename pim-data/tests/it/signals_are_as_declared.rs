//! Every declared signal is bound, stands at zero from the start, and counts what happened.

use pim_core::signal::SignalRegistry;
use pim_data::signals::{CATALOG, DataSignals};

use crate::world::World;

#[tokio::test]
async fn units_and_reads_are_counted() {
    let mut registry = SignalRegistry::new();
    let signals = DataSignals::bind(&mut registry).expect("binds");
    assert_eq!(registry.bound().len(), CATALOG.descriptors.len());
    assert!(registry.encode().contains("pim_data_units_total{store=\"control\",outcome=\"failed\"} 0"));
    let world = World::with(1, |mut settings| {
        settings.signals = signals;
        settings
    })
    .await;
    let account = world.register().await;
    world.change(account.id, |account| account.points = 1).await.expect("commits");
    let text = registry.encode();
    assert!(text.contains("pim_data_units_total{store=\"shard\",outcome=\"committed\"} 2"), "{text}");
    assert!(text.contains("pim_data_commit_seconds_count{store=\"shard\"} 2"), "{text}");
}
