//! An encounter is as large as it may be at most: each change of it is kept, answered and listed whole.

use http::StatusCode;
use pim_core::shard::ShardId;
use pim_data::backend::Statement;
use pim_lab::encounter::{NOTE_LENGTH_MAX, TEXT_BYTES_MAX};
use serde_json::{Value, json};

use crate::world::{Answered, World};

/// Beside the text: what every row has, and marks that JSON writes as two characters.
const ROW_BYTES_MAX: usize = TEXT_BYTES_MAX + 16 * 1024;

/// The longest text of each kind of rows, of all shards.
async fn longest(world: &World, select: &'static str) -> usize {
    let mut longest = 0;
    for shard in 0..2 {
        let rows = world.cluster.database(ShardId(shard)).unwrap().query(Statement::sqlite(select)).await.unwrap();
        longest = longest.max(usize::try_from(rows[0].count(0).unwrap()).unwrap());
    }
    longest
}

async fn noted(world: &World, encounter: &str, key: usize, text: &str) -> Answered {
    let path = format!("{encounter}/notes");
    world.post(&world.clinician(), &path, &format!("note-{key}"), &json!({"text": text})).await
}

/// Guard: notes of full length in characters of four bytes make no encounter of more than a megabyte.
#[tokio::test]
async fn of_text_by_bytes() {
    let world = World::new().await;
    let token = world.clinician();
    let encounters = format!("/v1/patients/{}/encounters", world.registered("a").await.id());
    let encounter = format!("{encounters}/{}", world.post(&token, &encounters, "s", &world.scheduling()).await.id());
    let _started = world.post(&token, &format!("{encounter}/transitions"), "t", &json!({"to": "in_progress"})).await;
    let long = "\u{1F9EA}".repeat(NOTE_LENGTH_MAX);
    let mut taken = 0;
    let refused = loop {
        let answered = noted(&world, &encounter, taken, &long).await;
        if answered.status != StatusCode::CREATED {
            break answered;
        }
        taken += 1;
        assert!(taken <= TEXT_BYTES_MAX / long.len(), "{taken} notes of full length were taken");
    };
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "invalid-body"), "{:?}", refused.body);
    assert_eq!(refused.body["text_bytes_max"], TEXT_BYTES_MAX, "the bound is named: {:?}", refused.body);
    assert_eq!(taken, TEXT_BYTES_MAX / long.len());
    let left = TEXT_BYTES_MAX - taken * long.len();
    let filled = noted(&world, &encounter, taken, &"a".repeat(left)).await;
    assert_eq!(filled.status, StatusCode::CREATED, "{left} bytes were left: {:?}", filled.body);
    assert_eq!(noted(&world, &encounter, taken + 1, "a").await.body["text_bytes_max"], TEXT_BYTES_MAX);
    let found = world.post(&token, &format!("{encounter}/diagnoses"), "d", &json!({"code": "E11.9"})).await;
    assert_eq!(found.status, StatusCode::CREATED, "what has no text is taken: {:?}", found.body);

    let history = "SELECT coalesce(max(length(CAST(notes AS BLOB))), 0) FROM encounter_history";
    let answers = "SELECT coalesce(max(length(CAST(answer AS BLOB))), 0) FROM idempotency";
    let (row, answer) = (longest(&world, history).await, longest(&world, answers).await);
    let listed = world.get(&token, &encounters).await;
    let page = listed.body["items"].as_array().map_or(0, |items| Value::from(items.clone()).to_string().len());
    for (what, bytes) in [("a row", row), ("a stored answer", answer), ("a page of one", page)] {
        assert!((TEXT_BYTES_MAX..=ROW_BYTES_MAX).contains(&bytes), "{what} has {bytes} bytes");
    }
}
