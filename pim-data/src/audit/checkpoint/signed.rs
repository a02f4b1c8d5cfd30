//! What the lines of the file say, taken together.

use std::collections::{BTreeMap, BTreeSet};

use super::lines::{Body, head_of};
use super::{Head, Heads};
use crate::audit::chain::unhex;

/// A shard, or the control database, and a lane.
type Place = (Option<u16>, u64);

/// A record that a line names.
#[derive(Debug)]
struct Point {
    /// By the number of which line first.
    line: u64,
    hash: [u8; 32],
}

/// What the lines of the file say, taken together.
#[derive(Debug, Default)]
pub(crate) struct Signed {
    /// Where each chain stood at the newest line.
    pub(in crate::audit) heads: Heads,
    /// Where each chain stood at any line that is in force, by the number of the record: at most one for each line and lane of
    /// what retention has not removed. The newest line's head speaks for no record before it that was rewritten, with all behind
    /// it, before that line was signed.
    points: BTreeMap<Place, BTreeMap<u64, Point>>,
    /// Up to where each chain was purged.
    pub(crate) tombstones: Heads,
    /// Lines that sign less than the one before them, with the shards of which they do, as long as nobody has given that up.
    pub(crate) set_back: BTreeMap<u64, BTreeSet<Option<u16>>>,
}

impl Signed {
    /// Takes over what a line says; `line` is its place in the file.
    pub(super) fn take(&mut self, line: u64, body: &Body, heads: Heads) {
        let mut back = if body.back.is_some() { BTreeSet::new() } else { set_back(&self.heads, &heads) };
        if let Some(loss) = &body.loss {
            back.remove(&loss.place());
            for accepted in &loss.lines {
                if let Some(shards) = self.set_back.get_mut(accepted) {
                    shards.remove(&loss.place());
                }
            }
        }
        self.set_back.insert(line, back);
        self.set_back.retain(|_, shards| !shards.is_empty());
        if let Some(back) = &body.back {
            self.tombstones = back.purged.iter().filter_map(|text| head_of(text)).collect();
        }
        self.point(body, &heads);
        self.heads = heads;
        for (place, end) in body.purge.iter().flat_map(|purge| &purge.ends).filter_map(|text| head_of(text)) {
            self.bury(place, end);
        }
    }

    /// Remembers where the chains stand, and forgets what the line gives up of what was signed before.
    fn point(&mut self, body: &Body, heads: &Heads) {
        if let Some(back) = &body.back {
            self.points.values_mut().for_each(|points| points.retain(|_, point| point.line <= back.kept));
        }
        if let Some(loss) = &body.loss {
            let of_shard = self.points.iter_mut().filter(|(place, _)| place.0 == loss.place());
            for (place, points) in of_shard {
                let fork = loss.forks.iter().find(|(lane, _)| *lane == place.1).map_or(u64::MAX, |(_, seq)| *seq);
                let end = heads.get(place).map_or(0, |(seq, _)| *seq);
                points.retain(|seq, _| *seq < fork && *seq <= end);
            }
        }
        for (place, (seq, hash)) in heads {
            let points = self.points.entry(*place).or_default();
            let (line, hash) = (body.number, unhex(hash));
            // The first line of those that say the same: a restore may keep that one and no later one.
            if points.get(seq).is_none_or(|known| known.hash != hash) {
                points.insert(*seq, Point { line, hash });
            }
        }
    }

    /// What goes with a tombstone is spoken for by it.
    fn bury(&mut self, place: Place, end: Head) {
        if let Some(points) = self.points.get_mut(&place) {
            *points = points.split_off(&(end.0 + 1));
        }
        let known = self.tombstones.entry(place).or_insert_with(|| end.clone());
        if known.0 < end.0 {
            *known = end;
        }
    }

    /// Forgets all but one lane.
    pub(in crate::audit) fn keep_lane(&mut self, lane: u64) {
        self.heads.retain(|(_, signed), _| *signed == lane);
        self.points.retain(|(_, signed), _| *signed == lane);
    }

    /// Whether a record is another than a line names; it is there, anyway.
    pub(in crate::audit) fn denies(&mut self, place: Place, seq: u64, hash: &[u8; 32]) -> bool {
        if self.heads.get(&place).is_some_and(|(signed, _)| *signed == seq) {
            self.heads.remove(&place);
        }
        self.points.get_mut(&place).and_then(|points| points.remove(&seq)).is_some_and(|point| point.hash != *hash)
    }

    /// How many records of a shard the newest line names that `now` does not have.
    pub(crate) fn missing(&self, shard: Option<u16>, now: &[String]) -> u64 {
        let now: Heads = now.iter().filter_map(|text| head_of(text)).collect();
        let of_shard = self.heads.iter().filter(|(place, _)| place.0 == shard);
        of_shard.map(|(place, (end, _))| end.saturating_sub(now.get(place).map_or(0, |head| head.0))).sum()
    }
}

/// Whether no chain is shorter than it was, or another at its old end.
pub(super) fn goes_on_from(before: &Heads, now: &Heads) -> bool {
    set_back(before, now).is_empty()
}

/// Shards of which a chain is shorter than it was, or another at its old end.
fn set_back(before: &Heads, now: &Heads) -> BTreeSet<Option<u16>> {
    let goes_on = |place: &Place, (seq, hash): &Head| {
        now.get(place).is_some_and(|(end, at_end)| end > seq || (end == seq && at_end == hash))
    };
    before.iter().filter(|(place, head)| !goes_on(place, head)).map(|(place, _)| place.0).collect()
}
