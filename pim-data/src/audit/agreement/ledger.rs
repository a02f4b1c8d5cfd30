//! What each side tells of the changes: as sums by bucket, or one by one for a few buckets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pim_core::clock::Timestamp;
use pim_core::shard::{Bucket, Lane};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::audit::verify::{AuditFinding, AuditFindingKind, AuditedRow};
use crate::entity::Table;
use crate::retention::Retained;

/// Who tells of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A record of the trail.
    Trail,
    /// A period of the history.
    History,
    /// A period that has not ended.
    Open,
    /// A row as it is.
    Row,
}

/// A change as any side tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'c> {
    pub(super) entity: &'c str,
    pub(super) id: Uuid,
    pub(super) version: u64,
    /// Microseconds.
    pub(super) at: i64,
    /// Hexadecimal digest of all columns.
    pub(super) digest: &'c str,
}

/// How many changes, and the sum of their digests, which no order changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    sum: u128,
}

impl Sum {
    fn add(&mut self, change: &Change<'_>) {
        let mut hash = Sha256::new();
        hash.update((change.entity.len() as u64).to_be_bytes());
        hash.update(change.entity.as_bytes());
        hash.update(change.id.as_bytes());
        hash.update(change.version.to_be_bytes());
        hash.update(change.at.to_be_bytes());
        hash.update(change.digest.as_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        self.count += 1;
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(half));
    }
}

/// By [`Side`].
#[derive(Clone, Copy, Debug, Default)]
struct Sums([Sum; 4]);

impl Sums {
    fn of(&self, side: Side) -> Sum {
        self.0[side as usize]
    }

    fn agree(&self) -> bool {
        self.of(Side::Trail) == self.of(Side::History) && self.of(Side::Open) == self.of(Side::Row)
    }

    /// How they disagree.
    fn kind(&self) -> AuditFindingKind {
        let (trail, history) = (self.of(Side::Trail), self.of(Side::History));
        if trail == history {
            AuditFindingKind::Present
        } else if trail.count == 0 {
            AuditFindingKind::Unrecorded
        } else if history.count == 0 {
            AuditFindingKind::NotInHistory
        } else {
            AuditFindingKind::Differs
        }
    }
}

/// The newest record of a home key.
#[derive(Clone, Copy, Debug)]
struct Newest {
    n: u64,
    seq: u64,
    shard: Option<u16>,
}

/// What differs: buckets by their changes, home keys by their number.
#[derive(Debug, Default)]
pub(super) struct Differing {
    pub(super) buckets: BTreeSet<Bucket>,
    pub(super) keys: BTreeMap<Uuid, AuditFinding>,
}

impl Differing {
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty() && self.keys.is_empty()
    }

    /// Forgets what did not differ another time.
    pub(super) fn keep(&mut self, again: &Self) {
        self.buckets.retain(|bucket| again.buckets.contains(bucket));
        self.keys.retain(|key, _| again.keys.contains_key(key));
    }
}

/// What was read so far.
#[derive(Debug)]
pub(super) struct Ledger {
    entities: Vec<&'static str>,
    /// Changes of before may be gone from either side.
    since: i64,
    /// Whether records were ever removed because their time was over.
    is_purged: bool,
    sums: Vec<Sums>,
    named: BTreeSet<Bucket>,
    /// Of the named buckets, with the number of the record.
    changes_named: BTreeMap<(String, Uuid, u64), (Sums, u64)>,
    /// Of the keys of one lane.
    newest: HashMap<Uuid, Newest>,
    numbers: BTreeMap<Uuid, AuditFinding>,
    pub(super) changes: u64,
    pub(super) keys: u64,
}

impl Ledger {
    /// An empty one, which names the changes of some buckets.
    pub(super) fn new(
        tables: &[&'static Table],
        named: BTreeSet<Bucket>,
        retained: impl Iterator<Item = Retained>,
    ) -> Self {
        let since = retained.fold(Retained::default(), |all, it| Retained {
            audit_since: all.audit_since.max(it.audit_since),
            history_since: all.history_since.max(it.history_since),
        });
        Self {
            entities: tables.iter().map(|table| table.name).collect(),
            since: since.audit_since.max(since.history_since).map_or(i64::MIN, Timestamp::as_micros),
            is_purged: since.audit_since.is_some(),
            sums: vec![Sums::default(); Bucket::COUNT],
            named,
            changes_named: BTreeMap::new(),
            newest: HashMap::new(),
            numbers: BTreeMap::new(),
            changes: 0,
            keys: 0,
        }
    }

    /// Since when changes are compared, in microseconds.
    pub(super) const fn since(&self) -> i64 {
        self.since
    }

    /// Takes a change down; the number is that of its record.
    pub(super) fn add(&mut self, side: Side, change: &Change<'_>, seq: u64) {
        let Some(bucket) = bucket_of(change.id) else { return };
        self.changes += u64::from(side == Side::History);
        if self.named.contains(&bucket) {
            let key = (change.entity.to_owned(), change.id, change.version);
            let (sums, known) = self.changes_named.entry(key).or_default();
            sums.0[side as usize].add(change);
            *known = seq.max(*known);
        }
        if let Some(sums) = self.sums.get_mut(usize::from(bucket.get())) {
            sums.0[side as usize].add(change);
        }
    }

    /// Takes a record down, if it is that of a change of a row, and the number that its home key had after it.
    pub(super) fn record(&mut self, shard: Option<u16>, home: Uuid, seq: u64, body: &serde_json::Value) {
        if let Some(n) = body["n"].as_u64() {
            let newest = self.newest.entry(home).or_insert(Newest { n, seq, shard });
            if n >= newest.n {
                *newest = Newest { n, seq, shard };
            }
        }
        let told = || {
            let entity = body["entity"].as_str().filter(|entity| self.entities.contains(entity))?;
            let id = Uuid::try_parse(body["id"].as_str()?).ok()?;
            let (version, at) = (body["version"].as_u64()?, body["at"].as_i64()?);
            Some(Change { entity, id, version, at, digest: body["after_digest"].as_str().unwrap_or_default() })
        };
        if let Some(change) = told().filter(|change| change.at >= self.since) {
            self.add(Side::Trail, &change, seq);
        }
    }

    /// Compares a home key's number with its newest record.
    pub(super) fn number(&mut self, shard: Option<u16>, bucket: Bucket, key: Uuid, n: u64) {
        self.keys += 1;
        let newest = self.newest.remove(&key);
        let is_right = match newest {
            Some(newest) => newest.n == n,
            // All of its records may have been old enough.
            None => self.is_purged,
        };
        if !is_right {
            self.misnumbered(shard, bucket.lane(), key, n, newest.map_or(0, |newest| newest.seq));
        }
    }

    /// Those that are left have records and no number.
    pub(super) fn end_lane(&mut self, lane: Lane) {
        for (key, newest) in std::mem::take(&mut self.newest) {
            self.misnumbered(newest.shard, lane, key, 0, newest.seq);
        }
    }

    fn misnumbered(&mut self, shard: Option<u16>, lane: Lane, key: Uuid, version: u64, seq: u64) {
        let row = Some(AuditedRow { entity: "key".to_owned(), id: key, version });
        let (lane, kind) = (u64::from(lane.get()), AuditFindingKind::Number);
        if self.numbers.len() < KEYS_MAX {
            self.numbers.insert(key, AuditFinding { shard, lane, seq, kind, row });
        }
    }

    /// What differs by what was read.
    pub(super) fn differing(self) -> Differing {
        let differ = self.sums.iter().enumerate().filter(|(_, sums)| !sums.agree());
        let buckets = differ.filter_map(|(number, _)| Bucket::new(u16::try_from(number).ok()?).ok()).collect();
        Differing { buckets, keys: self.numbers }
    }

    /// The changes of the named buckets that differ.
    pub(super) fn named(self, place: impl Fn(Bucket) -> Option<u16>) -> Vec<AuditFinding> {
        let differ = self.changes_named.into_iter().filter(|(_, (sums, _))| !sums.agree());
        let finding = |((entity, id, version), (sums, seq)): ((String, Uuid, u64), (Sums, u64))| {
            let bucket = bucket_of(id)?;
            let (shard, lane, kind) = (place(bucket), u64::from(bucket.lane().get()), sums.kind());
            Some(AuditFinding { shard, lane, seq, kind, row: Some(AuditedRow { entity, id, version }) })
        };
        differ.filter_map(finding).collect()
    }
}

/// Keys whose numbers are named; more are found by what they are part of.
const KEYS_MAX: usize = 1_000;

/// The bucket that a row's id carries.
fn bucket_of(id: Uuid) -> Option<Bucket> {
    let bytes = id.as_bytes();
    Bucket::new(u16::from_be_bytes([bytes[6], bytes[7]]) & 0x0fff).ok()
}
