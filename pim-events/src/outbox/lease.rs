//! Who may move the cursor of an embedded outbox: a lease by the database's clock, checked by owner and epoch at every write.

use std::time::Duration;

use pim_data::backend::{Db, DbError, Statement};
use uuid::Uuid;

/// The database's clock, in milliseconds.
macro_rules! now_ms {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

/// Whether somebody may still be there who has it. One that lies further ahead than twice the time of a lease was written before the clock
/// was set back: whoever wrote it may be dead, and whoever lives has only what they sent sent again.
macro_rules! lasts {
    () => {
        concat!("lease_until_ms BETWEEN ", now_ms!(), " AND ", now_ms!(), " + 2 * lease_ms")
    };
}
pub(super) use {lasts, now_ms};

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

/// Takes the lease when it is free, has run out, or is this relay's from before, which could not give it back; each taking raises
/// the epoch.
pub(super) async fn acquire(db: &Db, owner: Uuid, length: Duration) -> Result<Asked, DbError> {
    // Looking first keeps relays that wait from taking the writer's lock again and again.
    let look = Statement::sqlite(concat!(
        "SELECT max(0, lease_until_ms - ",
        now_ms!(),
        ") FROM outbox_cursor WHERE owner IS NOT NULL AND owner <> ? AND ",
        lasts!()
    ))
    .bind(owner);
    if let Some(row) = db.query(look).await?.first() {
        return Ok(Asked::Taken(Duration::from_millis(row.count(0)?)));
    }
    let take = Statement::sqlite(concat!(
        "UPDATE outbox_cursor SET owner = ?, epoch = epoch + 1, lease_until_ms = ",
        now_ms!(),
        " + ?, lease_ms = ? WHERE owner IS NULL OR owner = ? OR NOT ",
        lasts!(),
        " RETURNING epoch, last_seq"
    ))
    .bind(owner)
    .bind(millis(length))
    .bind(millis(length))
    .bind(owner);
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

#[cfg(test)]
mod tests {
    use super::*;
    use pim_data::backend::DbSettings;

    async fn outbox(folder: &std::path::Path) -> Db {
        let db = Db::open(&folder.join("outbox.db"), DbSettings::default()).await.unwrap();
        pim_data::migration::migrate(&db, crate::outbox::migrations()).await.unwrap();
        db
    }

    async fn last_seq(db: &Db) -> u64 {
        db.query(Statement::sqlite("SELECT last_seq FROM outbox_cursor")).await.unwrap()[0].count(0).unwrap()
    }

    /// Guard: `acquire` takes what is its own by name. A relay that was cut off from its database could not give it back.
    #[tokio::test]
    async fn nobody_waits_for_a_lease_of_their_own() {
        let folder = std::env::temp_dir().join(format!("pim-lease-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = outbox(&folder).await;
        let (long, owner) = (Duration::from_secs(60), Uuid::new_v4());
        let Asked::Held(cut_off) = acquire(&db, owner, long).await.unwrap() else { panic!("free") };
        assert!(matches!(acquire(&db, Uuid::new_v4(), long).await.unwrap(), Asked::Taken(_)));
        let Asked::Held(again) = acquire(&db, owner, long).await.unwrap() else { panic!("its own") };
        assert_eq!((cut_off.epoch, again.epoch), (1, 2));
        assert!(!advance(&db, &cut_off, 9, long, Vec::new()).await.unwrap(), "what comes late moves nothing");
        drop(db);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Guard: `lasts`. Who had the lease may have died before the clock was set back.
    #[tokio::test]
    async fn nobody_waits_for_a_clock_that_was_set_back() {
        let folder = std::env::temp_dir().join(format!("pim-lease-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = outbox(&folder).await;
        let long = Duration::from_secs(60);
        let Asked::Held(dead) = acquire(&db, Uuid::new_v4(), long).await.unwrap() else { panic!("free") };
        let sets_back =
            |ms: u64| Statement::sqlite("UPDATE outbox_cursor SET lease_until_ms = lease_until_ms + ?").bind(ms);
        let set_back = async |ms| db.begin().await.unwrap().commit_with(vec![sets_back(ms)]).await.unwrap();
        set_back(30_000).await;
        assert!(
            matches!(acquire(&db, Uuid::new_v4(), long).await.unwrap(), Asked::Taken(_)),
            "nobody steps on another"
        );
        set_back(600_000).await;
        let Asked::Held(held) = acquire(&db, Uuid::new_v4(), long).await.unwrap() else { panic!("dead") };
        assert_eq!(held.epoch, dead.epoch + 1);
        drop(db);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Guard: `advance` checks owner and epoch. A relay that comes back from the dead moves no cursor.
    #[tokio::test]
    async fn a_stale_relay_moves_no_cursor() {
        let folder = std::env::temp_dir().join(format!("pim-lease-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = outbox(&folder).await;
        let long = Duration::from_secs(60);
        let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
        let Asked::Held(stale) = acquire(&db, old, Duration::ZERO).await.unwrap() else { panic!("free") };
        tokio::time::sleep(Duration::from_millis(5)).await;
        let Asked::Held(held) = acquire(&db, new, long).await.unwrap() else { panic!("run out") };
        assert_eq!((stale.epoch, held.epoch), (1, 2));
        assert!(advance(&db, &held, 5, long, Vec::new()).await.unwrap());
        assert!(!advance(&db, &stale, 9, long, Vec::new()).await.unwrap());
        assert_eq!(last_seq(&db).await, 5);
        // The same relay under an earlier tenure is as stale as another one.
        release(&db, &stale).await.unwrap();
        assert!(matches!(acquire(&db, old, long).await.unwrap(), Asked::Taken(_)));
        release(&db, &held).await.unwrap();
        let Asked::Held(again) = acquire(&db, new, long).await.unwrap() else { panic!("given back") };
        assert_eq!((again.epoch, again.last_seq), (3, 5));
        assert!(!advance(&db, &held, 9, long, Vec::new()).await.unwrap());
        assert_eq!(last_seq(&db).await, 5);
        drop(db);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
