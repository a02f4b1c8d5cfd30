//! An answer that would lack something is refused, or says who has not told.

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::shard::ShardId;
use serde_json::json;

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

/// Guard: an outbox that cannot be read keeps nobody from the others, and is not taken for an empty one.
#[tokio::test]
async fn an_outbox_that_does_not_answer_is_named() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let whole = world.get(&sre, "/v1/admin/outbox").await;
    assert_eq!((&whole.body["failed"], &whole.body["backlog"]), (&json!([]), &json!(2)), "{:?}", whole.body);
    let mut tx = world.cluster.database(ShardId(1)).unwrap().begin().await.unwrap();
    tx.script("ALTER TABLE outbox_event RENAME TO outbox_event_away").await.unwrap();
    tx.commit().await.unwrap();
    let partial = world.get(&sre, "/v1/admin/outbox").await;
    assert_eq!((partial.status, &partial.body["backlog"]), (StatusCode::OK, &json!(null)), "{:?}", partial.body);
    let told = |index: usize| partial.body["items"][index]["origin"].as_str().unwrap_or_default().to_owned();
    assert_eq!((told(0), told(1)), ("shard/0".to_owned(), "control".to_owned()), "{:?}", partial.body);
    assert_eq!(partial.body["failed"].as_array().map(Vec::len), Some(1), "{:?}", partial.body);
    assert_eq!(partial.body["failed"][0]["shard"], 1, "{:?}", partial.body);
}
