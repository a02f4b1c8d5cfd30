//! A page from all shards shows each row or record once, says who did not answer, and is refused beyond its bounds.

use std::collections::BTreeSet;
use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Read};
use pim_core::shard::ShardId;
use pim_data::audit::{AuditEntry, AuditFilter, AuditPlace};
use pim_data::consistency::Consistency;
use pim_data::fan_out::{FanOut, FanOutError, Gathered, Next};
use pim_data::repository::{Page, ReadError};
use uuid::Uuid;

use super::world::{Account, DepotRow, ShopAction, ShopResource, ShopRole, World, cx, read, tell, trail_of, write};

const CENSUS: FanOut = FanOut::because("census").time_max(Duration::from_secs(60));

async fn page(world: &World, after: Option<Uuid>, limit: u32) -> Gathered<Account> {
    let permit = read(ShopResource::Account);
    let page = Page { after, limit };
    let gathered = world.cluster.list_across(&cx(), &permit, CENSUS, page, &Consistency::Strong).await;
    gathered.expect("few shards")
}

/// Goes through all pages while somebody writes between two of them, before and behind the cursor; what was shown, each once and
/// in order.
async fn shown_once<R, P: Copy + Ord>(
    world: &World,
    limit: u32,
    ask: impl AsyncFn(Option<P>) -> Gathered<R, P>,
    place_of: impl Fn(&R) -> P,
) -> BTreeSet<P> {
    let (mut after, mut seen, mut pages) = (None, Vec::new(), 0);
    loop {
        let gathered = ask(after).await;
        assert!(gathered.failed.is_empty() && gathered.rows.len() <= limit as usize);
        seen.extend(gathered.rows.iter().map(&place_of));
        pages += 1;
        assert!(pages < 500, "a reader arrives at the end");
        world.register().await;
        let Next::After(place) = gathered.next else { break };
        after = Some(place);
    }
    assert!(seen.is_sorted());
    let distinct: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len(), "nothing twice");
    distinct
}

#[tokio::test]
async fn rows_that_stay_are_shown_once_whatever_is_inserted() {
    let world = World::new(4).await;
    let mut there = BTreeSet::new();
    for _ in 0..40 {
        there.insert(world.register().await.id.uuid());
    }
    for limit in [1, 3, 7, 500] {
        let place_of = |row: &Account| row.id.uuid();
        let distinct = shown_once(&world, limit, async |after| page(&world, after, limit).await, place_of).await;
        assert!(there.is_subset(&distinct), "no row passed over at {limit} a page");
    }
}

#[tokio::test]
async fn a_full_shard_holds_back_what_others_show_beyond_its_end() {
    let world = World::new(2).await;
    let mut low: Vec<Id<_>> = (0..200).map(|_| Id::random()).collect();
    low.sort_unstable_by_key(|id| id.uuid());
    // The lower half goes to one shard as far as it lives there, one high row to the other.
    let shard_of = |id: &Id<_>| world.cluster.router().route(id).shard;
    let many: Vec<_> = low.iter().filter(|id| shard_of(id) == ShardId(0)).take(6).copied().collect();
    let far = *low.iter().rev().find(|id| shard_of(id) == ShardId(1)).expect("one of a hundred");
    assert!(far.uuid() > many[5].uuid());
    for id in many.iter().chain([&far]) {
        world.register_as(Account::new(*id)).await;
    }
    let first = page(&world, None, 3).await;
    assert_eq!(first.rows.iter().map(|row| row.id).collect::<Vec<_>>(), many[..3]);
    assert_eq!(first.next, Next::After(many[2].uuid()));
    let last = page(&world, Some(many[5].uuid()), 3).await;
    assert_eq!((last.rows.len(), last.next), (1, Next::End));
}

#[tokio::test]
async fn a_shard_that_fails_is_named_and_the_page_is_asked_again() {
    let world = World::new(3).await;
    for _ in 0..30 {
        world.register().await;
    }
    let complete = page(&world, None, 500).await;
    let broken = ShardId(1);
    let db = world.powerful(broken).await;
    let rename = async |sql: &str| {
        let mut tx = db.begin().await.expect("begins");
        tx.script(sql).await.expect("renames");
        tx.commit().await.expect("commits");
    };
    rename("ALTER TABLE account_row RENAME TO account_away").await;
    let partial = page(&world, None, 500).await;
    assert_eq!(partial.failed.iter().map(|failure| failure.shard).collect::<Vec<_>>(), [broken]);
    assert!(partial.failed[0].to_string().contains("census"), "{}", partial.failed[0]);
    assert_eq!(partial.next, Next::Again, "what the shard has must not be passed over");
    assert!(!partial.rows.is_empty() && partial.rows.len() < complete.rows.len());
    rename("ALTER TABLE account_away RENAME TO account_row").await;
    assert_eq!(page(&world, None, 500).await.rows, complete.rows);
}

#[tokio::test]
async fn it_asks_no_more_shards_than_it_said_and_takes_no_longer() {
    let world = World::new(3).await;
    world.register().await;
    let permit = read(ShopResource::Account);
    let list = async |fan_out| {
        let page = Page { after: None, limit: 10 };
        world.cluster.list_across::<Account>(&cx(), &permit, fan_out, page, &Consistency::Strong).await
    };
    let refused = list(CENSUS.shards_max(2)).await.expect_err("three are too many");
    let FanOutError::TooManyShards { reason, shards, shards_max } = refused else { panic!("{refused}") };
    assert_eq!((reason, shards, shards_max), ("census", 3, 2));
    let late = list(CENSUS.time_max(Duration::ZERO)).await.expect("begins");
    assert_eq!(late.failed.len(), 3);
    assert!(late.failed.iter().all(|failure| matches!(failure.error, ReadError::Deadline)));
    let note = read(ShopResource::Note);
    let (cx, page) = (cx(), Page { after: None, limit: 10 });
    let denied = world.cluster.list_across::<Account>(&cx, &note, CENSUS, page, &Consistency::Strong);
    let denied = denied.await.expect("begins");
    assert!(denied.rows.is_empty() && denied.failed.iter().all(|f| matches!(f.error, ReadError::Denied { .. })));
}

/// Everything that the actor of these tests has written.
fn everything() -> AuditFilter {
    AuditFilter::User("u-1".to_owned())
}

async fn trail(world: &World, after: Option<AuditPlace>, limit: u32) -> Gathered<AuditEntry, AuditPlace> {
    let (permit, page) = (read(ShopResource::Account), Page { after, limit });
    world.cluster.audit(&cx(), &permit, CENSUS, &everything(), page).await.expect("few shards")
}

/// Records of both shards and the control database.
async fn with_records(world: &World) -> BTreeSet<AuditPlace> {
    for _ in 0..40 {
        world.register().await;
    }
    let depot = DepotRow { id: Id::random(), version: 0, code: "north".to_owned() };
    let mut unit = world.cluster.begin_control(&cx(), depot.id);
    unit.save(&write(ShopResource::Depot), &depot).expect("saves");
    tell(&mut unit, "opened");
    unit.commit().await.expect("commits");
    let there: BTreeSet<_> = trail_of(&world.cluster, everything()).await.iter().map(AuditEntry::place).collect();
    let shards: BTreeSet<_> = there.iter().map(|place| place.shard).collect();
    assert_eq!((there.len(), shards), (41, BTreeSet::from([None, Some(0), Some(1)])));
    there
}

/// Guard: a cursor means the same place on each shard, also when all records are of one instant.
#[tokio::test]
async fn records_that_stay_are_shown_once_whatever_is_written() {
    let ((still, _clock), moving) = (World::with_clock(2).await, World::new(2).await);
    for (world, limits) in [(&still, &[1, 3, 7, 500][..]), (&moving, &[3, 7, 500])] {
        let there = with_records(world).await;
        for &limit in limits {
            let ask = async |after| trail(world, after, limit).await;
            let distinct = shown_once(world, limit, ask, AuditEntry::place).await;
            assert!(there.is_subset(&distinct), "no record passed over at {limit} a page");
        }
    }
}

#[tokio::test]
async fn a_shard_whose_trail_cannot_be_read_is_named_while_the_others_answer() {
    let world = World::new(2).await;
    with_records(&world).await;
    let places = |gathered: &Gathered<AuditEntry, _>| gathered.rows.iter().map(AuditEntry::place).collect::<Vec<_>>();
    let complete = places(&trail(&world, None, 500).await);
    let broken = ShardId(1);
    let db = world.powerful(broken).await;
    let rename = async |sql: &str| {
        let mut tx = db.begin().await.expect("begins");
        tx.script(sql).await.expect("renames");
        tx.commit().await.expect("commits");
    };
    rename("ALTER TABLE audit RENAME TO audit_away").await;
    let partial = trail(&world, None, 500).await;
    assert_eq!(partial.failed.iter().map(|failure| failure.shard).collect::<Vec<_>>(), [broken]);
    assert!(partial.failed[0].to_string().contains("shard 1 did not answer \"census\""), "{}", partial.failed[0]);
    assert_eq!(partial.next, Next::Again, "what the shard has must not be passed over");
    let others: Vec<_> = complete.iter().copied().filter(|place| place.shard != Some(1)).collect();
    assert_eq!(places(&partial), others);
    rename("ALTER TABLE audit_away RENAME TO audit").await;
    assert_eq!(places(&trail(&world, None, 500).await), complete);
}

/// Guard: the deadline holds for the trail too, and nobody sees of it what the permit does not reach.
#[tokio::test]
async fn the_trail_is_asked_for_within_bounds() {
    let world = World::new(3).await;
    world.register().await;
    let permit = read(ShopResource::Account);
    let ask = async |cx: RequestContext, permit: &Permit<Read>, fan_out| {
        world.cluster.audit(&cx, permit, fan_out, &everything(), Page::FIRST).await
    };
    let refused = ask(cx(), &permit, CENSUS.shards_max(2)).await.expect_err("three are too many");
    let FanOutError::TooManyShards { reason, shards, shards_max } = refused else { panic!("{refused}") };
    assert_eq!((reason, shards, shards_max), ("census", 3, 2));
    let over = cx().capped(Duration::ZERO);
    for (cx, fan_out) in [(cx(), CENSUS.time_max(Duration::ZERO)), (over, CENSUS)] {
        let late = ask(cx, &permit, fan_out).await.expect("begins");
        assert_eq!((late.failed.len(), late.rows.len(), late.next), (4, 0, Next::Again));
        assert!(late.failed.iter().all(|failure| matches!(failure.error, ReadError::Deadline)));
        assert!(late.failed[3].to_string().contains("the control database"), "{}", late.failed[3]);
    }
    let own = Actor::new("c-1".parse().expect("a subject"), ShopRole::Customer).with_own_record(Uuid::nil());
    let own = world.policy.authorize::<Read>(&own, ShopAction::Look, ShopResource::Account).expect("its own");
    let refused = ask(cx(), &own, CENSUS).await.expect_err("the scope is narrow");
    assert!(matches!(refused, FanOutError::Narrow { reason: "census" }), "{refused}");
}

/// Guard: the shards of a map that is not in use here yet were not asked, nor those of one that cannot be read.
#[tokio::test]
async fn a_page_is_not_the_last_while_another_map_may_be_there() {
    let world = World::new(2).await;
    world.register().await;
    assert_eq!(page(&world, None, 500).await.next, Next::End);
    let map = world.cluster.data_dir().join("shard-map.toml");
    let sound = std::fs::read_to_string(&map).expect("reads");
    std::fs::write(&map, "what another program is writing").expect("writes");
    let meanwhile = page(&world, None, 500).await;
    assert_eq!((meanwhile.failed.len(), meanwhile.next), (0, Next::Again));
    std::fs::write(&map, sound).expect("writes");
    assert_eq!(page(&world, None, 500).await.next, Next::End);
}
