//! A key that was not minted here has the same bucket in Rust as in SQL, on whatever version runs.

use pim_core::shard::{ForeignUuid, ShardKey as _, hash_extended};
use pim_data::backend::Statement;
use uuid::Uuid;

use super::world::World;

#[tokio::test]
async fn hash_and_bucket_are_those_of_the_running_server() {
    let world = World::new(1).await;
    let db = world.powerful(pim_core::shard::ShardId(0)).await;
    for _ in 0..500 {
        let key = Uuid::new_v4();
        let question = "SELECT uuid_hash_extended(?, 0), (uuid_hash_extended(?, 0) >> 52) & 4095";
        let row = &db.query(Statement::same(question).bind(key).bind(key)).await.expect("answers")[0];
        assert_eq!(row.int(0).expect("a number"), hash_extended(key.as_bytes()).cast_signed(), "{key}");
        assert_eq!(row.int(1).expect("a number"), i64::from(ForeignUuid(key).bucket().get()), "{key}");
    }
}
