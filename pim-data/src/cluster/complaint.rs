//! What operators are told when calls to a shard fail: each kind of failure once, and again while it lasts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pim_core::context::RequestContext;
use pim_core::shard::ShardId;

use super::{CONTROL, Cluster};
use crate::backend::DbError;

/// How often the same failure of a shard is told at most; how many calls met it, signals count.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// When each kind of failure of a shard was told last: there are as many as errors have codes.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Mutex<BTreeMap<&'static str, Instant>>);

impl Complaint {
    /// Whether this failure is to be told now; it counts as told then.
    fn is_due(&self, code: &'static str, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = last.get(code).is_some_and(|at| now.saturating_duration_since(*at) < AGAIN_AFTER);
        if !is_told {
            last.insert(code, now);
        }
        !is_told
    }
}

impl Cluster {
    /// Tells which shard failed a request, for which reason, and what helps, where somebody has to do something. The server is told by
    /// its place in the map, from nought on: names are nobody's to log.
    pub(crate) fn complain(&self, id: ShardId, error: &DbError, cx: &RequestContext) {
        let (Some(fix), Some(shard)) = (error.fix(), self.shard(id)) else { return };
        if !shard.complaint().is_due(error.code(), Instant::now()) {
            return;
        }
        let endpoint = error.place().and_then(|place| shard.group()?.index_of(place));
        pim_core::warn!(
            "shard.call_failed",
            request_id = cx.request_id(),
            shard_id = (id != CONTROL).then_some(id),
            endpoint = endpoint,
            code = error.code(),
            fix = fix
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_once_and_again_while_it_lasts() {
        let (complaint, begun) = (Complaint::default(), Instant::now());
        let at = |secs| begun + Duration::from_secs(secs);
        assert!(complaint.is_due("full", at(0)));
        assert!(!complaint.is_due("full", at(9)), "it was told");
        assert!(complaint.is_due("cancelled", at(9)), "another one");
        assert!(!complaint.is_due("full", at(9)), "in turn with others too");
        assert!(complaint.is_due("full", at(10)));
        assert!(!complaint.is_due("full", at(19)));
        assert!(complaint.is_due("full", at(20)), "it lasts");
    }
}
