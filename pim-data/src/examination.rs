//! Examining shards: what each database says of itself, against the map, the schema and the rows that it holds.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use futures_util::StreamExt as _;
use pim_core::shard::{Bucket, Severity, ShardId, ShardMap};
use serde::Serialize;
use uuid::Uuid;

use crate::backend::{Db, DbError, SqlPair, Statement};
use crate::cluster::{CONTROL, Cluster, Group, PrimaryState, Shard};
use crate::migration::{MigrateError, Survey, place, survey};

/// Home keys that one examination of a shard looks at.
const SAMPLE: i64 = 500;
/// Shards that are examined at the same time.
const AT_ONCE_MAX: usize = 8;
/// Buckets that a finding names.
const NAMED_MAX: usize = 8;
/// Looks at an ownership that differs before it counts as such: a map may be about to be published.
const LOOKS_MAX: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);

const IDENTITY: SqlPair = SqlPair::same("SELECT keyspace, shard FROM pim_identity");
const OWNED: SqlPair = SqlPair::same("SELECT bucket, epoch, state, map_version FROM pim_bucket_owned");
const STRAYS: SqlPair = SqlPair::same(
    "SELECT k.bucket, o.bucket FROM (SELECT bucket, key FROM key_head WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?) k \
     LEFT JOIN pim_bucket_owned o ON o.bucket = k.bucket AND o.state <> 'moved'",
);

/// For which standbys commits wait.
const WAITED_FOR: SqlPair = SqlPair::postgres("SELECT current_setting('synchronous_standby_names')");

/// Every statement of this room.
pub(crate) const fn pairs() -> [SqlPair; 4] {
    [IDENTITY, OWNED, STRAYS, WAITED_FOR]
}

pim_core::closed_enum! {
    /// What an examination can find. Stable text forms, for scripts.
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum ShardFindingCode {
        /// The database does not answer.
        Unreachable = "unreachable",
        /// It says that it is another shard, or of another key space.
        Identity = "identity",
        /// It lacks migrations that this program has.
        SchemaOlder = "schema-older",
        /// It has migrations that this program does not know.
        SchemaNewer = "schema-newer",
        /// A migration is not the one that was applied.
        SchemaEdited = "schema-edited",
        /// It owns other buckets than the map says, or at another epoch.
        Ownership = "ownership",
        /// It knows a newer map than has been published.
        Unpublished = "unpublished",
        /// It holds rows of buckets that live elsewhere.
        Stray = "stray",
        /// Its primary takes no writes.
        Primary = "primary",
        /// Something is wrong with one of its servers.
        Endpoint = "endpoint",
        /// It has standbys, and commits wait for none.
        Asynchronous = "asynchronous",
    }
}

/// Something about a shard that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShardFinding {
    /// What.
    pub code: ShardFindingCode,
    /// How much it matters: the shard serves in spite of a warning.
    pub severity: Severity,
    /// Which of its servers, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What was found.
    pub message: String,
    /// What to do.
    pub fix: String,
}

/// What examining one shard has shown.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Examination {
    /// Which shard; `None` for the control database.
    pub shard: Option<ShardId>,
    /// Its newest migration; `None` when it was not found out.
    pub schema_version: Option<u32>,
    /// The newest migration that this program has.
    pub schema_version_known: u32,
    /// Buckets that its database says it owns.
    pub buckets_owned: u64,
    /// Home keys that were looked at.
    pub sampled: u64,
    /// What is wrong; none when all is as it should be.
    pub findings: Vec<ShardFinding>,
}

impl Examination {
    const fn of(shard: Option<ShardId>, schema_version_known: u32) -> Self {
        Self { shard, schema_version: None, schema_version_known, buckets_owned: 0, sampled: 0, findings: Vec::new() }
    }

    fn find(&mut self, code: ShardFindingCode, severity: Severity, message: String, fix: &'static str) {
        self.findings.push(ShardFinding { code, severity, endpoint: None, message, fix: fix.to_owned() });
    }

    fn error(&mut self, code: ShardFindingCode, message: String, fix: &'static str) {
        self.find(code, Severity::Error, message, fix);
    }

    /// As [`Examination::find`], about the shard's primary.
    fn find_at_primary(
        &mut self,
        shard: &Shard,
        (code, severity): (ShardFindingCode, Severity),
        message: String,
        fix: &'static str,
    ) {
        let endpoint = shard.group().map(|group| group.primary().to_owned());
        self.findings.push(ShardFinding { code, severity, endpoint, message, fix: fix.to_owned() });
    }
}

impl Cluster {
    /// Examines every shard while it serves, the control database last: whether it answers, who it says that it is, how far
    /// its schema is, whether it owns what the map says, whether some of its rows belong there, and how its servers are.
    ///
    /// Changes nothing. What cannot be read is a finding, so this does not fail. Up to eight shards are examined at once, with
    /// one connection each; of the home keys, 500 are looked at, from another place each time.
    pub async fn examine(&self) -> Vec<Examination> {
        let shards = futures_util::stream::iter(self.everything());
        let mut all: Vec<_> = shards.map(|shard| self.examine_one(shard)).buffered(AT_ONCE_MAX).collect().await;
        for described in self.0.fleet.lacks(&self.map()) {
            look_at_absence(described.id, self.0.fleet.why_not(described.id), &mut all);
        }
        all
    }

    async fn examine_one(&self, shard: Shard) -> Examination {
        let is_control = shard.id() == CONTROL;
        let steps = self.schema().migrations_of(is_control);
        let known = steps.iter().map(|step| step.version()).max().unwrap_or(0);
        let mut told = Examination::of((!is_control).then(|| shard.id()), known);
        look_at_servers(&shard, &mut told);
        let looked = async {
            self.look_at_identity(&shard, &mut told).await?;
            look_at_schema(survey(shard.db(), steps).await, &mut told)?;
            self.look_at_ownership(&shard, &mut told).await?;
            look_at_commits(&shard, &mut told).await?;
            look_at_rows(shard.db(), &mut told).await
        };
        if let Err(error) = looked.await {
            let fix = "start its server, or look at the place that the message names";
            told.error(ShardFindingCode::Unreachable, format!("{}: {}", place(shard.db()), reasons(&error)), fix);
        }
        told
    }

    async fn look_at_identity(&self, shard: &Shard, told: &mut Examination) -> Result<(), DbError> {
        const WRONG: (ShardFindingCode, Severity) = (ShardFindingCode::Identity, Severity::Error);
        let rows = shard.db().query(Statement::of(IDENTITY)).await?;
        let fix = "connection strings or files have been swapped: put them right before anything is written";
        let Some(row) = rows.first() else {
            told.find_at_primary(shard, WRONG, "it does not say who it is".to_owned(), fix);
            return Ok(());
        };
        let (keyspace, number) = (row.text(0)?, row.int(1)?);
        if keyspace != self.map().keyspace() || number != i64::from(shard.id().0) {
            let message = format!("it says that it is shard {number} of key space {keyspace}");
            told.find_at_primary(shard, WRONG, message, fix);
        }
        Ok(())
    }

    async fn look_at_ownership(&self, shard: &Shard, told: &mut Examination) -> Result<(), DbError> {
        let mut looks = 0;
        let differing = loop {
            looks += 1;
            let owned = Owned::of(shard.db()).await?;
            told.buckets_owned = owned.count;
            let _unreadable = self.refresh_map().await;
            let differing = owned.differing_from(&meant(shard.id(), &self.map()));
            let is_newer = shard.id() != CONTROL && owned.map_version > self.map().version().0;
            if (differing.is_empty() && !is_newer) || looks >= LOOKS_MAX {
                if is_newer {
                    let message = format!("it knows map {}, in force is {}", owned.map_version, self.map().version());
                    let fix = "a publication was broken off: publish again, or start a program that may";
                    told.error(ShardFindingCode::Unpublished, message, fix);
                }
                break differing;
            }
            tokio::time::sleep(PAUSE).await;
        };
        if !differing.is_empty() {
            let named: Vec<_> = differing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let message = format!("{} buckets differ from the map: {}", differing.len(), named.join(", "));
            let fix = "publish the map in force with its epochs raised; until then their writes are refused";
            told.error(ShardFindingCode::Ownership, message, fix);
        }
        Ok(())
    }
}

/// A promotion leaves a primary that waits for nobody; so does whoever forgets the setting.
async fn look_at_commits(shard: &Shard, told: &mut Examination) -> Result<(), DbError> {
    if !shard.group().is_some_and(Group::has_replicas) {
        return Ok(());
    }
    let rows = shard.db().query(Statement::of(WAITED_FOR)).await?;
    if rows.first().map_or(Ok(""), |row| row.text(0))?.is_empty() {
        let message = "commits wait for no standby: what was acknowledged can be lost with the primary".to_owned();
        let fix = "name a standby in synchronous_standby_names of the primary";
        told.find_at_primary(shard, (ShardFindingCode::Asynchronous, Severity::Warning), message, fix);
    }
    Ok(())
}

/// A bucket that a shard's database says it owns and the map does not, or the other way round; none when they agree, or when the
/// database knows a newer map.
pub(crate) async fn differing_from(db: &Db, shard: ShardId, map: &ShardMap) -> Result<Option<Bucket>, DbError> {
    let owned = Owned::of(db).await?;
    if owned.map_version > map.version().0 {
        return Ok(None);
    }
    let differing = owned.differing_from(&meant(shard, map));
    Ok(differing.first().and_then(|bucket| Bucket::new(*bucket).ok()))
}

/// What a shard should own.
fn meant(shard: ShardId, map: &ShardMap) -> BTreeMap<u16, u64> {
    if shard == CONTROL {
        return (0..4096).filter_map(|number| Some((Bucket::new(number).ok()?.get(), 1))).collect();
    }
    map.buckets_of(shard).map(|(bucket, epoch)| (bucket.get(), epoch.0.into())).collect()
}

/// An error with what is behind it, in one line.
pub(crate) fn reasons(error: &dyn Error) -> String {
    let behind = error.source().map(reasons);
    behind.map_or_else(|| error.to_string(), |reason| format!("{error}: {reason}"))
}

/// What a database says that it owns.
struct Owned {
    /// Epoch and state by bucket.
    buckets: BTreeMap<u16, (u64, String)>,
    count: u64,
    map_version: u64,
}

impl Owned {
    async fn of(db: &Db) -> Result<Self, DbError> {
        let mut owned = Self { buckets: BTreeMap::new(), count: 0, map_version: 0 };
        for row in db.query(Statement::of(OWNED)).await? {
            let state = row.text(2)?.to_owned();
            owned.count += u64::from(state == "owned");
            owned.map_version = owned.map_version.max(row.count(3)?);
            let bucket = u16::try_from(row.int(0)?).unwrap_or(u16::MAX);
            owned.buckets.insert(bucket, (row.count(1)?, state));
        }
        Ok(owned)
    }

    /// Buckets that it has and should not, or has not and should, or has at another epoch. One that is about to leave is
    /// still its own, one that is coming is not yet.
    fn differing_from(&self, meant: &BTreeMap<u16, u64>) -> Vec<u16> {
        let has = |bucket: &u16, epoch: u64| {
            self.buckets
                .get(bucket)
                .is_some_and(|(own, state)| *own == epoch && (state == "owned" || state == "draining"))
        };
        let lacking = meant.iter().filter(|(bucket, epoch)| !has(bucket, **epoch)).map(|(bucket, _)| *bucket);
        let is_own = |(bucket, (_, state)): &(&u16, &(u64, String))| state == "owned" && !meant.contains_key(bucket);
        let surplus = self.buckets.iter().filter(is_own).map(|(bucket, _)| *bucket);
        lacking.chain(surplus).collect()
    }
}

fn look_at_schema(surveyed: Result<Survey, MigrateError>, told: &mut Examination) -> Result<(), DbError> {
    match surveyed {
        Ok(Survey { found, lacks }) => {
            told.schema_version = Some(found);
            if let Some(lacks) = lacks {
                let message = format!("it is at migration {found} and lacks {lacks}");
                let fix = "start a program that has the owner's connection: it migrates before it serves";
                told.error(ShardFindingCode::SchemaOlder, message, fix);
            }
        }
        Err(MigrateError::Ledger(error)) => return Err(error),
        Err(error @ MigrateError::Newer { found, .. }) => {
            told.schema_version = Some(found);
            told.error(ShardFindingCode::SchemaNewer, error.to_string(), "use a program as new as the schema");
        }
        Err(error) => {
            let fix = "another build wrote this data: use that one, or a place of its own for this one";
            told.error(ShardFindingCode::SchemaEdited, error.to_string(), fix);
        }
    }
    Ok(())
}

/// Looks whether the buckets of some home keys are at home here, from a random key on.
async fn look_at_rows(db: &Db, told: &mut Examination) -> Result<(), DbError> {
    let from = Uuid::new_v4();
    let mut strays: BTreeMap<i64, u64> = BTreeMap::new();
    // What is behind the last key is before the first one.
    for (first, last) in [(from, Uuid::max()), (Uuid::nil(), from)] {
        let most = SAMPLE - i64::try_from(told.sampled).unwrap_or(SAMPLE);
        for row in db.query(Statement::of(STRAYS).bind(first).bind(last).bind(most)).await? {
            told.sampled += 1;
            if *row.get(1) == crate::backend::Value::Null {
                *strays.entry(row.int(0)?).or_default() += 1;
            }
        }
    }
    if !strays.is_empty() {
        let named: Vec<_> = strays.keys().take(NAMED_MAX).map(ToString::to_string).collect();
        let message = format!(
            "of {} home keys {} are of buckets that live elsewhere: {}",
            told.sampled,
            strays.values().sum::<u64>(),
            named.join(", ")
        );
        let fix = "a move clears what it leaves behind: look at the list of moves; else the rows were put in by hand";
        told.find(ShardFindingCode::Stray, Severity::Warning, message, fix);
    }
    Ok(())
}

/// What the map names and could not be opened: servers, or a whole shard.
fn look_at_absence(shard: ShardId, why: Option<String>, all: &mut Vec<Examination>) {
    let fix = "it is tried again: start its primary, promote a standby, or put right what the message names; where a new map \
               has brought it, the map before is a way back, from a program that has it open";
    let place = match all.iter_mut().find(|told| told.shard == Some(shard)) {
        Some(told) => told,
        None => {
            // Before the control database.
            let (known, last) = (all.first().map_or(0, |told| told.schema_version_known), all.len().saturating_sub(1));
            all.insert(last, Examination::of(Some(shard), known));
            &mut all[last]
        }
    };
    let message = "the map names servers that are not in use, because they could not be opened".to_owned();
    let message = why.map_or_else(|| message.clone(), |why| format!("{message}: {why}"));
    place.error(ShardFindingCode::Unreachable, message, fix);
}

/// What probes have shown of the shard's servers.
fn look_at_servers(shard: &Shard, told: &mut Examination) {
    let Some((_, state, endpoints)) = shard.group().map(|group| group.health()) else { return };
    let message = match state {
        PrimaryState::Ready => None,
        PrimaryState::NoStandby => Some("writes wait for a synchronous standby that is not there"),
        PrimaryState::Silent => Some("the primary does not answer, and nobody has taken its place"),
    };
    if let Some(message) = message {
        let fix = "start the server that is missing, or promote the standby";
        told.find_at_primary(shard, (ShardFindingCode::Primary, Severity::Error), message.to_owned(), fix);
    }
    for endpoint in endpoints {
        let Some(finding) = endpoint.finding else { continue };
        told.findings.push(ShardFinding {
            code: ShardFindingCode::Endpoint,
            severity: Severity::Warning,
            message: format!("{} {}", endpoint.id, finding.what()),
            fix: finding.fix().to_owned(),
            endpoint: Some(endpoint.id),
        });
    }
}
