//! Which map may follow which.

use super::finding::{Finding, FindingCode, MapError};
use super::map::{ShardMap, ShardState};
use super::{Bucket, ShardId};

/// One bucket that changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Handover {
    /// The bucket.
    pub bucket: Bucket,
    /// Who gives it away.
    pub from: ShardId,
    /// Who takes it.
    pub to: ShardId,
}

impl ShardMap {
    /// The buckets that change hands from this map to `next`, in order.
    #[must_use]
    pub fn handovers_to(&self, next: &Self) -> Vec<Handover> {
        let all = (0..=Bucket::MASK).filter_map(|number| Bucket::new(number).ok());
        let changed = all.filter_map(|bucket| {
            let (from, to) = (self.owner(bucket).0, next.owner(bucket).0);
            (from != to).then_some(Handover { bucket, from, to })
        });
        changed.collect()
    }

    /// Everything to say about `next` as the successor of this map: errors first refuse it, warnings do not.
    ///
    /// `handovers_max` bounds the size of one step, in buckets.
    #[must_use]
    pub fn findings_on(&self, next: &Self, handovers_max: usize) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.check_chain(next, &mut findings);
        self.check_epochs(next, &mut findings);
        let handovers = self.handovers_to(next);
        if handovers.len() > handovers_max {
            let message = format!("{} buckets change hands, at most {handovers_max} a step", handovers.len());
            findings.push(Finding::error(FindingCode::StepSize, "/ranges", message, "go in smaller steps"));
        }
        check_draining(next, &handovers, &mut findings);
        check_skew(next, &mut findings);
        check_zones(next, &mut findings);
        findings
    }

    /// Accepts `next` as the successor of this map.
    ///
    /// # Errors
    /// [`MapError`] with every finding of severity `error`.
    pub fn check_successor(&self, next: &Self, handovers_max: usize) -> Result<(), MapError> {
        MapError::of(&self.findings_on(next, handovers_max)).map_or(Ok(()), Err)
    }

    fn check_chain(&self, next: &Self, findings: &mut Vec<Finding>) {
        if next.keyspace != self.keyspace {
            let message = "the key space is another";
            findings.push(Finding::error(FindingCode::Keyspace, "/keyspace", message, "keep the key space"));
        }
        if next.version.0 != self.version.0 + 1 {
            let message = format!("version {} does not follow {}", next.version, self.version);
            findings.push(Finding::error(FindingCode::Version, "/version", message, "start from the map in force"));
        }
        if next.parent != Some(self.digest) {
            let message = "the parent is not the map in force";
            findings.push(Finding::error(FindingCode::Parent, "/parent", message, "start from the map in force"));
        }
        for shard in &self.shards {
            if !next.shards.iter().any(|other| other.id == shard.id) {
                let message = format!("shard {} is gone", shard.id);
                let fix = "keep it, with the state retired";
                findings.push(Finding::error(FindingCode::UnknownShard, "/shards", message, fix));
            }
        }
    }

    fn check_epochs(&self, next: &Self, findings: &mut Vec<Finding>) {
        for bucket in (0..=Bucket::MASK).filter_map(|number| Bucket::new(number).ok()) {
            let (from, before) = self.owner(bucket);
            let (to, after) = next.owner(bucket);
            let wrong = if after < before {
                "its epoch fell"
            } else if after > before.risen() {
                "its epoch rises by more than one"
            } else if from != to && after == before {
                "it changes hands but its epoch stands still"
            } else {
                continue;
            };
            let message = format!("bucket {bucket}: {wrong}");
            findings.push(Finding::error(FindingCode::Epoch, "/ranges", message, "raise the epoch by one"));
            return;
        }
    }
}

fn check_draining(next: &ShardMap, handovers: &[Handover], findings: &mut Vec<Finding>) {
    for shard in next.shards.iter().filter(|shard| shard.state == ShardState::Draining) {
        if handovers.iter().any(|handover| handover.to == shard.id) {
            let message = format!("draining shard {} is given buckets", shard.id);
            findings.push(Finding::error(FindingCode::DrainingOwner, "/ranges", message, "choose a live shard"));
        }
    }
}

fn check_skew(next: &ShardMap, findings: &mut Vec<Finding>) {
    let live = next.shards.iter().filter(|shard| shard.state == ShardState::Live);
    let counts: Vec<_> = live.map(|shard| next.buckets_of(shard.id).count()).collect();
    let (least, most) = (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
    if most > 2 * least.max(1) {
        let message = format!("live shards own between {least} and {most} buckets");
        findings.push(Finding::warning(FindingCode::Skew, "/ranges", message, "even them out"));
    }
}

fn check_zones(next: &ShardMap, findings: &mut Vec<Finding>) {
    for (index, shard) in next.shards.iter().enumerate() {
        let mut zones = shard.endpoints.iter().filter_map(|endpoint| endpoint.zone.as_ref());
        let Some(first) = zones.next() else { continue };
        if shard.endpoints.len() > 1 && zones.all(|zone| zone == first) {
            let message = format!("all endpoints of shard {} share one zone", shard.id);
            let pointer = format!("/shards/{index}");
            findings.push(Finding::warning(FindingCode::Zone, pointer, message, "spread them"));
        }
    }
}
