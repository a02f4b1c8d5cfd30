//! What a live service shows at `/metrics` is declared, in names and in labels; and every served route has its policy.

use http::StatusCode;
use pim_lab::routes::ROUTES;
use pim_lab::signals::{CATALOGS, Hub};
use pim_telemetry::capture::undeclared;
use pim_telemetry::exposition::Format;

#[test]
fn a_fresh_hub_shows_every_series_and_nothing_else() {
    let text = Hub::new(None).unwrap().exposition(Format::OpenMetrics);
    let found = undeclared(&text, CATALOGS);
    assert!(found.is_empty(), "{found:?}");
    for route in ROUTES {
        assert!(text.contains(&format!("pim_edge_requests_total{{route=\"{}\",outcome=\"success\"}} 0", route.label)));
    }
}

#[tokio::test]
async fn a_used_service_shows_nothing_undeclared() {
    let world = crate::world::World::new().await;
    let answer = world.get_text("/metrics").await;
    assert_eq!(answer.0, StatusCode::OK);
    let found = undeclared(&answer.1, CATALOGS);
    assert!(found.is_empty(), "{found:?}");
    assert!(!answer.1.contains("# EOF"), "who asks for nothing else gets plain text");
}
