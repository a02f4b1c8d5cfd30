//! The status line.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pim_events::{Backlog, ConsumerStatus};
use tokio::time::Instant;

use crate::persona::Snapshot;
use crate::workers::Stores;

/// The line is not kept waiting for a shard.
const ANSWERED_WITHIN: Duration = Duration::from_millis(500);

/// Prints one line a second on a terminal, in place; nothing elsewhere.
#[derive(Debug)]
pub(super) struct StatusLine {
    line: ProgressBar,
    requests_before: u64,
    personas_before: BTreeMap<&'static str, u64>,
}

impl StatusLine {
    pub(super) fn new(json: bool) -> Self {
        // Draws on a terminal only, and never more than fits into one line of it.
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stdout() };
        let line = ProgressBar::with_draw_target(None, target);
        line.set_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { line, requests_before: 0, personas_before: BTreeMap::new() }
    }

    pub(super) async fn show(&mut self, stores: &Stores, traffic: Option<&Snapshot>) {
        if self.line.is_hidden() {
            return;
        }
        let backlog = Backlog::of(&stores.cluster, Instant::now() + ANSWERED_WITHIN).await.events();
        // One that has not told is not empty.
        let backlog = backlog.map_or_else(|| "?".to_owned(), |events| events.to_string());
        let consumers = stores.reads.status(&stores.bus).await.ok();
        let parked = consumers.as_deref().map(|all| all.iter().map(|consumer| consumer.held_keys).sum::<u64>());
        let parked = parked.map_or_else(|| "?".to_owned(), |keys| keys.to_string());
        let lag_ms = consumers.as_deref().and_then(lag_ms).map_or_else(|| "?".to_owned(), |ms| ms.to_string());
        let mut line = String::new();
        if let Some(traffic) = traffic {
            let rate = traffic.requests.saturating_sub(self.requests_before);
            self.requests_before = traffic.requests;
            line.push_str(&format!("{rate} requests/s"));
            for (persona, count) in &traffic.by_persona {
                let before = self.personas_before.insert(persona, *count).unwrap_or(0);
                line.push_str(&format!("  {persona} {}", count.saturating_sub(before)));
            }
            let (p50, p99) = (traffic.p50_ms, traffic.p99_ms);
            line.push_str(&format!("  p50 {p50:.1} ms  p99 {p99:.1} ms  errors {}  ", traffic.errors));
        }
        line.push_str(&format!("backlog {backlog}  freshness {lag_ms} ms  parked {parked}"));
        self.line.set_message(line);
    }

    /// Leaves the last one where it is.
    pub(super) fn end(&self) {
        self.line.abandon();
    }
}

/// Age of the oldest record that a consumer has not read; `None` when there is one whose age is not known.
fn lag_ms(consumers: &[ConsumerStatus]) -> Option<u64> {
    let mut partitions = consumers.iter().flat_map(|consumer| &consumer.partitions);
    partitions.try_fold(0, |worst, partition| Some(partition.lag_ms?.max(worst)))
}

#[cfg(test)]
mod tests {
    use pim_core::clock::Timestamp;
    use pim_events::PartitionStatus;

    use super::*;

    fn standing(lag_ms: Option<u64>) -> ConsumerStatus {
        let partition = PartitionStatus {
            topic: "t".into(),
            partition: 0,
            next_offset: 0,
            end_offset: 1,
            lag: 1,
            lag_ms,
            moved_at: Timestamp::from_micros(0),
        };
        ConsumerStatus {
            consumer: "c".into(),
            version: None,
            state: None,
            partitions: vec![partition],
            held_keys: 0,
            held_since: None,
            stopped: None,
        }
    }

    /// Guard: a consumer that stands before a record that cannot be read is not shown as one that is fresh.
    #[test]
    fn an_age_that_is_not_known_is_not_zero() {
        assert_eq!(lag_ms(&[standing(Some(3)), standing(Some(5))]), Some(5));
        assert_eq!(lag_ms(&[standing(Some(3)), standing(None)]), None);
        assert_eq!(lag_ms(&[]), Some(0));
    }
}
