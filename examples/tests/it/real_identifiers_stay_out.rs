//! Whatever could belong to a real person is refused by a named rule and never repeated.

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::shard::ShardId;
use serde_json::{Value, json};

use crate::world::{Answered, World};

async fn patched(world: &World, path: &str, key: &str, body: &Value) -> Answered {
    let request =
        Request::patch(path).header("txn-token", world.clinician()).header("content-type", "application/json");
    world.send(request.header("idempotency-key", key).body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn identifiers_that_could_be_real_are_refused() {
    let world = World::new().await;
    let cases = [
        ("syn_number", "123-45-6789"),
        ("syn_number", "912-78-1234"),
        ("syn_number", "1234567893"),
        ("telephone", "202-456-1111"),
        ("telephone", "202-555-0142 -------------------------"),
        ("mail", "ada@gmail.com"),
        ("mail", "123-45-6789@example.org"),
        ("mail", "1234567893@example.org"),
        ("address", "SSN 123-45-6789"),
        ("address", "SSN 123.45.6789"),
        ("address", "SSN 123\u{2013}45\u{2013}6789"),
        ("address", "SSN \u{ff11}\u{ff12}\u{ff13}-\u{ff14}\u{ff15}-\u{ff16}\u{ff17}\u{ff18}\u{ff19}"),
        ("address", "SSN \u{661}\u{662}\u{663}-\u{664}\u{665}-\u{666}\u{667}\u{668}\u{669}"),
        ("address", "itin 912781234"),
        ("address", "NPI 1234567893"),
    ];
    for (number, (field, value)) in cases.into_iter().enumerate() {
        let mut body = world.registration();
        body[field] = json!(value);
        let refused = world.post(&world.clinician(), "/v1/patients", &format!("k{number}"), &body).await;
        let found = (refused.status, refused.problem());
        assert_eq!(found, (StatusCode::UNPROCESSABLE_ENTITY, "real-identifier"), "{field} {value}: {}", refused.body);
        assert!(!refused.body.to_string().contains(value), "{field} was repeated");
    }
}

#[tokio::test]
async fn a_note_takes_no_real_identifier_either() {
    let world = World::new().await;
    let token = world.clinician();
    let base = format!("/v1/patients/{}/encounters", world.registered("a").await.id());
    let encounter = world.post(&token, &base, "s", &world.scheduling()).await.id();
    let _started =
        world.post(&token, &format!("{base}/{encounter}/transitions"), "t", &json!({"to": "in_progress"})).await;
    let notes = format!("{base}/{encounter}/notes");
    let refused = world.post(&token, &notes, "n", &json!({"text": "ssn is 123-45-6789"})).await;
    assert_eq!(refused.problem(), "real-identifier");
    let refused = world.post(&token, &notes, "o", &json!({"text": "ssn is 123 45 6789, or 123.45.6789"})).await;
    assert_eq!(refused.problem(), "real-identifier");
    for text in ["pressure 120/80 on 2026-01-15, room 12", "glucose 110, 98, 1200", "120/80/2026"] {
        let key = text.replace(' ', "_");
        let taken = world.post(&token, &notes, &key, &json!({"text": text})).await;
        assert_eq!(taken.status, StatusCode::CREATED, "{text}: {:?}", taken.body);
    }
}

/// Guard: the rule is for what comes in. A row of before it is read, listed and corrected.
#[tokio::test]
async fn what_was_taken_before_a_rule_stays_within_reach() {
    let world = World::new().await;
    let token = world.clinician();
    let patient = world.registered("a").await.id();
    let of_patient = format!("/v1/patients/{patient}");
    let encounters = format!("{of_patient}/encounters");
    let encounter = world.post(&token, &encounters, "s", &world.scheduling()).await.id();
    let transitions = format!("{encounters}/{encounter}/transitions");
    let _started = world.post(&token, &transitions, "t", &json!({"to": "in_progress"})).await;
    let notes = format!("{encounters}/{encounter}/notes");
    let _noted = world.post(&token, &notes, "n", &json!({"text": "of before"})).await;
    let (mail, note, long) =
        ("person.123456789@example.org", "ssn 123 45 6789", format!("202-555-0142{}", " ".repeat(40)));
    for shard in 0..2 {
        let mut tx = world.cluster.database(ShardId(shard)).unwrap().begin().await.unwrap();
        let patients = format!("UPDATE patient_row SET mail = '{mail}', address = '{note}', telephone = '{long}'");
        tx.script(&format!("{patients}; UPDATE encounter_row SET notes = replace(notes, 'of before', '{note}')"))
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    let shown = world.get(&token, &of_patient).await;
    assert_eq!((shown.status, &shown.body["mail"]), (StatusCode::OK, &json!(mail)), "{:?}", shown.body);
    let shown = world.get(&token, &format!("/v1/encounters/{encounter}")).await;
    assert_eq!(shown.body["notes"][0]["text"], note, "{:?}", shown.body);
    let listed = world.get(&token, &encounters).await;
    assert_eq!(listed.body["items"][0]["notes"][0]["text"], note, "{:?}", listed.body);

    let refused = patched(&world, &of_patient, "c", &json!({"address": note})).await;
    assert_eq!(refused.problem(), "real-identifier");
    let corrected = patched(&world, &of_patient, "d", &json!({"mail": "ada@example.org"})).await;
    assert_eq!(
        (corrected.status, &corrected.body["mail"]),
        (StatusCode::OK, &json!("ada@example.org")),
        "{:?}",
        corrected.body
    );
    let noted = world.post(&token, &notes, "m", &json!({"text": "of today"})).await;
    assert_eq!(
        (noted.status, &noted.body["notes"][1]["text"]),
        (StatusCode::CREATED, &json!("of today")),
        "{:?}",
        noted.body
    );
    let lineage = world.get(&world.session("sre", &[], None), &format!("/v1/admin/lineage/patient/{patient}")).await;
    assert_eq!(lineage.status, StatusCode::OK, "{:?}", lineage.body);
}

/// Guard: the audit trail shows whom an account is for.
#[tokio::test]
async fn nor_does_reference_data() {
    let world = World::new().await;
    let admin = world.session("admin", &[], None);
    let cases = [
        ("accounts", json!({"subject": "123-45-6789", "role": "clinician", "patient": null}), "123-45-6789"),
        ("accounts", json!({"subject": "npi:1234567893", "role": "clinician", "patient": null}), "1234567893"),
        ("facilities", json!({"name": "Clinic of 123-45-6789", "state_code": "OR"}), "123-45-6789"),
    ];
    for (number, (kind, body, value)) in cases.into_iter().enumerate() {
        let refused = world.post(&admin, &format!("/v1/admin/{kind}"), &format!("k{number}"), &body).await;
        let found = (refused.status, refused.problem());
        assert_eq!(found, (StatusCode::UNPROCESSABLE_ENTITY, "real-identifier"), "{value}: {}", refused.body);
        assert!(!refused.body.to_string().contains(value), "{value} was repeated");
    }
    // What an identity provider makes of UUIDs and the like is opaque, whatever digits are in it.
    let opaque = [
        "3f2a1bcd-0000-4000-8000-a123456789bc",
        "kc:3f2a1bcd-0000-4000-8000-a123456789bc",
        "auth0.5f7ca123456789c004bbafe8",
    ];
    for subject in opaque {
        let body = json!({"subject": subject, "role": "clinician", "patient": null});
        let made = world.post(&admin, "/v1/admin/accounts", subject, &body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    }
}

/// Guard: the row of an operation and the trail of its shard show its reason.
#[tokio::test]
async fn nor_do_reasons_of_operators() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    for (number, path) in ["degrade", "accept-loss"].into_iter().enumerate() {
        let (path, key) = (format!("/v1/admin/shards/0/{path}"), format!("k{number}"));
        let refused = world.post(&sre, &path, &key, &json!({"reason": "123-45-6789"})).await;
        assert_eq!((refused.status.as_u16(), refused.problem()), (422, "real-identifier"), "{path}: {}", refused.body);
        assert!(!refused.body.to_string().contains("123-45-6789"), "{path}: the reason was repeated");
        // The number of a ticket is none; files have no standby to do without.
        let taken = world.post(&sre, &path, &format!("t{number}"), &json!({"reason": "CHG-0042"})).await;
        assert_ne!(taken.status.as_u16(), 422, "{path}: {}", taken.body);
    }
    let operations = world.get(&sre, "/v1/admin/operations").await;
    assert!(!operations.body.to_string().contains("123-45-6789"), "{}", operations.body);
}
