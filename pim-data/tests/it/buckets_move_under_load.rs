//! A bucket moves to another shard while it is written: nothing is lost, nothing fails, whoever carries it out may die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::audit::AuditFilter;
use pim_data::backend::Engine;
use pim_data::cluster::{Access, CONTROL, Cluster};
use pim_data::consistency::Consistency;
use pim_data::relocation::{MoveError, MoveSettings, MoveStep};
use pim_data::repository::Page;
use pim_data::unit::{Tries, UnitError};

use super::ENGINE;
use super::world::{
    Account, CustomerNote, Folder, ShopResource, World, cx, keyed, read, schema, settings, trail_of, write,
};

use super::moving::{FILLED, at_step, eventually, filled, hasty_mover, home_of, mover, note, rows_on};
#[tokio::test]
async fn everything_of_a_bucket_moves_and_nothing_stays() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let before = world.history(account.id).await;
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let done = mover.run(&cx(), planned.id).await.expect("moves");

    assert_eq!(done.step, MoveStep::Done);
    assert_eq!(rows_on(&world, from, &account).await, [0; 7]);
    assert_eq!(rows_on(&world, to, &account).await, FILLED);
    assert_eq!(done.report.rows, FILLED.iter().sum::<u64>());
    assert_eq!((done.report.keys, done.report.keys_copied_fenced), (1, 0));
    let route = world.cluster.router().route(&account.id);
    assert_eq!((route.shard, route.epoch.0, route.map_version.0), (to, 2, 2));
    let after = world.history(account.id).await;
    let periods = |all: &[pim_data::repository::Period<Account>]| {
        all.iter().map(|it| (it.valid_from, it.valid_to, it.row.points)).collect::<Vec<_>>()
    };
    assert_eq!(periods(&before), periods(&after), "history is as it was, and tells nothing of the move");
    // The answer of an earlier request is found where the bucket is now.
    let mut again = world.cluster.begin(&keyed(&account.id.to_string(), "body"), account.id);
    let replayed = again.load::<Account>(&write(ShopResource::Account), account.id).await;
    assert!(matches!(replayed, Err(UnitError::Replay(_))), "{replayed:?}");
    world.change(account.id, |account| account.points = 9).await.expect("the target takes writes");
}

#[tokio::test]
async fn audit_records_stay_and_a_record_at_both_ends_ties_them() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    drop(at_step(&mover, &planned, MoveStep::Activated).await);
    // Whoever concludes it twice links it once.
    let lane = account.id.bucket().lane().get();
    mover.run(&cx(), planned.id).await.expect("ends");
    world.change(account.id, |account| account.points = 9).await.expect("commits");
    let trail = trail_of(&world.cluster, AuditFilter::Entity(account.id.uuid())).await;
    let shards: Vec<_> = trail.iter().map(|entry| entry.shard).collect();
    // Of the five units at the source one told an event and wrote no row.
    assert_eq!(shards, [[Some(from.0); 5].as_slice(), &[Some(to.0)]].concat());
    let verified = world.cluster.verify_audit().await.expect("reads");
    assert!(verified.verified && verified.agrees, "the history has moved, its records have not: {verified:?}");
    let links = trail_of(&world.cluster, AuditFilter::Entity(planned.id)).await;
    assert_eq!(links.len(), 2);
    assert!(links.iter().all(|entry| entry.lane == u64::from(lane)));
    let (given, taken) = (&links[0].body, &links[1].body);
    assert_eq!((given["action"].as_str(), taken["action"].as_str()), (Some("bucket_given"), Some("bucket_taken")));
    assert_eq!(given["after"]["checksum"], taken["after"]["checksum"]);
    let follows = taken["after"]["follows"].as_str().expect("text");
    assert!(follows.starts_with(&format!("{}:", links[0].seq)), "{follows} names the giver's last record");
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: the fence waits for the writer in flight and refuses those behind it, who wait for the map and commit by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_fails_while_its_bucket_moves_there_and_back() {
    let folder = Folder::new();
    let open = || Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema());
    let (cluster, other) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = Arc::new(World { cluster, policy: super::world::policy(), folder });
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = {
        let (world, stop, written) = (Arc::clone(&world), Arc::clone(&stop), Arc::clone(&written));
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let context = cx();
                let mut tries = Tries::of(&world.cluster, &context);
                loop {
                    match world.change(account.id, |account| account.points += 1).await {
                        Ok(_) => break,
                        Err(error) if tries.again(&error).await => {}
                        Err(error) => panic!("a write failed: {error:?}"),
                    }
                }
                note(&world, account.id).await.expect("a write failed");
                let seen = world
                    .cluster
                    .read::<Account>(&cx(), &read(ShopResource::Account), account.id, &Consistency::Strong)
                    .await;
                assert!(seen.expect("a read failed").is_some(), "a reader with an old map found nothing");
                written.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let goes_on = async || {
        let before = written.load(Ordering::SeqCst);
        eventually("the writer goes on", async || written.load(Ordering::SeqCst) > before + 5).await;
    };
    // The mover is another process as far as the databases can tell: the writer hears of the map by the fence alone.
    let (mover, _) = mover(&other);
    let mut planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    for turn in 0..6 {
        goes_on().await;
        let moved = mover.run(&cx(), planned.id).await.expect("moves");
        assert_eq!(moved.step, MoveStep::Done);
        if turn < 5 {
            planned = mover.plan_reverse(&cx(), moved.id).await.expect("plans the way back");
            assert_eq!(planned.reverses, Some(moved.id));
        }
    }
    goes_on().await;
    stop.store(true, Ordering::SeqCst);
    writing.await.expect("no write failed");
    let written = written.load(Ordering::SeqCst);
    let end =
        world.cluster.read::<Account>(&cx(), &read(ShopResource::Account), account.id, &Consistency::Strong).await;
    assert_eq!(end.expect("reads").expect("is there").points, 3 + i64::try_from(written).expect("few"));
    assert_eq!(world.cluster.router().route(&account.id).shard, from);
    assert_eq!(notes_of(&world, &account).await, 3 + written);
    assert_eq!(
        world.count(account.id, "SELECT n FROM key_head").await,
        8 + 2 * written,
        "no number is lost or used twice"
    );
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// How many notes an account has, page by page.
async fn notes_of(world: &World, account: &Account) -> u64 {
    let (mut page, mut count) = (Page { after: None, limit: 500 }, 0);
    loop {
        let permit = read(ShopResource::Note);
        let notes = world.cluster.list::<CustomerNote>(&cx(), &permit, account.id, page, &Consistency::Strong).await;
        let notes = notes.expect("reads");
        count += notes.len() as u64;
        let Some(last) = notes.last() else { return count };
        page.after = Some(last.id.uuid());
    }
}

/// Guard: each step may be broken off. Whoever takes the move up again, after opening anew, brings it to its end.
#[tokio::test]
async fn a_move_broken_off_behind_any_step_is_resumed() {
    for steps in 0..6 {
        let World { cluster, policy, folder } = World::new(2).await;
        let world = World { cluster, policy, folder };
        let account = filled(&world).await;
        let (from, to) = home_of(&world, &account);
        let (first, _) = mover(&world.cluster);
        let planned = first.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
        let mut run = first.take_up(planned.id).await.expect("is free");
        for _ in 0..steps {
            run.step(&cx()).await.expect("goes on");
        }
        let broken_off = run.record().step;
        drop((run, first));
        let World { cluster, policy, folder } = world;
        drop(cluster);
        let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
        let world = World { cluster, policy, folder };
        // Also while the map was about to change: whoever opens lifts what nobody carries on.
        world.change(account.id, |account| account.points = 7).await.expect("takes writes between the movers");
        let (second, _) = mover(&world.cluster);
        let done = second.run(&cx(), planned.id).await.expect("goes on");
        assert_eq!(done.step, MoveStep::Done, "broken off when {}", broken_off.text());
        assert_eq!(rows_on(&world, from, &account).await, [0; 7]);
        assert_eq!(rows_on(&world, to, &account).await[0], 1);
        let moved = world.change(account.id, |account| account.points += 1).await.expect("the target takes writes");
        assert_eq!(moved.n, 10);
        assert!(world.cluster.verify_audit().await.expect("reads").verified);
    }
}

/// Guard: a move that dies between fence and map is finished by the map, whoever opens the data directory next.
#[tokio::test]
async fn a_publication_broken_off_between_giver_and_taker_is_finished() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (first, _) = mover(&world.cluster);
    let planned = first.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    drop(at_step(&first, &planned, MoveStep::Activating).await);
    drop(first);
    // What a mover has done when it dies there: the map is kept, the source has given.
    let next = world.cluster.map().reassign([account.id.bucket()], to).expect("a successor");
    std::fs::write(world.folder.path().join("maps").join("2.toml"), next.to_toml()).expect("writes");
    let mut tx = world.powerful(from).await.begin().await.expect("begins");
    let given = format!(
        "UPDATE pim_bucket_owned SET state = 'moved', map_version = 2, moved_to = {to} WHERE bucket = {}",
        account.id.bucket()
    );
    tx.script(&given).await.expect("runs");
    tx.commit().await.expect("commits");
    let World { cluster, policy, folder } = world;
    drop(cluster);
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    let world = World { cluster, policy, folder };
    assert_eq!(world.cluster.map().version().0, 2);
    world.change(account.id, |account| account.points = 7).await.expect("the target takes writes");
    let (second, _) = mover(&world.cluster);
    assert_eq!(second.run(&cx(), planned.id).await.expect("goes on").step, MoveStep::Done);
    assert_eq!(rows_on(&world, from, &account).await, [0; 7]);
}

/// Guard: a map that somebody else has begun to publish comes before the move's own, which would take its place otherwise.
#[tokio::test]
async fn a_publication_that_another_began_is_finished_before_the_fence() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    drop(at_step(&mover, &planned, MoveStep::Copying).await);
    // What a publisher has done when it dies after the first shard: the map is kept, and the shard follows it.
    let begun = world.cluster.map().fenced().expect("a successor");
    std::fs::write(world.folder.path().join("maps").join("2.toml"), begun.to_toml()).expect("writes");
    let mut tx = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    let follow = "UPDATE pim_bucket_owned SET epoch = 2, map_version = 2 WHERE state = 'owned'";
    tx.script(follow).await.expect("runs");
    tx.commit().await.expect("commits");
    assert_eq!(mover.run(&cx(), planned.id).await.expect("moves").step, MoveStep::Done);
    let (route, kept) = (world.cluster.router().route(&account.id), world.folder.path().join("maps").join("2.toml"));
    assert_eq!((route.shard, route.epoch.0, route.map_version.0), (to, 3, 3));
    assert_eq!(std::fs::read_to_string(kept).expect("is kept"), begun.to_toml());
    world.change(account.id, |account| account.points = 9).await.expect("the target takes writes");
}

/// Guard: a map that gives the buckets away is published only as long as nobody could write at the source.
#[tokio::test]
async fn a_fence_that_somebody_lifted_sends_the_move_back_to_copying() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Activating).await;
    world.raw(account.id, "UPDATE pim_bucket_owned SET state = 'owned' WHERE state = 'draining'").await.expect("runs");
    world.change(account.id, |account| account.points = 7).await.expect("the source takes a write");
    assert_eq!(run.step(&cx()).await.expect("goes back"), MoveStep::Planned);
    drop(run);
    mover.run(&cx(), planned.id).await.expect("moves");
    let seen =
        world.cluster.read::<Account>(&cx(), &read(ShopResource::Account), account.id, &Consistency::Strong).await;
    assert_eq!(seen.expect("reads").expect("is there").points, 7);
}

/// Guard: a bucket does not move while an event of it is parked; nobody waits for that.
#[tokio::test]
async fn a_parked_key_keeps_its_bucket_where_it_is() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, tap) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    tap.parked.store(true, Ordering::SeqCst);
    assert!(matches!(mover.run(&cx(), planned.id).await, Err(MoveError::Parked)));
    world.change(account.id, |account| account.points = 7).await.expect("was never fenced");
    assert_eq!(world.cluster.router().route(&account.id).shard, from);
    tap.parked.store(false, Ordering::SeqCst);
    mover.run(&cx(), planned.id).await.expect("moves now");
    assert_eq!(world.cluster.router().route(&account.id).shard, to);
}

/// Guard: the map changes only when the outbox has drained, and a fence in vain is lifted.
#[tokio::test]
async fn an_outbox_that_does_not_drain_lifts_the_fence() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, tap) = hasty_mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    tap.waiting.store(true, Ordering::SeqCst);
    assert!(matches!(mover.run(&cx(), planned.id).await, Err(MoveError::NotDrained)));
    assert!(tap.asked.load(Ordering::SeqCst) > 1);
    assert!(!world.folder.path().join("maps/2.toml").exists(), "a map that came to nothing is not kept");
    world.change(account.id, |account| account.points = 7).await.expect("the source takes writes again");
    assert_eq!(world.cluster.router().route(&account.id).shard, from);
}

/// Guard: the comparison under the fence finds a row that the target does not have, whoever removed it.
#[tokio::test]
async fn ends_that_differ_do_not_change_hands() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Fenced).await;
    let mut tx = world.powerful(to).await.begin().await.expect("begins");
    tx.script("DELETE FROM note_row WHERE id IN (SELECT id FROM note_row LIMIT 1)").await.expect("runs");
    tx.commit().await.expect("commits");
    assert!(matches!(run.step(&cx()).await, Err(MoveError::Differs { .. })));
    drop(run);
    assert_eq!(world.cluster.router().route(&account.id).shard, from);
    world.change(account.id, |account| account.points = 7).await.expect("the source takes writes again");
    mover.run(&cx(), planned.id).await.expect("moves when it is whole");
    assert_eq!(rows_on(&world, to, &account).await[2], 3);
}

/// Guard: an end is cleared only of what it does not own.
#[tokio::test]
async fn a_move_given_up_leaves_the_source_as_it_was() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    drop(at_step(&mover, &planned, MoveStep::Fenced).await);
    assert_eq!(mover.cancel(planned.id).await.expect("gives up").step, MoveStep::Cancelled);
    assert_eq!(rows_on(&world, from, &account).await, FILLED);
    assert_eq!(rows_on(&world, to, &account).await, [0; 7]);
    world.change(account.id, |account| account.points = 7).await.expect("takes writes");
    let again = mover.plan(&cx(), [account.id.bucket()], to).await.expect("may be planned again");
    drop(at_step(&mover, &again, MoveStep::Activated).await);
    assert!(matches!(mover.cancel(again.id).await, Err(MoveError::Step { .. })), "the map has changed");
}

/// Guard: giving up clears only what the target was to receive, and before the first step that is nothing.
#[tokio::test]
async fn a_way_back_that_has_not_begun_may_be_given_up() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    mover.run(&cx(), planned.id).await.expect("moves");
    let back = mover.plan_reverse(&cx(), planned.id).await.expect("plans");
    assert_eq!(mover.cancel(back.id).await.expect("gives up").step, MoveStep::Cancelled);
    assert_eq!(rows_on(&world, to, &account).await, FILLED);
    let again = mover.plan_reverse(&cx(), planned.id).await.expect("may be planned again");
    drop(at_step(&mover, &again, MoveStep::Copying).await);
    assert_eq!(mover.cancel(again.id).await.expect("gives up").step, MoveStep::Cancelled);
    world.change(account.id, |account| account.points = 7).await.expect("takes writes");
}

/// Guard: a bucket is looked for in other moves where the new one is written down, not before.
#[tokio::test]
async fn of_two_that_plan_a_bucket_at_once_one_is_refused() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    // Nothing can be written down before both have looked.
    let mut tx = world.cluster.database(CONTROL).expect("the control database").begin().await.expect("begins");
    if ENGINE == Engine::Postgres {
        tx.script("LOCK TABLE pim_move IN SHARE ROW EXCLUSIVE MODE").await.expect("locks");
    }
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tx.rollback().await.expect("ends");
    };
    let context = cx();
    let plan = || mover.plan(&context, [account.id.bucket()], to);
    let (first, second, ()) = tokio::join!(plan(), plan(), release);
    let both = [first, second];
    let refused = both.iter().filter(|planned| matches!(planned, Err(MoveError::Taken { .. }))).count();
    assert_eq!((refused, mover.unfinished().await.expect("reads").len()), (1, 1), "{both:?}");
}

/// Guard: a map gives a bucket away as copied only to whom it was copied.
#[tokio::test]
async fn a_map_for_somebody_else_is_not_the_moves_own() {
    let world = World::new(3).await;
    let account = filled(&world).await;
    let bucket = account.id.bucket();
    let from = world.cluster.router().route(&account.id).shard;
    let (to, other) = (ShardId((from.0 + 1) % 3), ShardId((from.0 + 2) % 3));
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [bucket], to).await.expect("plans");
    drop(at_step(&mover, &planned, MoveStep::Activating).await);
    // Somebody has begun to publish another map of that version.
    let begun = world.cluster.map().reassign([bucket], other).expect("a successor");
    std::fs::write(world.folder.path().join("maps").join("2.toml"), begun.to_toml()).expect("writes");
    let mut tx = world.powerful(other).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET map_version = 2 WHERE state = 'owned'").await.expect("runs");
    tx.commit().await.expect("commits");
    assert_eq!(mover.run(&cx(), planned.id).await.expect("moves").step, MoveStep::Done);
    assert_eq!(world.cluster.router().route(&account.id).shard, to);
    assert_eq!(rows_on(&world, to, &account).await, FILLED);
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused_by_name() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let bucket = account.id.bucket();
    let (mover, _) = mover(&world.cluster);
    assert!(matches!(mover.plan(&cx(), [], to).await, Err(MoveError::Buckets { .. })));
    assert!(matches!(mover.plan(&cx(), [bucket], ShardId(9)).await, Err(MoveError::Target(ShardId(9)))));
    assert!(matches!(mover.plan(&cx(), [bucket], from).await, Err(MoveError::Elsewhere { .. })));
    let planned = mover.plan(&cx(), [bucket], to).await.expect("plans");
    assert!(matches!(mover.plan(&cx(), [bucket], to).await, Err(MoveError::Taken { .. })));
    let run = mover.take_up(planned.id).await.expect("is free");
    assert!(matches!(mover.run(&cx(), planned.id).await, Err(MoveError::Busy)));
    drop(run);
    assert!(matches!(mover.find(account.id.uuid()).await, Err(MoveError::Unknown(_))));
    assert_eq!(mover.unfinished().await.expect("reads").len(), 1);
}

/// Guard: a write that meets the fence waits for the map, also when the outbox takes its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_fence_that_lasts() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, tap) = mover(&world.cluster);
    let patient = MoveSettings { pause_max: Duration::from_secs(10), ..MoveSettings::default() };
    let mover = mover.with_settings(patient);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Fenced).await;
    tap.waiting.store(true, Ordering::SeqCst);
    let write = world.change(account.id, |account| account.points = 7);
    let drain = async {
        let context = cx();
        let (drained, _) = tokio::join!(run.step(&context), async {
            // Longer than a stale route is given, shorter than a request.
            tokio::time::sleep(Duration::from_millis(1200)).await;
            tap.waiting.store(false, Ordering::SeqCst);
        });
        drained.expect("drains");
        run.step(&cx()).await.expect("publishes");
    };
    let (written, ()) = tokio::join!(write, drain);
    let written = written.expect("a write failed");
    assert!(written.fenced > 0, "it met the fence");
    assert_eq!(world.cluster.router().route(&account.id).shard, to);
}

/// Guard: rows are removed in a transaction that finds the shard without them as its own.
#[tokio::test]
async fn a_source_that_owns_the_bucket_again_is_not_cleared() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Activated).await;
    let mut tx = world.powerful(from).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET state = 'owned'").await.expect("runs");
    tx.commit().await.expect("commits");
    assert!(matches!(run.step(&cx()).await, Err(MoveError::Shard { .. })));
    assert_eq!(rows_on(&world, from, &account).await, FILLED);
}
