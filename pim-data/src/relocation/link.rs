//! The record at both ends of a move: audit trails stay where they were written, and these say where they go on.

use pim_core::context::RequestContext;
use pim_core::shard::{Lane, ShardId};
use serde_json::json;

use super::{MoveError, MoveRecord};
use crate::audit::{self, LaneHead, Record};
use crate::backend::{DbError, Statement};
use crate::cluster::Cluster;

/// Appends to the lane of every bucket at both ends, once however often it is asked.
pub(super) async fn record(cluster: &Cluster, cx: &RequestContext, it: &MoveRecord) -> Result<(), MoveError> {
    for bucket in &it.buckets {
        let lane = bucket.lane();
        let found = it.report.buckets.iter().find(|report| report.bucket == bucket.get());
        let epoch = cluster.map().owner(*bucket).1;
        let facts = json!({
            "bucket": bucket.get(),
            "checksum": found.map(|report| report.checksum.as_str()),
            "epoch": epoch.0,
            "from": it.source.0,
            "map_version": it.map_version,
            "rows": found.map(|report| report.rows),
            "to": it.target.0,
        });
        // The giver first: what the taker writes down names the end of the trail that it goes on from.
        let given = append(cluster, cx, it, (it.source, lane), "bucket_given", facts.clone()).await?;
        let mut facts = facts;
        facts["follows"] = json!(given);
        append(cluster, cx, it, (it.target, lane), "bucket_taken", facts).await?;
    }
    Ok(())
}

/// Appends a record unless it is there; its number and hash.
async fn append(
    cluster: &Cluster,
    cx: &RequestContext,
    it: &MoveRecord,
    (shard, lane): (ShardId, Lane),
    action: &'static str,
    facts: serde_json::Value,
) -> Result<String, MoveError> {
    let failed = |source| MoveError::Shard { shard, source };
    let open = cluster.shard(shard).ok_or(MoveError::Exchanged(shard))?;
    let db = open.governed();
    let known = "SELECT seq, hash, body FROM audit WHERE lane = ? AND entity_id = ? AND entity = 'bucket' ORDER BY seq";
    let known = Statement::same(known).bind(lane.get()).bind(it.id);
    let mut first = LaneHead::hold(db.engine(), lane);
    first.extend([known, LaneHead::look_up(lane)]);
    let appended = async {
        let (tx, answers) = db.begin_with(&first).await?;
        let [.., known, head] = &answers[..] else { return Err(DbError::Closed) };
        // Several buckets of one move may share a lane.
        let marker = format!("\"bucket\":{},", facts["bucket"]);
        for row in known {
            if row.text(2)?.contains(&marker) && row.text(2)?.contains(action) {
                let found = format!("{}:{}", row.count(0)?, audit::hex(&row.digest(1)?));
                tx.rollback().await?;
                return Ok(found);
            }
        }
        let mut head = LaneHead::of(head.first())?;
        let record = Record::of_bucket(cx, cluster.clock().now(), lane, (action, it.id), facts);
        let insert = head.append(&record);
        tx.commit_with(vec![insert]).await?;
        Ok(head.text())
    };
    appended.await.map_err(failed)
}
