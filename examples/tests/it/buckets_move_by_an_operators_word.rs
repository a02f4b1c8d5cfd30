//! An operator moves buckets while the lab serves: dry run, move, way back, emptying a shard; each an operation like others.

use std::time::Duration;

use http::StatusCode;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::shard::{Bucket, ShardId};
use pim_data::relocation::{MoveStep, Mover};
use pim_events::{OutboxOutlet, RetentionSettings};
use pim_lab::ids::PatientId;
use pim_lab::rig::Drain;
use pim_lab::workers::service_actor;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::World;

const MOVES: &str = "/v1/admin/shards/moves";

/// A relay beside the services: a bucket changes hands only when its events are out.
fn relayed(world: &World) -> Drain {
    let drain = Drain::new();
    let (stores, stop) = (world.stores.clone(), drain.clone());
    tokio::spawn(async move { stores.relay(20, &RetentionSettings::default(), stop).await });
    drain
}

async fn patient(world: &World, key: &str) -> (PatientId, u16, u16) {
    let id: PatientId = world.registered(key).await.id().parse().unwrap();
    let from = world.cluster.router().route(&id).shard.0;
    (id, from, 1 - from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_and_back_with_a_trail_and_one_effect_for_each_key() {
    let world = World::new().await;
    let _relay = relayed(&world);
    let (id, from, to) = patient(&world, "a").await;
    let (sre, bucket) = (world.session("sre", &[], None), id.bucket().get());
    let body = json!({"first": bucket, "to": to, "dry_run": true});
    let planned = world.post(&sre, MOVES, "dry", &body).await;
    assert_eq!(planned.status, StatusCode::OK, "{:?}", planned.body);
    assert_eq!(planned.body["moves"][0]["step"], "planned");
    assert_eq!(world.get(&sre, MOVES).await.body["items"], json!([]), "a dry run writes nothing down");

    let body = json!({"first": bucket, "to": to});
    let moved = world.post(&sre, MOVES, "k", &body).await;
    assert_eq!(moved.status, StatusCode::OK, "{:?}", moved.body);
    assert_eq!(moved.body["moves"][0]["step"], "done");
    assert_eq!(world.cluster.router().route(&id).shard, ShardId(to));
    let again = world.post(&sre, MOVES, "k", &body).await;
    assert_eq!(again.body, moved.body, "the same key is the same operation");
    let once_more = world.post(&sre, MOVES, "other", &body).await;
    assert_eq!(once_more.body["moves"], json!([]), "it is there already");
    let clinician = world.clinician();
    let seen = world.get(&clinician, &format!("/v1/patients/{id}")).await;
    assert_eq!(seen.status, StatusCode::OK);

    let first = moved.body["moves"][0]["id"].as_str().unwrap();
    let back = world.post(&sre, &format!("{MOVES}/{first}/reverse"), "back", &json!({})).await;
    assert_eq!(back.status, StatusCode::OK, "{:?}", back.body);
    assert_eq!((back.body["step"].as_str(), back.body["reverses"].as_str()), (Some("done"), Some(first)));
    assert_eq!(world.cluster.router().route(&id).shard, ShardId(from));
    let listed = world.get(&sre, MOVES).await.body["items"].as_array().unwrap().len();
    assert_eq!(listed, 2);
    let refused = world.post(&sre, &format!("{MOVES}/{first}/cancel"), "late", &json!({})).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::CONFLICT, "conflict"));
    assert!(world.cluster.verify_audit().await.unwrap().verified);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_emptied_in_pieces() {
    let world = World::new().await;
    let _relay = relayed(&world);
    let (id, from, to) = patient(&world, "a").await;
    let sre = world.session("sre", &[], None);
    let before = world.cluster.map().buckets_of(ShardId(from)).count();
    let planned = world.post(&sre, MOVES, "dry", &json!({"shard": from, "to": to, "dry_run": true})).await;
    assert_eq!(planned.body["left"], before - 64, "{:?}", planned.body);
    let told = world.post(&sre, MOVES, "k", &json!({"shard": from, "to": to})).await;
    assert_eq!(told.status, StatusCode::OK, "{:?}", told.body);
    assert_eq!(told.body["left"], before - 64);
    assert_eq!(world.cluster.map().buckets_of(ShardId(from)).count(), before - 64);
    let seen = world.get(&world.clinician(), &format!("/v1/patients/{id}")).await;
    assert_eq!(seen.status, StatusCode::OK);
}

/// Guard: a caller who goes breaks nothing off, and finds out what came of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_when_whoever_asked_has_gone() {
    let world = World::new().await;
    let (id, _, to) = patient(&world, "a").await;
    let sre = world.session("sre", &[], None);
    let body = json!({"first": id.bucket().get(), "to": to});
    let mover = Mover::new(&world.cluster, std::sync::Arc::new(OutboxOutlet));
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    let begins = async {
        while mover.unfinished().await.unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < give_up, "it does not begin");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        told = world.post(&sre, MOVES, "k", &body) => panic!("nobody relays yet: {:?}", told.body),
        () = begins => {}
    }
    let _relay = relayed(&world);
    let state = async || world.get(&sre, "/v1/admin/operations").await.body["items"][0]["state"].clone();
    while state().await != "done" {
        assert!(tokio::time::Instant::now() < give_up, "nobody went on with it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.cluster.router().route(&id).shard, ShardId(to));
    let again = world.post(&sre, MOVES, "k", &body).await;
    assert_eq!(again.body["moves"][0]["step"], "done", "the same key is the same operation");
}

/// Plans a move of a bucket, does it up to where its writes wait, and is gone.
async fn left_half_way(world: &World, mover: &Mover, bucket: Bucket, to: u16) -> Uuid {
    let actor = service_actor("test").unwrap();
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)));
    let relay = relayed(world);
    let planned = mover.plan(&cx, [bucket], ShardId(to)).await.unwrap();
    let mut run = mover.take_up(planned.id).await.unwrap();
    while run.record().step != MoveStep::Activating {
        run.step(&cx).await.unwrap();
    }
    relay.begin();
    planned.id
}

async fn brought_to_its_end(mover: &Mover, id: Uuid) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while mover.find(id).await.unwrap().step != MoveStep::Done {
        assert!(tokio::time::Instant::now() < give_up, "nobody went on with it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Guard: a bucket whose mover died between fence and map does not wait for an operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_mover_is_gone_is_brought_to_its_end() {
    let world = World::new().await;
    let (id, _, to) = patient(&world, "a").await;
    let mover = Mover::new(&world.cluster, std::sync::Arc::new(OutboxOutlet));
    let left = left_half_way(&world, &mover, id.bucket(), to).await;
    world.clock.advance(Duration::from_secs(6));
    let _relay = relayed(&world);
    brought_to_its_end(&mover, left).await;
    let seen = world.get(&world.clinician(), &format!("/v1/patients/{id}")).await;
    assert_eq!(seen.status, StatusCode::OK);
}

/// Guard: nor until the time has come that a clock wrote which was a year ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_mover_was_ahead_of_time_is_brought_to_its_end() {
    let world = World::new().await;
    let (id, _, to) = patient(&world, "a").await;
    let wrong = world.beside_ahead_by(Duration::from_secs(365 * 24 * 3600)).await;
    let mover = Mover::new(&wrong.cluster, std::sync::Arc::new(OutboxOutlet));
    let left = left_half_way(&world, &mover, id.bucket(), to).await;
    let _relay = relayed(&world);
    brought_to_its_end(&mover, left).await;
}

/// Guard: a move that cannot go on is noted, and those behind it go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_cannot_go_on_keeps_no_other_back() {
    let world = World::new().await;
    let (id, from, to) = patient(&world, "a").await;
    let actor = service_actor("test").unwrap();
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)));
    let mover = Mover::new(&world.cluster, std::sync::Arc::new(OutboxOutlet));
    let mut empty = None;
    for (bucket, _) in world.cluster.map().buckets_of(ShardId(from)).filter(|(bucket, _)| *bucket != id.bucket()) {
        let stuck = mover.plan(&cx, [bucket], ShardId(to)).await.unwrap();
        let elsewhere = world.cluster.map().reassign([bucket], ShardId(to)).unwrap();
        // A bucket without rows goes by a map alone: its move finds it elsewhere, for ever.
        if world.cluster.publish_map(&elsewhere).await.is_ok() {
            empty = Some(stuck.id);
            break;
        }
        mover.cancel(stuck.id).await.unwrap();
    }
    world.clock.advance(Duration::from_secs(1));
    let behind = mover.plan(&cx, [id.bucket()], ShardId(to)).await.unwrap();
    world.clock.advance(Duration::from_secs(6));
    let _relay = relayed(&world);
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while mover.find(behind.id).await.unwrap().step != MoveStep::Done {
        assert!(tokio::time::Instant::now() < give_up, "nobody went on with it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stuck = empty.expect("some bucket has no rows");
    assert_eq!(mover.find(stuck).await.unwrap().step, MoveStep::Planned);
    assert_eq!(mover.cancel(stuck).await.unwrap().step, MoveStep::Cancelled);
}

#[tokio::test]
async fn what_is_no_move_is_refused_by_name() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let owner = world.cluster.map().owner(Bucket::new(7).unwrap()).0.0;
    let refused = async |key: &str, body: Value| {
        let answer = world.post(&sre, MOVES, key, &body).await;
        (answer.status.as_u16(), answer.problem().to_owned())
    };
    let invalid = (422, "invalid-body".to_owned());
    assert_eq!(refused("a", json!({"to": 1})).await, invalid);
    assert_eq!(refused("b", json!({"first": 7, "shard": 0, "to": 1})).await, invalid);
    assert_eq!(refused("c", json!({"first": 9, "last": 7, "to": 1})).await, invalid);
    assert_eq!(refused("d", json!({"first": 4095, "last": 5000, "to": 1})).await, invalid);
    assert_eq!(refused("e", json!({"first": 0, "last": 300, "to": 1})).await, invalid);
    assert_eq!(refused("s", json!({"shard": 1, "to": 1})).await, invalid, "to itself");
    assert_eq!(refused("t", json!({"shard": 9, "to": 9})).await, invalid);
    assert_eq!(refused("u", json!({"shard": 9, "to": 0})).await, (404, "not-found".to_owned()));
    assert_eq!(refused("v", json!({"shard": 9, "to": 0, "dry_run": true})).await, (404, "not-found".to_owned()));
    assert_eq!(refused("f", json!({"first": 7, "to": 9})).await, invalid);
    let operations = world.get(&sre, "/v1/admin/operations").await;
    assert_eq!(operations.body["items"], json!([]), "what is no move is no operation");
    let nothing = world.post(&sre, MOVES, "g", &json!({"first": 7, "to": owner})).await;
    assert_eq!(nothing.body["moves"], json!([]), "it is there already");
    let unknown = world.post(&sre, &format!("{MOVES}/{}/cancel", Uuid::nil()), "h", &json!({})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}
