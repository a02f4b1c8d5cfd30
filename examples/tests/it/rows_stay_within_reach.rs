//! A clinician reaches rows of own facilities, a patient only their own record.

use http::StatusCode;
use pim_core::id::Id;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_patient_reads_only_their_own_record_and_changes_none() {
    let world = World::new().await;
    let (own, other) = (world.registered("own").await.id(), world.registered("other").await.id());
    let token = world.session("patient", &[], Some(own.parse().unwrap()));
    assert_eq!(world.get(&token, &format!("/v1/patients/{own}")).await.status, StatusCode::OK);
    let encounters = format!("/v1/patients/{other}/encounters");
    let planned = world.post(&world.clinician(), &encounters, "planned", &world.scheduling()).await.id();
    let listed = world.get(&world.clinician(), &encounters).await;
    assert_eq!(listed.body["items"][0]["id"], json!(planned), "there is something to see: {:?}", listed.body);
    for path in [format!("/v1/patients/{other}"), format!("/v1/encounters/{planned}"), encounters] {
        let answered = world.get(&token, &path).await;
        let sees_nothing = answered.status == StatusCode::NOT_FOUND || answered.body["items"] == json!([]);
        assert!(sees_nothing, "{path}: {:?}", answered.body);
    }
    let change = format!("/v1/patients/{own}/transitions");
    let refused = world.post(&token, &change, "k", &json!({"to": "active"})).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::FORBIDDEN, "forbidden"));
}

#[tokio::test]
async fn a_clinician_of_another_facility_sees_and_changes_nothing() {
    let world = World::new().await;
    let patient = world.registered("a").await.id();
    let stranger = world.session("clinician", &[Id::derive(b"facility", 2)], None);
    assert_eq!(world.get(&stranger, &format!("/v1/patients/{patient}")).await.status, StatusCode::NOT_FOUND);
    let change = format!("/v1/patients/{patient}/transitions");
    let refused = world.post(&stranger, &change, "k", &json!({"to": "active"})).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::NOT_FOUND, "not-found"));
    let registered = world.post(&stranger, "/v1/patients", "b", &world.registration()).await;
    assert_eq!((registered.status, registered.problem()), (StatusCode::FORBIDDEN, "forbidden"));
}
