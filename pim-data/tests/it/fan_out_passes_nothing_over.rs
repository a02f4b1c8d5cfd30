//! A page from all shards shows each row once, says who did not answer, and is refused beyond its bounds.

use std::collections::BTreeSet;
use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::consistency::Consistency;
use pim_data::fan_out::{FanOut, FanOutError, Gathered, Next};
use pim_data::repository::{Page, ReadError};
use uuid::Uuid;

use super::world::{Account, ShopResource, World, cx, read};

const CENSUS: FanOut = FanOut::because("census");

async fn page(world: &World, after: Option<Uuid>, limit: u32) -> Gathered<Account> {
    let permit = read(ShopResource::Account);
    let page = Page { after, limit };
    let gathered = world.cluster.list_across(&cx(), &permit, CENSUS, page, &Consistency::Strong).await;
    gathered.expect("few shards")
}

#[tokio::test]
async fn rows_that_stay_are_shown_once_whatever_is_inserted() {
    let world = World::new(4).await;
    let mut there = BTreeSet::new();
    for _ in 0..40 {
        there.insert(world.register().await.id.uuid());
    }
    for limit in [1, 3, 7, 500] {
        let (mut after, mut seen, mut pages) = (None, Vec::new(), 0);
        loop {
            let gathered = page(&world, after, limit).await;
            assert!(gathered.rows.len() <= limit as usize);
            seen.extend(gathered.rows.iter().map(|row| row.id.uuid()));
            pages += 1;
            assert!(pages < 500, "a reader arrives at the end");
            // Somebody writes between two pages, before and behind the cursor.
            world.register().await;
            let Next::After(id) = gathered.next else { break };
            after = Some(id);
        }
        assert!(seen.is_sorted());
        let distinct: BTreeSet<_> = seen.iter().copied().collect();
        assert_eq!(distinct.len(), seen.len(), "no row twice");
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
