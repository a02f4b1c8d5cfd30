//! How full the calls are in which units go, and how long these waited, is told.

use std::future::poll_fn;
use std::time::Duration;

use pim_core::signal::SignalRegistry;
use pim_data::signals::DataSignals;

use super::queueing::{Queue, change, telling, waiting};
use super::world::cx;

/// What a signal without labels stands at.
fn told(registry: &SignalRegistry, name: &str) -> f64 {
    let text = registry.encode();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("{} ")).expect("is told");
    line.split(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[tokio::test]
async fn how_full_calls_are_is_told_and_how_long_units_waited_for_them() {
    let mut registry = SignalRegistry::new();
    let signals = DataSignals::bind(&mut registry).expect("binds");
    let queue = Queue::of(telling(signals).await).await;
    let names = ["pim_data_call_units_count", "pim_data_call_units_sum", "pim_data_turn_seconds_count"];
    let before = names.map(|name| told(&registry, name));
    let waited = told(&registry, "pim_data_turn_seconds_sum");
    let others = queue.three_more().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (_, ends) = queue.go(others).await;
    assert!(ends.into_iter().all(|end| end.is_ok()));
    let after = names.map(|name| told(&registry, name));
    assert_eq!([after[0] - before[0], after[1] - before[1], after[2] - before[2]], [1.0, 3.0, 3.0]);
    assert!(told(&registry, "pim_data_turn_seconds_sum") - waited >= 0.06, "each waited for the place");
}

/// Guard: `Batches::has_others`. For a task that yields the runtime wakes another thread, which takes a processor from the server.
#[tokio::test]
async fn whoever_is_alone_on_its_way_goes_at_once_and_others_are_let_come_along() {
    let mut registry = SignalRegistry::new();
    let world = telling(DataSignals::bind(&mut registry).expect("binds")).await;
    let (id, other) = (world.register().await.id, world.register().await.id);
    let calls = || told(&registry, "pim_data_call_units_count");
    let (lone, before) = (change(&world, &cx(), id).await, calls());
    let mut lone = Box::pin(lone.commit());
    let mut sent = None;
    // A server that is fast enough has answered by the time that it would wait.
    let end = poll_fn(|cx| {
        let polled = lone.as_mut().poll(cx);
        sent.get_or_insert_with(|| calls() - before);
        polled
    });
    end.await.expect("commits");
    assert_eq!(sent, Some(1.0), "it was sent by the time that it first waited");
    let (first, second) = (change(&world, &cx(), id).await, change(&world, &cx(), other).await);
    let before = calls();
    let first = waiting(first).await;
    assert_eq!(calls() - before, 0.0, "somebody may be ready too");
    drop(second);
    first.await.expect("commits");
}
