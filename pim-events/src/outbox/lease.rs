//! Who may move a cursor: a lease by the database's clock, checked by owner and epoch at every write.

use std::time::Duration;

use pim_data::backend::{Db, DbError, Statement};
use uuid::Uuid;

/// The database's clock, in milliseconds.
macro_rules! now_ms {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

/// A lease that was held at the time it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) owner: Uuid,
    pub(super) epoch: u64,
    /// Everything up to here is on the bus, as the database knows it.
    pub(super) last_seq: u64,
}

/// The answer to asking for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is ours.
    Held(Lease),
    /// Another relay has it for so long.
    Taken(Duration),
}

/// Takes the lease when it is free or has run out; each taking raises the epoch.
pub(super) async fn acquire(db: &Db, owner: Uuid, length: Duration) -> Result<Asked, DbError> {
    // Looking first keeps relays that wait from taking the writer's lock again and again.
    let look = Statement::sqlite(concat!(
        "SELECT max(0, lease_until_ms - ",
        now_ms!(),
        ") FROM outbox_cursor WHERE owner IS NOT NULL AND lease_until_ms >= ",
        now_ms!()
    ));
    if let Some(row) = db.query(look).await?.first() {
        return Ok(Asked::Taken(Duration::from_millis(row.count(0)?)));
    }
    let take = Statement::sqlite(concat!(
        "UPDATE outbox_cursor SET owner = ?, epoch = epoch + 1, lease_until_ms = ",
        now_ms!(),
        " + ? WHERE owner IS NULL OR lease_until_ms < ",
        now_ms!(),
        " RETURNING epoch, last_seq"
    ))
    .bind(owner)
    .bind(millis(length));
    let (tx, answers) = db.begin_with(&[take]).await?;
    tx.commit().await?;
    match answers.first().and_then(|rows| rows.first()) {
        Some(row) => Ok(Asked::Held(Lease { owner, epoch: row.count(0)?, last_seq: row.count(1)? })),
        None => Ok(Asked::Taken(Duration::ZERO)),
    }
}

/// Moves the cursor and renews the lease. False when the lease is another's by now: whoever asks is a stale relay.
pub(super) async fn advance(
    db: &Db,
    lease: &Lease,
    last_seq: u64,
    length: Duration,
    with: Vec<Statement>,
) -> Result<bool, DbError> {
    let advance = Statement::sqlite(concat!(
        "UPDATE outbox_cursor SET last_seq = max(last_seq, ?), lease_until_ms = ",
        now_ms!(),
        " + ? WHERE owner = ? AND epoch = ? RETURNING 1"
    ))
    .bind(last_seq)
    .bind(millis(length))
    .bind(lease.owner)
    .bind(lease.epoch);
    let (tx, answers) = db.begin_with(&[advance]).await?;
    if answers.first().is_none_or(Vec::is_empty) {
        tx.rollback().await?;
        return Ok(false);
    }
    tx.commit_with(with).await?;
    Ok(true)
}

/// Gives the lease back, so that the next relay need not wait for it to run out.
pub(super) async fn release(db: &Db, lease: &Lease) -> Result<(), DbError> {
    let release =
        Statement::sqlite("UPDATE outbox_cursor SET owner = NULL, lease_until_ms = 0 WHERE owner = ? AND epoch = ?")
            .bind(lease.owner)
            .bind(lease.epoch);
    let (tx, _none) = db.begin_with(&[release]).await?;
    tx.commit().await
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
