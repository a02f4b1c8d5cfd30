//! What a program remembers of a request is told to those whose policy lets them read journeys, and by no public route.

use http::{Method, StatusCode};
use pim_lab::rig::SPANS_PATH;
use pim_lab::routes::{Match, find};

use crate::world::World;

#[tokio::test]
async fn and_to_nobody_else() {
    let world = World::new().await;
    let registered = world.registered("k").await;
    let request = registered.headers["x-pim-request-id"].to_str().unwrap().to_owned();
    let path = format!("{SPANS_PATH}?request_id={request}");
    assert_eq!(world.get_text(&path).await.0, StatusCode::UNAUTHORIZED);
    for role in ["patient", "clinician", "admin", "service"] {
        let answered = world.get(&world.session(role, &[world.facility], None), &path).await;
        assert_eq!((answered.status, answered.problem()), (StatusCode::FORBIDDEN, "forbidden"), "{role}");
    }
    let sre = world.session("sre", &[], None);
    let told = world.get(&sre, &path).await;
    assert_eq!(told.status, StatusCode::OK);
    let spans = told.body.as_array().unwrap();
    assert_eq!((spans.len(), &spans[0]["name"], &spans[0]["status"]), (1, &"POST /v1/patients".into(), &201.into()));
    let text = told.body.to_string();
    assert!(!text.contains("Ada") && !text.contains("SYN-") && !text.contains("1980"), "{text}");
    let trace = spans[0]["trace_id"].as_str().unwrap();
    let of_trace = world.get(&sre, &format!("{SPANS_PATH}?trace_id={trace}")).await;
    assert_eq!(of_trace.body, told.body);
    for query in ["request_id=x", "trace_id=x", "", &format!("request_id={request}&trace_id={trace}")] {
        let bad = world.get(&sre, &format!("{SPANS_PATH}?{query}")).await;
        assert_eq!((bad.status, bad.problem()), (StatusCode::BAD_REQUEST, "invalid-query"), "{query}");
    }
}

#[tokio::test]
async fn a_trace_leads_to_the_journey_of_its_request() {
    let world = World::new().await;
    let registered = world.registered("k").await;
    let request = registered.headers["x-pim-request-id"].to_str().unwrap();
    let sre = world.session("sre", &[], None);
    let spans = world.get(&sre, &format!("{SPANS_PATH}?request_id={request}")).await;
    let trace = spans.body[0]["trace_id"].as_str().unwrap();
    let journey = world.get(&sre, &format!("/v1/admin/journeys/{trace}")).await;
    assert_eq!((journey.status, &journey.body["request_id"]), (StatusCode::OK, &request.into()), "{:#}", journey.body);
    let strange = world.get(&sre, &format!("/v1/admin/journeys/{}", "0a".repeat(16))).await;
    assert_eq!((strange.status, strange.problem()), (StatusCode::NOT_FOUND, "not-found"));
}

#[test]
fn the_gateway_does_not_know_the_way() {
    assert!(matches!(find(&Method::GET, SPANS_PATH), Match::Unknown));
}
