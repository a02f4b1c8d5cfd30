//! Units that wait while others are written share a transaction, and nobody fares worse for it than alone.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::Write;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, ServerSettings};
use pim_data::consistency::Consistency::Strong;
use pim_data::repository::Page;
use pim_data::unit::{Unit, UnitError};
use serde_json::json;
use uuid::Uuid;

use super::moving::note;
use super::queueing::{
    Queue, change, hold, keys_waited_for, number, one_place, places, points, soon, transactions, until, waiting,
};
use super::world::{
    Account, Customer, CustomerNote, DepotRow, ShopAction, ShopResource, ShopRole, World, cx, cx_of, keyed, read, tell,
    write,
};
use crate::wire::{Cut, Trip, Wire};

#[tokio::test]
async fn those_who_wait_share_a_transaction_and_each_is_told_its_own() {
    let queue = Queue::new().await;
    let (accounts, onlooker, commits) = (queue.accounts.clone(), queue.onlooker.clone(), queue.world.cluster.commits());
    let before = *commits.borrow();
    let others = queue.three_more().await;
    let (world, ends) = queue.go(others).await;
    for (end, key) in ends.into_iter().zip(&accounts[1..4]) {
        let committed = end.expect("commits");
        assert_eq!(committed.n, 2);
        assert_eq!(points(&world, *key).await, 1);
    }
    assert_eq!(transactions(&onlooker, &accounts[1..4]).await, 1);
    assert_eq!(transactions(&onlooker, &accounts[..4]).await, 2);
    assert_eq!(*commits.borrow(), before + 4);
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

#[tokio::test]
async fn those_who_are_ready_at_once_share_the_places_that_are_free() {
    for writers_max in [1, 2, 4] {
        let world = places(writers_max, 6).await;
        let mut units: Vec<(Id<Customer>, Unit)> = Vec::new();
        while units.len() < 4 {
            let id = world.register().await.id;
            // Of one lane they would wait for each other.
            if units.iter().all(|(other, _)| other.bucket().lane() != id.bucket().lane()) {
                units.push((id, change(&world, &cx(), id).await));
            }
        }
        let (accounts, units): (Vec<_>, Vec<_>) = units.into_iter().unzip();
        let commits: Vec<_> = units.into_iter().map(|unit| tokio::spawn(unit.commit())).collect();
        for commit in commits {
            commit.await.expect("runs").expect("commits");
        }
        let onlooker = world.all_powerful(accounts[0]).await;
        assert_eq!(transactions(&onlooker, &accounts).await, writers_max as u64);
    }
}

/// A unit that adds a point, by a clerk of the account's facility.
async fn change_by_clerk(world: &World, number: usize, account: &Account) -> Unit {
    let actor = Actor::new(format!("clerk-{number}").parse().expect("a subject"), ShopRole::Clerk);
    let actor = actor.with_facilities(&account.facility.map_or(Vec::new(), |it| vec![it])).expect("few");
    let permit = world.policy.authorize::<Write>(&actor, ShopAction::Change, ShopResource::Account).expect("may");
    let mut unit = world.cluster.begin(&cx_of(actor), account.id);
    let mut account = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is seen");
    account.points += 1;
    unit.save(&permit, &account).expect("saves");
    tell(&mut unit, "changed");
    unit
}

/// Guard: a shared call writes rows for one scope after the other, and each record says of whom it is.
#[tokio::test]
async fn each_goes_as_the_user_that_it_is_of_and_reaches_what_that_one_sees() {
    let world = one_place().await;
    let mut accounts = Vec::new();
    for number in 0..3 {
        let mut account = Account::new(Id::random());
        account.facility = Some(Uuid::from_u128(number));
        accounts.push(world.register_as(account).await);
    }
    let mut queue = Queue::of(world).await;
    let mut others = vec![waiting(queue.change(1).await).await];
    for (number, account) in accounts.iter().enumerate() {
        others.push(waiting(change_by_clerk(&queue.world, number, account).await).await);
    }
    queue.accounts.truncate(2);
    queue.accounts.extend(accounts.iter().map(|account| account.id));
    let (changed, onlooker) = (queue.accounts[1..].to_vec(), queue.onlooker.clone());
    let (world, ends) = queue.go(others).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(transactions(&onlooker, &changed).await, 1, "nobody was refused");
    for (user, key) in ["u-1", "clerk-0", "clerk-1", "clerk-2"].into_iter().zip(&changed) {
        let told = format!("SELECT count(*) FROM audit WHERE home_key = '{}' AND user_id = '{user}'", key.uuid());
        // Whoever registered it has a record too.
        assert_eq!(number(&onlooker, &told).await, if user == "u-1" { 2 } else { 1 }, "{user}");
    }
    // Its facility changes after the clerk has seen it: somebody else's wider view must not carry the write.
    let queue = Queue::of(world).await;
    let out_of_reach = waiting(change_by_clerk(&queue.world, 0, &accounts[0]).await).await;
    let taken = format!("UPDATE account_row SET facility_id = NULL WHERE id = '{}'", accounts[0].id.uuid());
    queue.world.raw(accounts[0].id, &taken).await.expect("runs");
    let others = [waiting(queue.change(1).await).await, out_of_reach, waiting(queue.change(2).await).await];
    let (world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(_), Ok(_)]), "{ends:?}");
    assert_eq!(points(&world, accounts[0].id).await, 1);
}

/// Guard: the id is a value before rows are looked at. Otherwise the policy is asked of every row of the home key first.
#[tokio::test]
async fn whoever_is_changed_is_found_before_anybody_is_asked_who_sees_it() {
    let world = one_place().await;
    let mut notes = Vec::new();
    for _ in 0..2 {
        let account = world.register().await.id;
        for _ in 0..20 {
            note(&world, account).await.expect("commits");
        }
        // The last of them: a row is not looked for beyond where it was found.
        let page = Page { after: None, limit: 20 };
        let found = world.cluster.list::<CustomerNote>(&cx(), &read(ShopResource::Note), account, page, &Strong).await;
        notes.extend(found.expect("lists").pop());
    }
    let count = "CREATE SEQUENCE asked; GRANT USAGE ON asked TO pim_app; \
        CREATE OR REPLACE FUNCTION public.pim_sees(home uuid, facility uuid) RETURNS boolean LANGUAGE plpgsql COST 1000 \
        AS 'BEGIN RETURN nextval(''asked'') > 0; END'; \
        CREATE FUNCTION tell_scope() RETURNS trigger LANGUAGE plpgsql \
        AS 'BEGIN NEW.text = current_setting(''app.scope''); RETURN NEW; END'; \
        CREATE TRIGGER tell_scope BEFORE INSERT ON fact FOR EACH ROW EXECUTE FUNCTION tell_scope()";
    world.raw(notes[0].account, count).await.expect("runs");
    let queue = Queue::of(world).await;
    let mut others = Vec::new();
    for kept in &notes {
        let actor = Actor::new("c-1".parse().expect("a subject"), ShopRole::Customer);
        let actor = actor.with_own_record(kept.account.uuid());
        let permit =
            queue.world.policy.authorize::<Write>(&actor, ShopAction::Change, ShopResource::Note).expect("may");
        let mut unit = queue.world.cluster.begin(&cx_of(actor), kept.account);
        let note = unit.load::<CustomerNote>(&permit, kept.id).await.expect("loads").expect("is seen");
        unit.save(&permit, &note).expect("saves");
        tell(&mut unit, "noted");
        others.push(waiting(unit).await);
    }
    let onlooker = queue.onlooker.clone();
    let before = number(&onlooker, "SELECT last_value FROM asked").await;
    let (_world, ends) = queue.go(others).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let asked = number(&onlooker, "SELECT last_value FROM asked").await - before;
    assert!(asked <= 12, "{asked} rows were asked about");
    // And each part of a unit sees what the unit sees.
    for note in &notes {
        let told = format!("SELECT count(*) FROM fact WHERE key = '{0}' AND text = 'own {0}'", note.account.uuid());
        assert_eq!(number(&onlooker, &told).await, 1);
    }
}

#[tokio::test]
async fn one_that_is_refused_costs_the_others_nothing() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let others = queue.three_more().await;
    let stale = format!("UPDATE account_row SET version = version + 1 WHERE id = '{}'", accounts[2].uuid());
    queue.world.raw(accounts[2], &stale).await.expect("runs");
    let (world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Stale { entity: "account" }), Ok(_)]), "{ends:?}");
    for (key, wanted) in accounts.iter().zip([1, 1, 0, 1]) {
        assert_eq!(points(&world, *key).await, wanted);
    }
}

/// Guard: `pim_enter_all` compares what each has read. Nothing else does where the row itself has not changed.
#[tokio::test]
async fn whoever_has_read_an_older_number_is_told_and_nobody_else() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let others = queue.three_more().await;
    let risen = format!("UPDATE key_head SET n = n + 1 WHERE key = '{}'", accounts[2].uuid());
    queue.world.raw(accounts[2], &risen).await.expect("runs");
    let (world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Conflict), Ok(_)]), "{ends:?}");
    assert_eq!(points(&world, accounts[2]).await, 0);
}

/// Guard: `pim_enter_all` looks submissions up. Whoever gives no answer meets no record of another key either.
#[tokio::test]
async fn what_was_submitted_before_is_not_done_again_in_company() {
    let world = one_place().await;
    let id = world.register().await.id;
    let request = || keyed("once", "{}");
    change(&world, &request(), id).await.commit().await.expect("commits");
    let queue = Queue::of(world).await;
    let other = Account::new(Id::random());
    let mut again = queue.world.cluster.begin(&request(), other.id);
    again.save(&write(ShopResource::Account), &other).expect("saves");
    tell(&mut again, "opened");
    let others = [waiting(queue.change(1).await).await, waiting(again).await, waiting(queue.change(2).await).await];
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Replay(_)), Ok(_)]), "{ends:?}");
}

/// Guard: `Place::refuse` halves how many go together, and `Place::went_well` lets them be more again.
#[tokio::test]
async fn after_a_refusal_fewer_go_together_until_it_goes_well_again() {
    let queue = Queue::new().await;
    let earlier = queue.accounts[3..].to_vec();
    let others = queue.three_more().await;
    let stale = format!("UPDATE account_row SET version = version + 1 WHERE id = '{}'", queue.accounts[2].uuid());
    queue.world.raw(queue.accounts[2], &stale).await.expect("runs");
    let (mut world, _ends) = queue.go(others).await;
    // Six wait: four of them go together, then two; and both calls went well.
    for calls in [2, 1] {
        let queue = Queue::of(world).await;
        let changed: Vec<_> = queue.accounts[1..].iter().chain(&earlier).copied().collect();
        let mut others = Vec::new();
        for key in &changed {
            others.push(waiting(change(&queue.world, &cx(), *key).await).await);
        }
        let onlooker = queue.onlooker.clone();
        let ends;
        (world, ends) = queue.go(others).await;
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
        assert_eq!(transactions(&onlooker, &changed).await, calls);
    }
}

/// Guard: `pim_enter_all` tries. Whoever waited in a shared transaction would keep all of it waiting.
#[tokio::test]
async fn whoever_must_wait_keeps_nobody_else_waiting() {
    let queue = Queue::of(places(2, 6).await).await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let other_place = hold(&queue.world, accounts[4]).await;
    let mut second = waiting(queue.change(4).await).await;
    until(&mut second, async || keys_waited_for(&onlooker).await == 2).await;
    let also_held = hold(&queue.world, accounts[1]).await;
    let mut held = waiting(queue.change(1).await).await;
    let others = [waiting(queue.change(2).await).await, waiting(queue.change(3).await).await];
    let (world, ends) = {
        other_place.rollback().await.expect("rolls back");
        second.await.expect("commits");
        queue.go(others).await
    };
    assert!(matches!(&ends[..], [Ok(_), Ok(_)]), "{ends:?}");
    until(&mut held, async || keys_waited_for(&onlooker).await == 1).await;
    assert_eq!(points(&world, accounts[1]).await, 0);
    also_held.rollback().await.expect("rolls back");
    assert_eq!(held.await.expect("commits").n, 2);
}

/// Guard: `State::next` takes one unit of a key. The second cannot win, and would take everybody with it.
#[tokio::test]
async fn no_two_units_of_one_key_go_together() {
    let queue = Queue::new().await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let others = queue.changes([1, 1, 2]).await;
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Conflict), Ok(_)]), "{ends:?}");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 1);
}

/// Guard: whoever waits behind its key's writer is likely to have been overtaken, and would be refused with all others.
#[tokio::test]
async fn whoever_comes_behind_its_keys_writer_goes_alone() {
    let queue = Queue::new().await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let others = queue.changes([0, 1, 2]).await;
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Err(UnitError::Conflict), Ok(_), Ok(_)]), "{ends:?}");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 1);
}

/// Guard: whoever waits behind another unit of its key is marked when that one goes, and would be refused with all others.
#[tokio::test]
async fn whoever_waits_behind_a_unit_of_its_key_goes_alone() {
    let queue = Queue::new().await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    // A unit of another entity goes by itself, so that the one behind it is left for the next call.
    let mut others = vec![waiting(queue.notes(1, 1)).await];
    others.extend(queue.changes(1..=3).await);
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Conflict), Ok(_), Ok(_)]), "{ends:?}");
    assert_eq!(transactions(&onlooker, &accounts[2..=3]).await, 1);
}

#[tokio::test]
async fn an_answer_is_given_again_among_others() {
    let world = one_place().await;
    let id = world.register().await.id;
    let request = || keyed("once", "{}");
    let late = change(&world, &request(), id).await;
    change(&world, &request(), id).await.commit().await.expect("commits");
    let queue = Queue::of(world).await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let others = [waiting(queue.change(1).await).await, waiting(late).await, waiting(queue.change(2).await).await];
    let (_world, ends) = queue.go(others).await;
    let [Ok(_), Err(UnitError::Replay(answer)), Ok(_)] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!(answer.body, json!({"points": 1}));
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 2, "each went alone");
}

#[tokio::test]
async fn units_of_two_entities_and_of_several_rows_find_their_way() {
    let queue = Queue::new().await;
    let (accounts, onlooker) = (queue.accounts.clone(), queue.onlooker.clone());
    let several = queue.notes(3, 2).commit().await;
    assert_eq!(several.expect("does not wait for a place").n, 2);
    let others = [waiting(queue.change(1).await).await, waiting(queue.notes(2, 1)).await];
    let (_world, ends) = queue.go(others).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(transactions(&onlooker, &accounts[1..=2]).await, 2);
}

#[tokio::test]
async fn a_unit_whose_caller_has_left_is_not_sent() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let stays = waiting(queue.change(1).await).await;
    drop(waiting(queue.change(2).await).await);
    let other = waiting(queue.change(3).await).await;
    let (world, ends) = queue.go([stays, other]).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(points(&world, accounts[2]).await, 0);
}

#[tokio::test]
async fn whoever_leaves_before_others_came_along_leaves_nothing_behind() {
    let world = one_place().await;
    let (id, other) = (world.register().await.id, world.register().await.id);
    let mut commits = world.cluster.commits();
    // Somebody else is on its way, who might come along.
    let other = change(&world, &cx(), other).await;
    drop(waiting(change(&world, &cx(), id).await).await);
    drop((other, world));
    // A seat in the queue would keep the cluster, and the cluster its queue.
    let gone = async { while commits.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the cluster is gone");
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_told_and_nothing_is_sent() {
    let queue = Queue::new().await;
    let accounts = queue.accounts.clone();
    let hasty = waiting(change(&queue.world, &soon(), accounts[1]).await).await;
    let other = waiting(queue.change(2).await).await;
    let end = hasty.await;
    assert!(matches!(end, Err(UnitError::Deadline)), "{end:?}");
    let (world, ends) = queue.go([other]).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(points(&world, accounts[1]).await, 0);
}

#[tokio::test]
async fn of_a_shared_commit_that_was_not_answered_each_finds_out_its_own() {
    for (cut, written) in [(Cut::Unseen, 0), (Cut::Unanswered, 1)] {
        let wire = Wire::before(&crate::server::dsn(None, "postgres")).await;
        let world = World::with(1, |mut settings| {
            let servers = settings.servers.as_mut().expect("servers");
            servers.secrets = wire.secrets(Arc::clone(&servers.secrets), "shard-0");
            servers.settings.writers_max = 1;
            settings
        })
        .await;
        // Everything that is sent below is prepared: a cut is of what runs.
        let queue = Queue::of(world).await;
        let warm = [waiting(queue.change(1).await).await, waiting(queue.change(2).await).await];
        let (world, _ends) = queue.go(warm).await;
        let queue = Queue::of(world).await;
        let accounts = queue.accounts.clone();
        let recorded = waiting(change(&queue.world, &keyed("k", "{}"), accounts[1]).await).await;
        let silent = waiting(queue.change(2).await).await;
        wire.cut_next(cut, |trip| *trip == Trip::Run);
        let commits = queue.world.cluster.commits();
        let before = *commits.borrow();
        let (world, ends) = queue.go([recorded, silent]).await;
        assert!(wire.has_cut(), "{cut:?}");
        let [recorded, silent] = &ends[..] else { panic!("{ends:?}") };
        assert_eq!(recorded.is_ok(), written == 1, "{cut:?}: {recorded:?}");
        assert_eq!(*commits.borrow() - before, 1 + written, "whoever relays is told");
        assert!(matches!(silent, Err(UnitError::Unknown(_))), "{cut:?}: {silent:?}");
        for key in &accounts[1..=2] {
            assert_eq!(points(&world, *key).await, written, "{cut:?}");
        }
    }
}

#[tokio::test]
async fn a_fence_refuses_its_own_and_nobody_else() {
    // The fence is that of one account alone.
    let queue = loop {
        let queue = Queue::new().await;
        let buckets: BTreeSet<_> = queue.accounts.iter().map(|id| id.bucket()).collect();
        if buckets.len() == queue.accounts.len() {
            break queue;
        }
    };
    let accounts = queue.accounts.clone();
    let others = queue.three_more().await;
    let bucket = accounts[2].bucket().get();
    let fenced = format!("UPDATE pim_bucket_owned SET epoch = 2, map_version = 2 WHERE bucket = {bucket}");
    queue.world.raw(accounts[2], &fenced).await.expect("runs");
    let (_world, ends) = queue.go(others).await;
    assert!(matches!(&ends[..], [Ok(_), Err(UnitError::Fence { .. }), Ok(_)]), "{ends:?}");
}

/// Guard: `go_together` asks again who is still there once it has a connection. What nobody waits for must not happen later.
#[tokio::test]
async fn whoever_leaves_while_there_is_no_connection_is_not_sent() {
    let world = places(1, 1).await;
    let mut accounts = Vec::new();
    for _ in 0..4 {
        accounts.push(world.register().await.id);
    }
    let hasty = change(&world, &soon(), accounts[1]).await;
    let (left, stays) = (change(&world, &cx(), accounts[2]).await, change(&world, &cx(), accounts[3]).await);
    let (onlooker, held) = (world.all_powerful(accounts[0]).await, hold(&world, accounts[0]).await);
    let mut first = waiting(change(&world, &cx(), accounts[0]).await).await;
    until(&mut first, async || keys_waited_for(&onlooker).await == 1).await;
    let [hasty, mut left, mut stays] = [waiting(hasty).await, waiting(left).await, waiting(stays).await];
    // Stands before them in the queue for the one connection.
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    let mut reader = Box::pin(db.read());
    tokio::select! {
        biased;
        _ = &mut reader => panic!("there is one connection"),
        () = ready(()) => {}
    }
    held.rollback().await.expect("rolls back");
    first.await.expect("commits");
    let reader = reader.await.expect("reads");
    let end = hasty.await;
    assert!(matches!(end, Err(UnitError::Deadline)), "{end:?}");
    for commit in [&mut left, &mut stays] {
        tokio::select! {
            biased;
            end = commit => panic!("there is no connection: {end:?}"),
            () = ready(()) => {}
        }
    }
    drop(left);
    drop(reader);
    stays.await.expect("commits");
    for (key, wanted) in accounts.iter().zip([1, 0, 0, 1]) {
        assert_eq!(points(&world, *key).await, wanted);
    }
}

/// Guard: the `lock_timeout` of `pim_enter_all`. A shared transaction that waits for a row holds others; whoever waits for one of these may
/// hold what it needs, and must not be the deadlock's victim.
#[tokio::test]
async fn a_shared_transaction_gives_way_to_whoever_is_alone() {
    let world = one_place().await;
    let depot = |code: &str| DepotRow { id: Id::random(), version: 0, code: code.to_owned() };
    let mut depots = [depot("east"), depot("west"), depot("north")];
    depots.sort_by_key(|depot| depot.id.bucket().lane().get());
    let settings = ServerSettings { transaction_max: Duration::from_secs(30), ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(world.folder.path()));
    let control = Db::connect("control-super", secrets, settings).await.expect("connects");
    let save = |depot: &DepotRow| {
        let mut unit = world.cluster.begin_control(&cx(), depot.id);
        unit.save(&write(ShopResource::Depot), depot).expect("saves");
        tell(&mut unit, "opened");
        unit
    };
    let mut held = control.begin().await.expect("begins");
    let lock = format!("SELECT pg_advisory_xact_lock(uuid_hash_extended('{}', 7461))", depots[2].id.uuid());
    held.script(&lock).await.expect("locks");
    let mut first = waiting(save(&depots[2])).await;
    until(&mut first, async || keys_waited_for(&control).await == 1).await;
    let others = [waiting(save(&depots[0])).await, waiting(save(&depots[1])).await].map(tokio::spawn);

    let mut alone = control.begin().await.expect("begins");
    let taken = format!(
        "INSERT INTO depot_row (id, home_key, bucket, version, created_at, updated_at, code) \
         SELECT id, id, pim_bucket_of(id), 1, 1, 1, '{}' FROM (SELECT '{}'::uuid) AS new(id)",
        depots[1].code,
        Id::<super::world::Depot>::random().uuid(),
    );
    alone.script(&taken).await.expect("inserts");
    held.rollback().await.expect("rolls back");
    first.await.expect("commits");
    // Longer than a deadlock is looked for: whoever closes the circle later is its victim.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let key = format!("SELECT pg_advisory_xact_lock(uuid_hash_extended('{}', 7461))", depots[0].id.uuid());
    alone.script(&key).await.expect("is nobody's victim");
    alone.rollback().await.expect("rolls back");
    for other in others {
        other.await.expect("runs").expect("commits");
    }
}
