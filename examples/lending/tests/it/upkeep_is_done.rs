//! What nobody asks for is done while the library is open, and once more when it closes.

use std::sync::Arc;

use pim_core::signal::SignalRegistry;
use pim_lending::house::{House, Signals};
use pim_telemetry::trace::TraceStore;
use tokio::sync::Notify;
use tokio::time::{Duration, sleep, timeout};

use super::a_book_is_lent::Folder;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Guard: `Works::run` ends upkeep, which signs the trail's end: at the start, and behind all that was done.
#[tokio::test]
async fn the_trail_is_signed_at_the_start_and_at_the_end() {
    let folder = Folder::new();
    let (mut registry, traces) = (SignalRegistry::new(), TraceStore::new(100));
    let signals = Signals::bind(&mut registry, &traces).unwrap();
    let (house, works) = House::open(&folder.0, None, &signals).await.unwrap();
    let close = Arc::new(Notify::new());
    let closing = |close: Arc<Notify>| async move { close.notified().await };
    let working = tokio::spawn(works.run(closing(Arc::clone(&close)), closing(Arc::clone(&close))));
    let signed = house.cluster.data_dir().join("audit-checkpoints.jsonl");
    let lines = || std::fs::read_to_string(&signed).map_or(0, |text| text.lines().count());
    timeout(LONG, async {
        while lines() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("is signed");
    close.notify_waiters();
    timeout(LONG, working).await.expect("ends").unwrap();
    assert_eq!(lines(), 2);
    assert!(registry.encode().contains("pim_events_outbox_backlog"));
}
