//! Operators go through the trail page by page; a shard that does not answer is named, and its records are not passed over.

use http::StatusCode;
use pim_core::shard::ShardId;
use serde_json::{Value, json};

use crate::world::World;

const BY_CLINICIAN: &str = "/v1/admin/audit?user_id=dev-clinician";

/// Every item, a few a page.
async fn walk(world: &World, sre: &str, limit: usize) -> Vec<Value> {
    let (mut path, mut items) = (format!("{BY_CLINICIAN}&limit={limit}"), Vec::new());
    for _ in 0..100 {
        let page = world.get(sre, &path).await;
        assert_eq!((page.status, &page.body["failed"]), (StatusCode::OK, &json!([])), "{:?}", page.body);
        let part = page.body["items"].as_array().unwrap();
        assert!(part.len() <= limit);
        items.extend(part.iter().cloned());
        let Some(cursor) = page.body["next_cursor"].as_str() else { return items };
        path = format!("{BY_CLINICIAN}&limit={limit}&cursor={cursor}");
    }
    panic!("a reader arrives at the end")
}

/// Patients of both shards.
async fn with_patients(world: &World) -> Vec<Value> {
    for key in 0..12 {
        world.registered(&key.to_string()).await;
    }
    let sre = world.session("sre", &[], None);
    let all = world.get(&sre, BY_CLINICIAN).await;
    assert_eq!(all.body["next_cursor"], json!(null), "{:?}", all.body);
    let items = all.body["items"].as_array().unwrap().clone();
    let on = |shard: u16| items.iter().filter(|item| item["shard"] == shard).count();
    assert!(on(0) > 0 && on(1) > 0 && on(0) + on(1) == items.len());
    items
}

#[tokio::test]
async fn each_record_is_on_one_page() {
    let world = World::new().await;
    let all = with_patients(&world).await;
    let sre = world.session("sre", &[], None);
    for limit in [1, 5, 200] {
        assert_eq!(walk(&world, &sre, limit).await, all);
    }
    for (query, problem) in [
        ("limit=0", "invalid-query"),
        ("limit=201", "invalid-query"),
        ("cursor=zz", "invalid-cursor"),
        // base64 of `1:nonsense`: of the right form, but not of this list.
        ("cursor=MTpub25zZW5zZQ", "invalid-cursor"),
    ] {
        let refused = world.get(&sre, &format!("{BY_CLINICIAN}&{query}")).await;
        assert_eq!((refused.status, refused.problem()), (StatusCode::BAD_REQUEST, problem), "{query}");
    }
}

/// Guard: what a shard has is not passed over because it did not answer in time.
#[tokio::test]
async fn a_shard_that_does_not_answer_is_named() {
    let world = World::new().await;
    let all = with_patients(&world).await;
    let sre = world.session("sre", &[], None);
    let rename = async |sql: &str| {
        let mut tx = world.cluster.database(ShardId(1)).unwrap().begin().await.unwrap();
        tx.script(sql).await.unwrap();
        tx.commit().await.unwrap();
    };
    rename("ALTER TABLE audit RENAME TO audit_away").await;
    let partial = world.get(&sre, BY_CLINICIAN).await;
    assert_eq!(partial.status, StatusCode::OK, "{:?}", partial.body);
    assert_eq!(partial.body["failed"].as_array().map(Vec::len), Some(1), "{:?}", partial.body);
    assert_eq!(partial.body["failed"][0]["shard"], 1);
    let others: Vec<_> = all.iter().filter(|item| item["shard"] == 0).cloned().collect();
    assert_eq!(partial.body["items"], json!(others));
    let request = all[0]["body"]["request"].as_str().unwrap();
    let journey = world.get(&sre, &format!("/v1/admin/journeys/{request}")).await;
    assert_eq!(journey.status, StatusCode::SERVICE_UNAVAILABLE, "{:?}", journey.body);
    rename("ALTER TABLE audit_away RENAME TO audit").await;
    let cursor = partial.body["next_cursor"].as_str().expect("the same page again");
    let whole = world.get(&sre, &format!("{BY_CLINICIAN}&cursor={cursor}")).await;
    assert_eq!((&whole.body["items"], &whole.body["failed"]), (&json!(all), &json!([])));
}
