//! What the outboxes still hold, and who has not told.

use anyhow::Result;
use serde_json::Value;

use super::Role;
use super::api::Api;
use super::document::print;
use crate::exit::Failure;

/// Prints what they hold; what those that did not answer hold is not known.
pub(super) fn run(json: bool) -> Result<()> {
    let document = Api::of(Role::Sre)?.get("/v1/admin/outbox")?;
    print("outbox", &document, json);
    match untold(&document) {
        Some(sentence) => Err(Failure::Precondition.because(sentence)),
        None => Ok(()),
    }
}

/// Whose part is missing, if anybody's is.
fn untold(document: &Value) -> Option<String> {
    let failed = document["failed"].as_array().filter(|failed| !failed.is_empty())?;
    let place = |it: &Value| it["shard"].as_u64().map_or("the control database".to_owned(), |id| format!("shard {id}"));
    let places: Vec<_> = failed.iter().map(place).collect();
    Some(format!("what these still have to send is not known: {}", places.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::untold;

    #[test]
    fn a_part_is_not_taken_for_all() {
        assert_eq!(untold(&json!({"backlog": 0, "items": [], "failed": []})), None);
        let failed = json!([{"shard": 1, "problem": "unavailable"}, {"shard": null, "problem": "unavailable"}]);
        let told = untold(&json!({"backlog": null, "items": [], "failed": failed})).expect("is told");
        assert!(told.contains("shard 1, the control database"), "{told}");
    }
}
