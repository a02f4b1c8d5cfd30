//! Whether history and trail tell of the same changes, each read in one snapshot of its database.
//!
//! Every committed change leaves a period of history and a record in one transaction, so what one side lacks was taken from
//! it, or put into the other. Changes are compared as order-free sums for each bucket; where those differ, they are looked at
//! again, because a bucket may move meanwhile, and named at last. A bucket's records stay where they were written, its
//! history goes with it: both are added up over all shards.

mod ledger;
mod view;

use std::collections::BTreeSet;
use std::time::Duration;

use pim_core::shard::{Bucket, Lane, ShardId};

use self::ledger::{Differing, Ledger};
use self::view::View;
use super::checkpoint::CheckpointError;
use super::verify::{AuditFinding, AuditFindingKind, Chains};
use crate::backend::{DbError, SqlPair};
use crate::cluster::{CONTROL, Cluster};
use crate::entity::Table;

/// Rows of one page.
const PAGE: i64 = 2_000;
/// Looks at what differs before it counts as such.
const LOOKS_MAX: usize = 3;
/// Between two looks: longer than a bucket that moves is nobody's.
const PAUSE: Duration = Duration::from_millis(200);
/// Buckets whose changes are named one by one.
const NAMED_MAX: usize = 8;

/// Every statement of this room.
pub(super) fn pairs(tables: &[&'static Table]) -> Vec<SqlPair> {
    view::pairs(tables)
}

/// Walks along the chains of all shards, or of the control database, and says where data and trail disagree.
pub(super) async fn look(
    cluster: &Cluster,
    is_control: bool,
    mut chains: Chains<'_>,
) -> Result<Vec<AuditFinding>, CheckpointError> {
    let first = walk(cluster, is_control, BTreeSet::new(), Some(&mut chains)).await?;
    chains.report.changes += first.changes;
    chains.report.keys += first.keys;
    let mut differing = first.differing();
    for _ in 1..LOOKS_MAX {
        if differing.is_empty() {
            return Ok(Vec::new());
        }
        tokio::time::sleep(PAUSE).await;
        differing.keep(&walk(cluster, is_control, BTreeSet::new(), None).await?.differing());
    }
    let Differing { buckets, keys } = differing;
    let named: BTreeSet<Bucket> = buckets.iter().copied().take(NAMED_MAX).collect();
    let place = |bucket: Bucket| (!is_control).then(|| cluster.map().owner(bucket).0.0);
    let mut findings = Vec::new();
    if !named.is_empty() {
        findings = walk(cluster, is_control, named.clone(), None).await?.named(place);
    }
    findings.extend(keys.into_values());
    for bucket in buckets.difference(&named) {
        let (shard, lane, kind) = (place(*bucket), u64::from(bucket.lane().get()), AuditFindingKind::Differs);
        findings.push(AuditFinding { shard, lane, seq: 0, kind, row: None });
    }
    Ok(findings)
}

/// Walks along one lane's chains of all databases, and compares nothing.
pub(super) async fn walk_lane(cluster: &Cluster, lane: Lane, chains: &mut Chains<'_>) -> Result<(), CheckpointError> {
    let mut views = views_of(cluster, |_| true).await?;
    chains.know_tombstones(cluster).await?;
    for view in &mut views {
        let mut unread = Ledger::new(&[], BTreeSet::new(), std::iter::once(view.retained()));
        view.records(lane, PAGE, Some(&mut *chains), &mut unread).await?;
    }
    Ok(())
}

/// A snapshot of each of these databases.
async fn views_of(cluster: &Cluster, is_one: impl Fn(ShardId) -> bool) -> Result<Vec<View>, DbError> {
    let mut views = Vec::new();
    for source in cluster.sources().filter(|source| is_one(*source)) {
        if let Some(db) = cluster.database(source) {
            views.push(View::of(&db, source).await?);
        }
    }
    Ok(views)
}

/// Reads everything once: by lane the records and the numbers of the keys, then rows and history.
async fn walk(
    cluster: &Cluster,
    is_control: bool,
    named: BTreeSet<Bucket>,
    mut chains: Option<&mut Chains<'_>>,
) -> Result<Ledger, CheckpointError> {
    let mut views = views_of(cluster, |source| (source == CONTROL) == is_control).await?;
    if let Some(chains) = chains.as_deref_mut() {
        chains.know_tombstones(cluster).await?;
    }
    let tables = cluster.schema().tables_of(is_control);
    let mut ledger = Ledger::new(tables, named, views.iter().map(View::retained));
    for lane in Lane::all() {
        for view in &mut views {
            view.records(lane, PAGE, chains.as_deref_mut(), &mut ledger).await?;
        }
        for view in &mut views {
            view.numbers(lane, PAGE, &mut ledger).await?;
        }
        ledger.end_lane(lane);
    }
    for view in &mut views {
        for table in tables {
            view.history(table, PAGE, &mut ledger).await?;
            view.rows(table, PAGE, &mut ledger).await?;
        }
    }
    Ok(ledger)
}
