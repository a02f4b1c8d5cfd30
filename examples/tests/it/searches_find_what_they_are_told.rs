//! A search finds what it is told in whatever form that is written, and refuses by name what nobody can be found by.

use http::StatusCode;
use pim_data::backend::{Db, DbSettings, Statement};
use uuid::Uuid;

use crate::world::{Answered, World};

async fn search(world: &World, query: &str) -> Answered {
    world.get(&world.clinician(), &format!("/v1/patients?{query}")).await
}

/// One patient, as the projection folds her.
async fn folded(world: &World) {
    let insert = "INSERT INTO patient_search VALUES (?, ?, 'Ada Mary', 'Example Test', 'ada mary', 'example test', \
                  '1980-02-29', 'SYN-00000042')";
    let insert = Statement::sqlite(insert).bind(Uuid::from_u128(1)).bind(world.facility.uuid());
    let read_store = Db::open(&world.cluster.data_dir().join("read.db"), DbSettings::default()).await.unwrap();
    read_store.begin().await.unwrap().commit_with(vec![insert]).await.unwrap();
}

#[tokio::test]
async fn whatever_form_it_is_written_in() {
    let world = World::new().await;
    folded(&world).await;
    let found =
        ["birth_date=1980-02-29", "birth_date=19800229", "name=ada", "name=%20EXAM%20%20ad%20", "name=a%20a%20e%20e"];
    let missed = ["birth_date=1980-02-28", "name=ada%20other", "name=mary"];
    for (queries, count) in [(&found[..], 1), (&missed[..], 0)] {
        for query in queries {
            let told = search(&world, query).await;
            assert_eq!(told.status, StatusCode::OK, "{query}: {:?}", told.body);
            assert_eq!(told.body["items"].as_array().map(Vec::len), Some(count), "{query}: {:?}", told.body);
        }
    }
}

/// Guards: who asks by nothing is not shown everybody, no word is passed over, and no server sees what it cannot take.
#[tokio::test]
async fn and_refuses_what_nobody_is_found_by() {
    let world = World::new().await;
    folded(&world).await;
    let no_names =
        ["name=", "name=%20", "name=%00", "name=ada%00", "name=a%07b", "name=%09", "name=ada%20b%20c%20d%20e"];
    for query in no_names.into_iter().chain(["birth_date=", "birth_date=%00", "birth_date=1980", "limit=5"]) {
        let told = search(&world, query).await;
        assert_eq!(
            (told.status, told.problem()),
            (StatusCode::BAD_REQUEST, "invalid-query"),
            "{query}: {:?}",
            told.body
        );
    }
}
