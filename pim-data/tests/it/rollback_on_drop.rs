//! A unit that does not commit writes nothing, and one that commits writes everything.

use pim_core::id::Id;
use pim_data::backend::{Db, DbSettings, Statement};
use pim_data::consistency::Consistency;
use pim_data::repository::ReadError;
use pim_data::unit::{LOADS_MAX, UnitError, WRITES_MAX};

use super::world::{Account, CustomerNote, DepotRow, Note, ShopResource, World, bytes, cx, read, tell, write};

const TABLES: [&str; 5] = [
    "SELECT COUNT(*) FROM account_row",
    "SELECT COUNT(*) FROM account_history",
    "SELECT COUNT(*) FROM audit",
    "SELECT COUNT(*) FROM fact",
    "SELECT COUNT(*) FROM key_head",
];

#[tokio::test]
async fn a_dropped_unit_leaves_no_trace() {
    let world = World::new(2).await;
    let account = Account::new(Id::random());
    let mut unit = world.cluster.begin(&cx(), account.id);
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    tell(&mut unit, "registered");
    drop(unit);
    for table in TABLES {
        assert_eq!(world.count(account.id, table).await, 0, "{table}");
    }
}

/// Guard: `unit::calls_of` and its twins of reads. The database's "no such table" would name neither entity nor fix.
#[tokio::test]
async fn an_entity_that_lives_elsewhere_is_named() {
    let world = World::new(1).await;
    let account = world.register().await;
    let depot = DepotRow { id: Id::random(), version: 0, code: "north".to_owned() };
    let mut unit = world.cluster.begin(&cx(), depot.id);
    let saved = unit.save(&write(ShopResource::Depot), &depot);
    assert!(matches!(saved, Err(UnitError::UnknownEntity { entity: "depot", place: "the shards" })), "{saved:?}");
    let mut unit = world.cluster.begin_control(&cx(), account.id);
    let loaded = unit.load::<Account>(&write(ShopResource::Account), account.id).await;
    assert!(matches!(loaded, Err(UnitError::UnknownEntity { place: "the control database", .. })), "{loaded:?}");
    let read = world.cluster.read::<DepotRow>(&cx(), &read(ShopResource::Depot), depot.id, &Consistency::Strong).await;
    assert!(matches!(read, Err(ReadError::UnknownEntity { entity: "depot", place: "the shards" })), "{read:?}");
}

#[tokio::test]
async fn a_committed_unit_writes_row_history_audit_and_facts() {
    let world = World::new(2).await;
    let account = world.register().await;
    for table in TABLES {
        assert_eq!(world.count(account.id, table).await, 1, "{table}");
    }
}

#[tokio::test]
async fn a_failure_of_the_last_statement_undoes_the_first() {
    let world = World::new(1).await;
    let account = world.register().await;
    // The fact of the next n is there already: the part's insert fails after the row was written.
    world.raw(account.id, "INSERT INTO fact SELECT key, n + 1, 'intruder' FROM key_head").await.expect("inserts");
    let failed = world.change(account.id, |account| account.points = 7).await;
    assert!(matches!(failed, Err(UnitError::Database(_))), "{failed:?}");
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 0);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM account_history").await, 1);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM audit").await, 1);
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 1);
}

#[tokio::test]
async fn only_a_commit_wakes_the_relay() {
    let world = World::new(1).await;
    let account = world.register().await;
    let commits = world.cluster.commits();
    let before = *commits.borrow();
    world.raw(account.id, "INSERT INTO fact SELECT key, n + 1, 'intruder' FROM key_head").await.expect("inserts");
    world.change(account.id, |account| account.points = 7).await.expect_err("its fact is there already");
    assert_eq!(*commits.borrow(), before, "nothing was committed");
    world.raw(account.id, "DELETE FROM fact WHERE text = 'intruder'").await.expect("deletes");
    world.change(account.id, |account| account.points = 7).await.expect("commits");
    assert_eq!(*commits.borrow(), before + 1);
}

#[tokio::test]
async fn a_write_without_an_event_is_refused() {
    let world = World::new(1).await;
    let account = Account::new(Id::random());
    let mut unit = world.cluster.begin(&cx(), account.id);
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    assert!(matches!(unit.commit().await, Err(UnitError::NoEvent)));
    assert_eq!(world.count(account.id, TABLES[0]).await, 0);
}

#[tokio::test]
async fn a_transaction_dropped_half_way_gives_the_lock_back_to_other_processes() {
    let world = World::new(1).await;
    let account = world.register().await;
    let db = world.all_powerful(account.id).await;
    let mut tx = db.begin().await.expect("begins");
    tx.script("UPDATE account_row SET points = 99").await.expect("runs");
    drop(tx);
    // A second opening of the same file stands for another process; its patience is shorter than a test's.
    let other = match db.path() {
        Some(file) => Db::open(file, DbSettings::default()).await.expect("opens"),
        None => world.all_powerful(account.id).await,
    };
    let mut tx = other.begin().await.expect("the lock is free");
    tx.script("UPDATE account_row SET points = points").await.expect("the row is free");
    let rows = tx.query(Statement::same("SELECT points FROM account_row")).await.expect("runs");
    assert_eq!(rows[0].int(0), Ok(0));
}

#[tokio::test]
async fn rows_of_two_entities_commit_together() {
    let world = World::new(2).await;
    let account = Account::new(Id::random());
    let mut unit = world.cluster.begin(&cx(), account.id);
    let note = CustomerNote {
        id: Id::child_of(account.id.bucket(), unit.at()),
        version: 0,
        customer: account.id,
        account: account.id,
        text: "hello".to_owned(),
    };
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    unit.save(&write(ShopResource::Note), &note).expect("saves");
    tell(&mut unit, "registered");
    tell(&mut unit, "noted");
    let committed = unit.commit().await.expect("commits");
    assert_eq!(committed.n, 2);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM note_row").await, 1);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM audit").await, 2);
}

#[tokio::test]
async fn a_row_of_another_home_or_bucket_is_refused() {
    let world = World::new(2).await;
    let (one, two) = (world.register().await, world.register().await);
    let mut unit = world.cluster.begin(&cx(), one.id);
    assert!(matches!(unit.save(&write(ShopResource::Account), &two), Err(UnitError::WrongHome { .. })));
    let stray = CustomerNote {
        id: Id::child_of(Id::<super::world::Customer>::random().bucket(), unit.at()),
        version: 0,
        customer: one.id,
        account: one.id,
        text: String::new(),
    };
    if stray.id.bucket() != one.id.bucket() {
        assert!(matches!(unit.save(&write(ShopResource::Note), &stray), Err(UnitError::WrongHome { .. })));
    }
}

/// Guard: keys move one by one, so what one refers to must be its own.
#[tokio::test]
async fn a_reference_to_a_row_of_another_bucket_is_refused() {
    let world = World::new(1).await;
    let one = world.register().await;
    let mut two = world.register().await;
    while two.id.bucket() == one.id.bucket() {
        two = world.register().await;
    }
    let mut unit = world.cluster.begin(&cx(), one.id);
    let id = Id::child_of(one.id.bucket(), unit.at());
    let note = CustomerNote { id, version: 0, customer: one.id, account: two.id, text: String::new() };
    let saved = unit.save(&write(ShopResource::Note), &note);
    assert!(matches!(saved, Err(UnitError::ReferenceElsewhere { entity: "note", column: "account" })), "{saved:?}");
}

#[tokio::test]
async fn hand_typed_rows_of_foreign_buckets_are_refused_by_the_database() {
    let world = World::new(2).await;
    let account = world.register().await;
    let copy = format!(
        "INSERT INTO account_row SELECT {}, home_key, bucket, facility_id, version, created_at, updated_at, \
                name, state, points, since, vip, tags FROM account_row",
        bytes("000000000000")
    );
    assert!(world.raw(account.id, &copy).await.is_err(), "an id that is no uuid");
    let moved = "UPDATE account_row SET bucket = (bucket + 1) % 4096";
    assert!(world.raw(account.id, moved).await.is_err(), "a bucket that is not the id's");
    let lost = "UPDATE pim_bucket_owned SET state = 'moved'; UPDATE account_row SET points = 1";
    assert!(world.raw(account.id, lost).await.is_err(), "a bucket that is not owned");
}

/// Guard: `WRITES_MAX` and `LOADS_MAX`. What a unit collects is bounded, and what is above it is refused while the rest stays.
#[tokio::test]
async fn a_unit_takes_so_many_rows_and_no_more() {
    let world = World::new(1).await;
    let account = world.register().await;
    let permit = write(ShopResource::Note);
    let mut ids: Vec<Id<Note>> = Vec::new();
    while ids.len() <= LOADS_MAX {
        let mut unit = world.cluster.begin(&cx(), account.id);
        let note =
            |id| CustomerNote { id, version: 0, customer: account.id, account: account.id, text: "n".to_owned() };
        for _ in 0..WRITES_MAX {
            let id = Id::child_of(account.id.bucket(), unit.at());
            unit.save(&permit, &note(id)).expect("saves");
            ids.push(id);
        }
        let surplus = unit.save(&permit, &note(Id::child_of(account.id.bucket(), unit.at())));
        assert!(matches!(surplus, Err(UnitError::TooLarge { most: WRITES_MAX })), "{surplus:?}");
        tell(&mut unit, "noted");
        unit.commit().await.expect("commits");
    }
    let mut unit = world.cluster.begin(&cx(), account.id);
    for id in &ids[..LOADS_MAX] {
        unit.load::<CustomerNote>(&permit, *id).await.expect("loads");
    }
    unit.load::<CustomerNote>(&permit, ids[0]).await.expect("loads again what it has").expect("it is there");
    let surplus = unit.load::<CustomerNote>(&permit, ids[LOADS_MAX]).await;
    assert!(matches!(surplus, Err(UnitError::TooLarge { most: LOADS_MAX })), "{surplus:?}");
}
