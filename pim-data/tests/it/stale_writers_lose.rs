//! Two units that read the same cannot both win, whichever way they try.

use futures_util::future::join_all;
use pim_core::id::Id;
use pim_data::backend::DbError;
use pim_data::unit::{Tries, UnitError};

use super::world::{Account, Customer, CustomerNote, DepotRow, Note, ShopResource, World, cx, tell, write};

#[tokio::test]
async fn two_units_that_read_the_same_row_cannot_both_win() {
    let world = World::new(1).await;
    let account = world.register().await;
    let permit = write(ShopResource::Account);
    let mut units = Vec::new();
    for _ in 0..2 {
        let mut unit = world.cluster.begin(&cx(), account.id);
        let mut seen = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is there");
        seen.points += 1;
        unit.save(&permit, &seen).expect("saves");
        tell(&mut unit, "changed");
        units.push(unit);
    }
    let second = units.pop().expect("two");
    units.pop().expect("one").commit().await.expect("the first wins");
    assert!(matches!(second.commit().await, Err(UnitError::Conflict)));
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 1);
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 2);
}

#[tokio::test]
async fn a_stale_update_aborts_the_whole_unit() {
    let world = World::new(1).await;
    let account = world.register().await;
    let permit = write(ShopResource::Account);
    let mut unit = world.cluster.begin(&cx(), account.id);
    let mut seen = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is there");
    seen.points = 5;
    unit.save(&permit, &seen).expect("saves");
    tell(&mut unit, "changed");
    // Hand-typed SQL does not move n, so only the row's own version tells.
    world.raw(account.id, "UPDATE account_row SET version = version + 1").await.expect("runs");
    assert!(matches!(unit.commit().await, Err(UnitError::Stale { entity: "account" })));
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact").await, 1, "no event without its row");
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 0);
}

/// Guard: of several rows the one that is stale is named, wherever it stands among them.
#[tokio::test]
async fn of_several_rows_the_stale_one_is_named() {
    let world = World::new(1).await;
    let account = world.register().await;
    let note = noted(&world, account.id).await;
    for (stale, is_last) in [("note", true), ("note", false), ("account", true), ("account", false)] {
        let mut unit = world.cluster.begin(&cx(), account.id);
        let (accounts, notes) = (write(ShopResource::Account), write(ShopResource::Note));
        let mut account = unit.load::<Account>(&accounts, account.id).await.expect("loads").expect("is there");
        let mut note = unit.load::<CustomerNote>(&notes, note).await.expect("loads").expect("is there");
        // What somebody saw before the newest version was written.
        *(if stale == "note" { &mut note.version } else { &mut account.version }) = 1;
        if is_last == (stale == "note") {
            unit.save(&accounts, &account).expect("saves");
            unit.save(&notes, &note).expect("saves");
        } else {
            unit.save(&notes, &note).expect("saves");
            unit.save(&accounts, &account).expect("saves");
        }
        tell(&mut unit, "changed");
        let refused = unit.commit().await;
        let Err(UnitError::Stale { entity }) = refused else { panic!("{refused:?}") };
        assert_eq!(entity, stale, "last: {is_last}");
    }
}

/// A note of a customer; both rows in their second version.
async fn noted(world: &World, customer: Id<Customer>) -> Id<Note> {
    let mut note = CustomerNote {
        id: Id::child_of(customer.bucket(), world.cluster.clock().now()),
        version: 0,
        customer,
        account: customer,
        text: "x".to_owned(),
    };
    for _ in 0..2 {
        let mut unit = world.cluster.begin(&cx(), customer);
        if note.version > 0 {
            let _seen = unit.load::<CustomerNote>(&write(ShopResource::Note), note.id).await.expect("loads");
        }
        note.version = unit.save(&write(ShopResource::Note), &note).expect("saves");
        tell(&mut unit, "noted");
        unit.commit().await.expect("commits");
    }
    world.change(customer, |account| account.points = 1).await.expect("commits");
    note.id
}

#[tokio::test]
async fn many_writers_of_one_key_all_get_through_by_running_again() {
    let world = std::sync::Arc::new(World::new(1).await);
    let account = world.register().await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (world, id) = (std::sync::Arc::clone(&world), account.id);
        writers.spawn(async move {
            let mut tries = Tries::of(&world.cluster, &cx());
            loop {
                match world.change(id, |account| account.points += 1).await {
                    Err(error) if tries.again(&error).await => {}
                    outcome => return outcome.map(drop),
                }
            }
        });
    }
    let mut won = 0;
    while let Some(outcome) = writers.join_next().await {
        won += u64::from(outcome.expect("runs").is_ok());
    }
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, won, "each winner counts once");
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 1 + won);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact").await, 1 + won);
    assert!(won >= 6, "{won} of 12");
}

#[tokio::test]
async fn the_same_row_twice_is_named() {
    let world = World::new(1).await;
    let account = world.register().await;
    let mut unit = world.cluster.begin(&cx(), account.id);
    unit.save(&write(ShopResource::Account), &Account::new(account.id)).expect("saves");
    tell(&mut unit, "registered");
    assert!(matches!(unit.commit().await, Err(UnitError::AlreadyExists { entity: "account" })));
}

#[tokio::test]
async fn a_unique_column_of_the_control_database_is_held() {
    let world = World::new(1).await;
    let permit = write(ShopResource::Depot);
    for (code, is_new) in [("north", true), ("south", true), ("north", false)] {
        let depot = DepotRow { id: Id::random(), version: 0, code: code.to_owned() };
        let mut unit = world.cluster.begin_control(&cx(), depot.id);
        unit.save(&permit, &depot).expect("saves");
        tell(&mut unit, "opened");
        match unit.commit().await {
            Ok(_) => assert!(is_new),
            Err(error) => {
                assert!(!is_new && matches!(error, UnitError::AlreadyExists { entity: "depot" }), "{error:?}");
            }
        }
    }
    let page = pim_data::repository::Page { after: None, limit: 10 };
    let permit = super::world::read(ShopResource::Depot);
    let depots = world.cluster.list_control::<DepotRow>(&cx(), &permit, page).await.expect("lists");
    assert_eq!(depots.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_write_one_key_lose_no_write() {
    let folder = super::world::Folder::new();
    let settings = || super::world::settings(&folder, 1).with_access(pim_data::cluster::Access::Shared);
    let open = || pim_data::cluster::Cluster::open(settings(), super::world::schema());
    let (one, other) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = World { cluster: one, policy: super::world::policy(), folder };
    let account = world.register().await;
    let write_on = async |cluster: &pim_data::cluster::Cluster| {
        for _ in 0..25 {
            let context = cx();
            let mut tries = Tries::of(cluster, &context);
            loop {
                let permit = write(ShopResource::Account);
                let mut unit = cluster.begin(&context, account.id);
                let outcome = async {
                    let mut seen = unit.load::<Account>(&permit, account.id).await?.expect("is there");
                    seen.points += 1;
                    unit.save(&permit, &seen)?;
                    tell(&mut unit, "changed");
                    unit.commit().await
                };
                match outcome.await {
                    Ok(_) => break,
                    Err(error) if tries.again(&error).await => {}
                    // The other one may win as often as that, which loses nothing.
                    Err(error) => {
                        assert!(error.is_retryable(), "{error:?}");
                        tries = Tries::of(cluster, &context);
                    }
                }
            }
        }
    };
    tokio::join!(write_on(&world.cluster), write_on(&other));
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 50);
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 51);
    assert!(other.verify_audit().await.expect("reads").verified);
}

/// Guard: repeating must not become most of the load of a server in trouble, however many requests there are; writers who are
/// in each other's way are none of that.
#[tokio::test]
async fn what_a_server_is_the_reason_for_is_repeated_under_a_budget() {
    let world = World::new(1).await;
    let repeated = async |error: UnitError| {
        let error = &error;
        let requests = (0..400).map(|_| async { Tries::of(&world.cluster, &cx()).again(error).await });
        join_all(requests).await.into_iter().filter(|again| *again).count()
    };
    let granted = repeated(UnitError::Database(DbError::Busy)).await;
    assert!((200..400).contains(&granted), "{granted}: 200 saved, every fifth, and ten a second");
    assert_eq!(repeated(UnitError::Conflict).await, 400);
}
