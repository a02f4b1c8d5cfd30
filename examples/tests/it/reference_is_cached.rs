//! What a body refers to is looked up in the reference book: known until an event, or a token, tells of a newer version.

use std::time::Duration;

use http::StatusCode;
use pim_core::id::Id;
use pim_data::backend::Statement;
use pim_data::cluster::CONTROL;
use pim_data::consistency::ConsistencyToken;
use pim_events::{DOMAIN_TOPIC, RetentionSettings, Subscriber as _};
use pim_lab::ids::{FacilityId, ProviderId};
use pim_lab::reference::Facility;
use pim_lab::rig::Drain;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{Answered, World};

const PATIENCE: Duration = Duration::from_secs(20);

impl World {
    async fn change_facility(&self, key: &str, change: &Value) -> Answered {
        let admin = self.session("admin", &[], None);
        let path = format!("/v1/admin/facilities/{}", self.facility);
        let request = http::Request::patch(path).header("txn-token", admin).header("content-type", "application/json");
        self.send(request.header("idempotency-key", key).body(change.to_string().into()).unwrap()).await
    }

    /// The version that this program believes in.
    async fn known_version(&self) -> u64 {
        let found = self.stores.reference.find::<Facility>(self.facility, &ConsistencyToken::default()).await;
        found.unwrap().expect("the facility is there").version
    }

    /// Moves what is committed to the bus, until told to stop.
    fn relaying(&self, stop: &Drain) -> JoinHandle<()> {
        let (stores, stop) = (self.stores.clone(), stop.clone());
        tokio::spawn(async move { stores.relay(20, &RetentionSettings::default(), stop).await.unwrap() })
    }

    /// Moves what was committed to the bus, and hands its events to the reference book, as a program does all the time.
    async fn until_known(&self, version: u64) {
        let stop = Drain::new();
        let relay = self.relaying(&stop);
        let follow = tokio::spawn(self.stores.reference_followed(stop.clone()).await.unwrap());
        let seen = async {
            while self.known_version().await != version {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the event reaches the book");
        stop.begin();
        follow.await.unwrap();
        relay.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_becomes_visible_through_its_event() {
    let world = World::new().await;
    let _registered = world.registered("first").await;
    let closed = world.change_facility("close", &json!({"active": false})).await;
    assert_eq!((closed.status, closed.etag()), (StatusCode::OK, "\"2\""), "{:?}", closed.body);
    // Nobody has told this program yet.
    let _registered = world.registered("second").await;
    assert_eq!(world.known_version().await, 1);
    world.until_known(2).await;
    let refused = world.post(&world.clinician(), "/v1/patients", "third", &world.registration()).await;
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "inactive-reference"), "{:?}", refused.body);
    assert_eq!((&refused.body["pointer"], &refused.body["entity"]), (&"/facility_id".into(), &"facility".into()));
    // What was answered before stays answered.
    let again = world.registered("second").await;
    assert_eq!(again.status, StatusCode::CREATED);
}

#[tokio::test]
async fn an_event_of_a_version_that_is_known_drops_nothing() {
    let world = World::new().await;
    assert_eq!(world.change_facility("a", &json!({"name": "South Clinic"})).await.status, StatusCode::OK);
    assert_eq!(world.known_version().await, 2);
    // The row moves on behind the book's back, so that a second look would show it.
    assert_eq!(world.change_facility("b", &json!({"name": "West Clinic"})).await.status, StatusCode::OK);
    let stop = Drain::new();
    let relay = world.relaying(&stop);
    let mut events = Vec::new();
    let arrived = async {
        while events.len() < 3 {
            events.clear();
            for partition in 0..world.stores.bus.partitions(DOMAIN_TOPIC).await.unwrap() {
                let records = world.stores.bus.fetch(DOMAIN_TOPIC, partition, 0, 100).await.unwrap();
                let events_here = records.iter().map(|record| record.event().unwrap());
                events.extend(events_here.filter(|event| event.aggregate_id == world.facility.uuid()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await.expect("the events arrive");
    stop.begin();
    relay.await.unwrap();
    events.sort_by_key(|event| event.n);
    for known in &events[..2] {
        world.stores.reference.heed(known).await;
        assert_eq!(world.known_version().await, 2, "version {} tells nothing new", known.aggregate_version);
    }
    world.stores.reference.heed(&events[2]).await;
    assert_eq!(world.known_version().await, 3);
}

#[tokio::test]
async fn who_has_seen_the_change_is_not_shown_what_was_before() {
    let world = World::new().await;
    let _registered = world.registered("first").await;
    let closed = world.change_facility("close", &json!({"active": false})).await;
    let request = World::writing(&world.clinician(), "/v1/patients", "second")
        .header("x-pim-token", &closed.headers["x-pim-token"]);
    let refused = world.send(request.body(world.registration().to_string().into()).unwrap()).await;
    assert_eq!(refused.problem(), "inactive-reference", "{:?}", refused.body);
}

#[tokio::test]
async fn what_is_not_there_is_named_by_its_place_in_the_body() {
    let world = World::new().await;
    let (nowhere, nobody): (FacilityId, ProviderId) = (Id::derive(b"nowhere", 1), Id::derive(b"nobody", 1));
    let somewhere = world.session("clinician", &[world.facility, nowhere], None);
    let patient = world.registered("p").await.id();
    let admin = world.session("admin", &[], None);
    let with = |mut body: Value, member: &str, value: Value| {
        body[member] = value;
        body
    };
    let encounters = format!("/v1/patients/{patient}/encounters");
    let appointments = format!("/v1/patients/{patient}/appointments");
    let booking =
        json!({"facility_id": world.facility, "provider_id": world.provider, "scheduled_at": "2027-01-15T09:00:00Z"});
    let provider = json!({"facility_id": nowhere, "name": "A", "specialty": "family"});
    let account =
        json!({"subject": "s", "role": "clinician", "facilities": [world.facility, nowhere], "patient": null});
    let cases = [
        (&somewhere, "/v1/patients", with(world.registration(), "facility_id", json!(nowhere)), "/facility_id"),
        (&somewhere, &encounters, with(world.scheduling(), "facility_id", json!(nowhere)), "/facility_id"),
        (&somewhere, &encounters, with(world.scheduling(), "provider_id", json!(nobody)), "/provider_id"),
        (&somewhere, &appointments, with(booking.clone(), "facility_id", json!(nowhere)), "/facility_id"),
        (&somewhere, &appointments, with(booking, "provider_id", json!(nobody)), "/provider_id"),
        (&admin, "/v1/admin/providers", provider, "/facility_id"),
        (&admin, "/v1/admin/accounts", account, "/facilities/1"),
    ];
    let rows = rows(&world).await;
    for (number, (token, path, body, pointer)) in cases.into_iter().enumerate() {
        let refused = world.post(token, path, &format!("k{number}"), &body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.problem()),
            (422, "unknown-reference"),
            "{path} {:?}",
            refused.body
        );
        assert_eq!(refused.body["pointer"], pointer, "{path}");
    }
    assert_eq!(self::rows(&world).await, rows, "nothing half-written");
}

/// Rows of every kind that the cases above would make.
async fn rows(world: &World) -> Vec<u64> {
    let mut counts = Vec::new();
    for shard in world.cluster.sources() {
        let tables: &[&str] = if shard == CONTROL {
            &["provider_row", "account_row"]
        } else {
            &["patient_row", "encounter_row", "appointment_row"]
        };
        for table in tables.iter().chain(&["outbox_event", "audit"]) {
            let count = pim_data::backend::SqlPair::generated(format!("SELECT count(*) FROM {table}"));
            let found = world.cluster.database(shard).unwrap().query(Statement::of(count)).await.unwrap();
            counts.push(found[0].count(0).unwrap());
        }
    }
    counts
}
