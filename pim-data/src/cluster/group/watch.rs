//! The task that looks after a shard's servers for as long as somebody uses them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Group;
use crate::retry::random;

/// Shortest time between two rounds, however often the alarm rings.
const PAUSE_MIN: Duration = Duration::from_millis(25);

/// Looks again and again until nobody holds the group any more.
pub(in crate::cluster) fn watch(group: &Arc<Group>) {
    let group = Arc::downgrade(group);
    tokio::spawn(async move {
        while let Some((pause, alarm)) = group.upgrade().map(|group| (pause(&group), Arc::clone(&group.alarm))) {
            let rung = tokio::time::timeout(pause, alarm.notified()).await.is_ok();
            if rung {
                tokio::time::sleep(PAUSE_MIN).await;
            }
            look(&group, rung).await;
        }
    });
}

async fn look(group: &Weak<Group>, rung: bool) {
    if let Some(group) = group.upgrade() {
        group.look(rung).await;
    }
}

/// With jitter, so that programs do not ask in step.
fn pause(group: &Group) -> Duration {
    let percent = u32::try_from(random() % 41).unwrap_or(0) + 80;
    group.settings.probe_every * percent / 100
}
