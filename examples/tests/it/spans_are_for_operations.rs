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
    let bad = world.get(&sre, &format!("{SPANS_PATH}?request_id=x")).await;
    assert_eq!((bad.status, bad.problem()), (StatusCode::BAD_REQUEST, "invalid-query"));
}

#[test]
fn the_gateway_does_not_know_the_way() {
    assert!(matches!(find(&Method::GET, SPANS_PATH), Match::Unknown));
}
