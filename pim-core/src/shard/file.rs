//! The map file: TOML for people, validated as a whole before it becomes a map.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::finding::{Finding, FindingCode, MapError};
use super::map::{EndpointRole, MapDigest, SHARDS_MAX, Shard, ShardMap, ShardState};
use super::{Bucket, Epoch, MapVersion, ShardId};

/// What is said of any text that is no map file: the parser's own words repeat what they complain of, key or value, and that
/// may be a secret.
const NO_MAP_FILE: &str = "no TOML, or a member that is unknown, missing or of another kind";
const FORMAT: u32 = 1;
const NAME_LENGTH_MAX: usize = 64;

/// A map as written in a file; anything may be wrong with it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MapFile {
    format: u32,
    keyspace: String,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(default)]
    shards: Vec<Shard>,
    #[serde(default)]
    ranges: Vec<Range>,
}

/// A run of buckets with one owner and one epoch; both ends belong to it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Range {
    first: u16,
    last: u16,
    shard: u16,
    epoch: u32,
}

impl MapFile {
    pub(super) fn parse(text: &str) -> Result<Self, MapError> {
        toml::from_str(text).map_err(|error| {
            // Which member is missing is of our own words; whatever else the parser says may quote the text.
            let what = if error.message().starts_with("missing field `") { error.message() } else { NO_MAP_FILE };
            let place = error.span().map(|span| place_of(text, span.start));
            let place = place.map_or_else(String::new, |(line, column)| format!("line {line}, column {column}: "));
            let message = format!("{place}{what}");
            MapError::one(Finding::error(FindingCode::Syntax, "", message, "see ShardMap::parse for the form"))
        })
    }

    pub(super) fn of(map: &ShardMap) -> Self {
        Self {
            format: FORMAT,
            keyspace: map.keyspace.clone(),
            version: map.version.0,
            parent: map.parent.map(|digest| digest.to_string()),
            shards: map.shards.clone(),
            ranges: ranges_of(map),
        }
    }

    pub(super) fn to_toml(&self) -> String {
        // Serialising plain structs of numbers and strings cannot fail.
        toml::to_string(self).unwrap_or_default()
    }

    /// Checks everything and makes the map.
    pub(super) fn into_map(self) -> Result<ShardMap, MapError> {
        let mut findings = Vec::new();
        self.check_head(&mut findings);
        self.check_shards(&mut findings);
        let (owners, epochs) = self.check_ranges(&mut findings);
        let parent = self.check_parent(&mut findings);
        if let Some(error) = MapError::of(&findings) {
            return Err(error);
        }
        let mut shards = self.shards;
        shards.sort_by_key(|shard| shard.id);
        Ok(ShardMap::assembled(self.keyspace, MapVersion(self.version), parent, shards, owners, epochs))
    }

    fn check_head(&self, findings: &mut Vec<Finding>) {
        if self.format != FORMAT {
            let message = format!("format {}, this program reads {FORMAT}", self.format);
            findings.push(Finding::error(FindingCode::Format, "/format", message, "convert the file"));
        }
        if self.version == 0 {
            let message = "version 0".to_owned();
            findings.push(Finding::error(FindingCode::Version, "/version", message, "start with 1"));
        }
        check_name(&self.keyspace, "/keyspace", findings);
        if self.shards.is_empty() || self.shards.len() > SHARDS_MAX {
            let message = format!("{} shards", self.shards.len());
            findings.push(Finding::error(FindingCode::ShardCount, "/shards", message, "name 1 to 1024"));
        }
    }

    fn check_parent(&self, findings: &mut Vec<Finding>) -> Option<MapDigest> {
        let digest = self.parent.as_deref().and_then(MapDigest::from_hex);
        if self.parent.is_some() && digest.is_none() {
            let message = "not 64 hexadecimal digits";
            findings.push(Finding::error(FindingCode::Parent, "/parent", message, "quote the parent's digest"));
        }
        if (self.version > 1) != self.parent.is_some() {
            let message = "only version 1 has no parent";
            findings.push(Finding::error(FindingCode::Parent, "/parent", message, "quote the parent's digest"));
        }
        digest
    }

    fn check_shards(&self, findings: &mut Vec<Finding>) {
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut endpoints = BTreeSet::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let pointer = format!("/shards/{index}");
            check_name(&shard.name, &format!("{pointer}/name"), findings);
            if shard.id == ShardId::RESERVED {
                let message = format!("shard {} is what stands beside the shards", shard.id);
                findings.push(Finding::error(FindingCode::ReservedShard, &pointer, message, "choose another number"));
            }
            if !ids.insert(shard.id) || !names.insert(&shard.name) {
                let message = format!("shard {} is there twice", shard.id);
                findings.push(Finding::error(FindingCode::Duplicate, &pointer, message, "remove one of them"));
            }
            for endpoint in &shard.endpoints {
                if !endpoints.insert(&endpoint.id) {
                    let message = format!("endpoint id of shard {} is used twice", shard.id);
                    findings.push(Finding::error(FindingCode::Duplicate, &pointer, message, "rename one of them"));
                }
            }
            check_endpoints(shard, &pointer, findings);
        }
    }

    fn check_ranges(
        &self,
        findings: &mut Vec<Finding>,
    ) -> (Box<[ShardId; Bucket::COUNT]>, Box<[Epoch; Bucket::COUNT]>) {
        let states: BTreeMap<_, _> = self.shards.iter().map(|shard| (shard.id, shard.state)).collect();
        let mut owners = Box::new([ShardId(0); Bucket::COUNT]);
        let mut epochs = Box::new([Epoch(0); Bucket::COUNT]);
        for (index, range) in self.ranges.iter().enumerate() {
            let pointer = format!("/ranges/{index}");
            check_range(range, &states, &pointer, findings);
            let last = usize::from(range.last).min(Bucket::COUNT - 1);
            let run = usize::from(range.first)..=last;
            let taken = run.clone().find(|&bucket| epochs[bucket].0 != 0);
            if let Some(bucket) = taken {
                let message = format!("bucket {bucket} has two owners");
                findings.push(Finding::error(FindingCode::Overlap, &pointer, message, "make the ranges disjoint"));
            }
            for bucket in run {
                owners[bucket] = ShardId(range.shard);
                epochs[bucket] = Epoch(range.epoch);
            }
        }
        if let Some(gap) = epochs.iter().position(|epoch| epoch.0 == 0) {
            let message = format!("bucket {gap} has no owner or epoch 0");
            findings.push(Finding::error(FindingCode::Gap, "/ranges", message, "cover 0..=4095, epochs from 1"));
        }
        (owners, epochs)
    }
}

/// Line and column of a byte, both from 1.
fn place_of(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_begins = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[line_begins..].chars().count() + 1)
}

fn check_range(range: &Range, states: &BTreeMap<ShardId, ShardState>, pointer: &str, findings: &mut Vec<Finding>) {
    if range.last < range.first || usize::from(range.last) >= Bucket::COUNT {
        let message = format!("{}..={} is no run of buckets", range.first, range.last);
        findings.push(Finding::error(FindingCode::Range, pointer, message, "stay within 0..=4095"));
    }
    if range.epoch == 0 {
        findings.push(Finding::error(FindingCode::Epoch, pointer, "epoch 0", "epochs start with 1"));
    }
    if range.epoch > Epoch::MAX.0 {
        let message = format!("epoch {} could not rise any more", range.epoch);
        findings.push(Finding::error(FindingCode::Epoch, pointer, message, "epochs end with 4294967294"));
    }
    match states.get(&ShardId(range.shard)) {
        None => {
            let message = format!("shard {} is not in the map", range.shard);
            findings.push(Finding::error(FindingCode::UnknownShard, pointer, message, "name a shard of the map"));
        }
        Some(ShardState::Retired) => {
            let message = format!("shard {} is retired", range.shard);
            findings.push(Finding::error(FindingCode::RetiredOwner, pointer, message, "give the buckets away"));
        }
        Some(ShardState::Live | ShardState::Draining) => {}
    }
}

fn check_endpoints(shard: &Shard, pointer: &str, findings: &mut Vec<Finding>) {
    let primaries = shard.endpoints.iter().filter(|endpoint| endpoint.role == EndpointRole::Primary).count();
    if shard.state != ShardState::Retired && primaries != 1 {
        let message = format!("shard {} has {primaries} primaries", shard.id);
        findings.push(Finding::error(FindingCode::Primary, pointer, message, "name exactly one primary"));
    }
    for (index, endpoint) in shard.endpoints.iter().enumerate() {
        let pointer = format!("{pointer}/endpoints/{index}");
        check_name(&endpoint.id, &format!("{pointer}/id"), findings);
        let pointer = format!("{pointer}/dsn_ref");
        if endpoint.dsn_ref.contains([':', '@', '=', '/', ' ']) {
            // The value is not repeated: it may be a secret.
            let message = "looks like a connection string";
            findings.push(Finding::error(FindingCode::InlineSecret, pointer, message, "name the secret instead"));
        } else {
            check_name(&endpoint.dsn_ref, &pointer, findings);
        }
    }
}

fn check_name(name: &str, pointer: &str, findings: &mut Vec<Finding>) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.bytes().all(allowed) {
        let message = "not 1 to 64 characters of A-Z a-z 0-9 - _ .";
        findings.push(Finding::error(FindingCode::Name, pointer, message, "choose another name"));
    }
}

fn ranges_of(map: &ShardMap) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (bucket, (shard, epoch)) in (0_u16..).zip(map.owners.iter().zip(map.epochs.iter())) {
        match ranges.last_mut() {
            Some(range) if range.shard == shard.0 && range.epoch == epoch.0 => range.last = bucket,
            _ => ranges.push(Range { first: bucket, last: bucket, shard: shard.0, epoch: epoch.0 }),
        }
    }
    ranges
}
