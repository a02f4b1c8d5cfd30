//! Guards: what is written while the checker looks is neither lost nor duplicated, and what is, is told.

use std::path::PathBuf;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::rbac::{Permit, SystemScope, Write};
use pim_data::cluster::Access;
use pim_events::{AppendExt as _, RetentionSettings};

use uuid::Uuid;

use super::comparison::{Found, given, last_of};
use super::*;
use crate::compose::{Settled, settle};
use crate::ids::FacilityId;
use crate::jobs::UpkeepSettings;
use crate::policy::{LabAction, LabResource};
use crate::reference::{Facility, ReferenceChanged};
use crate::rig::Drain;
use crate::signals::Hub;
use crate::workers::service_actor;

async fn look(stores: &Stores, between: impl AsyncFn()) -> Result<Found, SummaryError> {
    compare(stores, PAGE_KEYS, between).await
}

struct Place {
    folder: PathBuf,
    stores: Stores,
    drain: Drain,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.drain.begin();
        let _leftover = std::fs::remove_dir_all(&self.folder);
    }
}

impl Place {
    async fn open() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-runs-{}", Uuid::new_v4()));
        let hub = Hub::new(None).expect("binds");
        let stores = Stores::open(&folder, Some(2), Access::Shared, Clock::system(), &hub).await.expect("opens");
        Self { folder, stores, drain: Drain::new() }
    }

    /// One whose events are published and folded.
    async fn flowing() -> Self {
        let place = Self::open().await;
        let (stores, drain, kept) = (place.stores.clone(), place.drain.clone(), RetentionSettings::default());
        tokio::spawn(async move { stores.relay(10, &kept, drain).await });
        let upkeep = place.stores.upkeep(&UpkeepSettings::default()).await.expect("enters");
        let (stores, drain, kept) = (place.stores.clone(), place.drain.clone(), RetentionSettings::default());
        tokio::spawn(async move { stores.consume(10, &kept, upkeep, drain).await });
        place
    }

    /// Commits one event of a new key.
    async fn commit(&self) {
        self.commit_of(Id::random()).await;
    }

    /// Commits one event of a key.
    async fn commit_of(&self, id: FacilityId) {
        const REASON: SystemScope = SystemScope::new("a fact of a test");
        let actor = service_actor("test").expect("a subject");
        let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)));
        let (name, state_code) = ("North Clinic".to_owned(), "OR".to_owned());
        let mut unit = self.stores.cluster.begin_control(&cx, id);
        let permit = Permit::<Write>::system(REASON, LabAction::Write, LabResource::Facility);
        let known = unit.load::<Facility>(&permit, id).await.expect("reads");
        let active = known.as_ref().is_none_or(|known| !known.active);
        let version = known.map_or(0, |known| known.version);
        let facility = Facility { id, version, name, state_code, active };
        let version = unit.save(&permit, &facility).expect("fits");
        unit.append(&ReferenceChanged { table: "facility".to_owned(), id: id.uuid(), version }).expect("fits");
        unit.commit().await.expect("commits");
    }

    async fn settled(&self) {
        assert_eq!(settle(&self.stores).await, Settled::Yes);
    }

    async fn in_read_store(&self, text: &'static str) {
        let tx = self.stores.reads.db().begin().await.expect("begins");
        tx.commit_with(vec![Statement::same(text)]).await.expect("commits");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_and_folded_between_two_looks_is_neither_lost_nor_duplicated() {
    let place = Place::flowing().await;
    let id = Id::random();
    place.commit_of(id).await;
    place.settled().await;
    let meanwhile = async || {
        place.commit().await;
        place.commit_of(id).await;
        place.settled().await;
    };
    let found = look(&place.stores, meanwhile).await.expect("looks");
    assert_eq!((found.lost, found.duplicated, found.pending), (0, 0, 0), "{found:?}");
    place.settled().await;
    let found = look(&place.stores, async || {}).await.expect("looks");
    assert_eq!((found.lost, found.duplicated, found.pending), (0, 0, 0), "{found:?}");
    assert!(found.facts >= 4, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_since_the_first_look_is_pending() {
    let place = Place::open().await;
    let found = look(&place.stores, async || place.commit().await).await.expect("looks");
    // The first is given out and on its way; the others were written when that had been read.
    assert_eq!((found.facts, found.pending, found.lost, found.duplicated), (1, 1, 0, 0), "{found:?}");
    assert_eq!(found.rest.outbox_backlog, 3, "the most of all looks: {found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_read_model_does_not_know_is_lost_and_what_it_knows_twice_is_duplicated() {
    let place = Place::flowing().await;
    for _ in 0..3 {
        place.commit().await;
    }
    place.settled().await;
    place.in_read_store("DELETE FROM journey_hops WHERE home = (SELECT MIN(home) FROM journey_hops)").await;
    place.in_read_store("UPDATE shard_distribution SET events = events + 2").await;
    let found = look(&place.stores, async || {}).await.expect("looks");
    assert_eq!((found.lost, found.pending), (1, 0), "{found:?}");
    assert!(found.duplicated >= 2, "{found:?}");
}

/// Guard: while a bucket moves its keys are on two shards, and one of them may be behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_on_two_shards_is_counted_once() {
    let place = Place::flowing().await;
    let before = look(&place.stores, async || {}).await.expect("looks").facts;
    for (shard, n) in [(0, 1), (1, 3)] {
        let db = place.stores.cluster.database(pim_core::shard::ShardId(shard)).expect("a shard");
        let tx = db.begin().await.expect("begins");
        let text = format!("INSERT INTO key_head (key, bucket, n) VALUES (x'{}', 7, {n})", "07".repeat(16));
        let insert = Statement::of(pim_data::backend::SqlPair::generated(text));
        tx.commit_with(vec![insert]).await.expect("commits");
    }
    assert_eq!(look(&place.stores, async || {}).await.expect("looks").facts, before + 3);
}

/// Guard: pages have no seam: nothing is passed over, and nothing looked at twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_any_size_find_the_same() {
    let place = Place::flowing().await;
    for _ in 0..9 {
        place.commit().await;
    }
    place.settled().await;
    place.in_read_store("DELETE FROM journey_hops WHERE home = (SELECT MAX(home) FROM journey_hops)").await;
    place.in_read_store("INSERT INTO journey_hops SELECT randomblob(16), request_id, cause, event_type, home, n, origin, seq, \
                         trace, committed_at, published_at, applied_at FROM journey_hops WHERE home = (SELECT MIN(home) FROM journey_hops)").await;
    // Of a key that no shard has: it is compared with nothing.
    place.in_read_store("INSERT INTO journey_hops SELECT randomblob(16), request_id, cause, event_type, zeroblob(16), n, origin, seq, \
                         trace, committed_at, published_at, applied_at FROM journey_hops LIMIT 1").await;
    let at_once = look(&place.stores, async || {}).await.expect("looks");
    assert!(at_once.facts >= 9 && at_once.lost >= 1 && at_once.duplicated >= 1, "{at_once:?}");
    for page_keys in 1..=12 {
        let found = compare(&place.stores, page_keys, async || {}).await.expect("looks");
        assert_eq!(found, at_once, "{page_keys} keys a page");
    }
}

/// Guard: a page has so many keys of a shard and no more, also where read models know none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_as_large_as_was_said() {
    let place = Place::open().await;
    for _ in 0..5 {
        place.commit().await;
    }
    let mut pages = Vec::new();
    let mut first = Uuid::nil();
    while pages.last() != Some(&0) && pages.len() < 10 {
        let last = last_of(&place.stores, first, 2).await.expect("looks");
        pages.push(given(&place.stores, (first, last)).await.expect("looks").len());
        first = Uuid::from_u128(last.as_u128().saturating_add(1));
    }
    assert_eq!(pages, [2, 2, 1, 0]);
}
