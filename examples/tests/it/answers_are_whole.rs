//! An answer that would lack something is refused, or says who has not told.

use axum::body::Body;
use http::{Request, StatusCode};

use crate::world::World;

/// Rows of revenue, one a day.
async fn with_revenue(world: &World, days: u32) {
    let earn = format!(
        "INSERT INTO revenue_by_day WITH RECURSIVE days (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM days WHERE n < {days} - 1) \
         SELECT X'00000000000080008000000000000001', date('2000-01-01', '+' || n || ' days'), 1, 100, 0, 0 FROM days"
    );
    let mut tx = world.stores.reads.db().begin().await.unwrap();
    tx.script(&earn).await.unwrap();
    tx.commit().await.unwrap();
}

/// Guard: the newest days are not left out without a word.
#[tokio::test]
async fn revenue_that_is_too_much_for_one_answer_is_refused() {
    let world = World::new().await;
    with_revenue(&world, 10_001).await;
    let admin = world.session("admin", &[], None);
    let all = "/v1/revenue?from=2000-01-01&to=2100-01-01";
    let refused = world.get(&admin, all).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::BAD_REQUEST, "invalid-query"));
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("shorter")), "{:?}", refused.body);
    let table = Request::get(all).header("txn-token", &admin).header("accept", "text/csv").body(Body::empty());
    assert_eq!(world.send(table.unwrap()).await.status, StatusCode::BAD_REQUEST);
    let shorter = world.get(&admin, "/v1/revenue?from=2000-01-02&to=2100-01-01").await;
    let items = shorter.body["items"].as_array().map(Vec::len);
    assert_eq!((shorter.status, items), (StatusCode::OK, Some(10_000)));
}
