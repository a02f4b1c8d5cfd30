//! Whoever names a version in `If-Match` is never passed over: it is compared, or the header is refused.

use http::{Method, Request};
use pim_lab::ids::PatientId;
use serde_json::json;

use crate::bodies_are_what_handlers_take::{Described, all, token_for};
use crate::cycles_miss_no_claim::draft;
use crate::world::{Answered, World};

/// One of everything that has a version.
struct There {
    world: World,
    patient: PatientId,
    encounter: String,
    appointment: String,
    claim: String,
}

impl There {
    async fn new() -> Self {
        let world = World::new().await;
        let (token, sre) = (world.clinician(), world.session("sre", &[], None));
        let patient: PatientId = world.registered("a").await.id().parse().unwrap();
        let of_patient = format!("/v1/patients/{patient}");
        let encounters = format!("{of_patient}/encounters");
        let encounter = world.post(&token, &encounters, "planned", &world.scheduling()).await.id();
        let transitions = format!("{encounters}/{encounter}/transitions");
        let started = world.post(&token, &transitions, "started", &json!({"to": "in_progress"})).await;
        assert!(started.status.is_success(), "{:?}", started.body);
        let mut booking = world.scheduling();
        booking.as_object_mut().unwrap().remove("kind");
        let appointment = world.post(&token, &format!("{of_patient}/appointments"), "booked", &booking).await.id();
        let claim = draft(&world, patient, "visit").await.to_string();
        let armed = Request::put("/v1/admin/chaos/flags/outbox-relay").header("txn-token", &sre);
        let armed = armed.header("content-type", "application/json").header("idempotency-key", "armed");
        let fault = json!({"fault": "error", "percent": 1, "seconds": 30});
        let armed = world.send(armed.body(fault.to_string().into()).unwrap()).await;
        assert_eq!((armed.status.as_u16(), armed.etag()), (200, "\"1\""), "{:?}", armed.body);
        Self { world, patient, encounter, appointment, claim }
    }

    /// What the document calls good, of what is there, in this version.
    async fn asked(&self, described: &Described, key: &str, version: &str) -> Answered {
        let route = described.route;
        let patient = self.patient.to_string();
        let id = if route.template.contains("/providers/") {
            self.world.provider.to_string()
        } else {
            self.world.facility.to_string()
        };
        let of = |part: &str| match part {
            "{patient_id}" => patient.clone(),
            "{encounter_id}" => self.encounter.clone(),
            "{appointment_id}" => self.appointment.clone(),
            "{claim_id}" => self.claim.clone(),
            "{point}" => "outbox-relay".to_owned(),
            "{id}" => id.clone(),
            named if named.starts_with('{') => patient.clone(),
            literal => literal.to_owned(),
        };
        let path = route.template.split('/').map(of).collect::<Vec<_>>().join("/");
        let request = Request::builder().method(Method::from_bytes(route.method.as_bytes()).unwrap()).uri(path);
        let request = request.header("txn-token", token_for(&self.world, route, &patient));
        let request = request.header("content-type", "application/json").header("idempotency-key", key);
        let request = request.header("if-match", version);
        self.world.send(request.body(described.good().to_string().into()).unwrap()).await
    }
}

/// Guard: nobody who has seen another version overwrites what they have not seen.
#[tokio::test]
async fn or_the_header_is_refused() {
    let there = There::new().await;
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for described in all() {
        let is_taken = described.headers().contains(&"If-Match");
        compared += usize::from(is_taken);
        let expected = if is_taken { (412, "stale-version") } else { (400, "bad-request") };
        let label = described.route.label;
        let answered = there.asked(&described, "99", "\"99\"").await;
        if (answered.status.as_u16(), answered.problem()) != expected {
            wrong.push(format!("{label}, documented: {is_taken}: {:?}", answered.body));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(compared, 16, "writes that take a version");
}

/// The version that was seen goes through.
#[tokio::test]
async fn the_one_in_force_is_taken() {
    let there = There::new().await;
    let is_fault = |described: &Described| described.route.template == "/v1/admin/chaos/flags/{point}";
    for (version, described) in all().into_iter().filter(is_fault).enumerate() {
        let answered = there.asked(&described, "k", &format!("\"{}\"", version + 1)).await;
        let label = described.route.label;
        assert_eq!((answered.status.as_u16(), answered.etag()), (200, &*format!("\"{}\"", version + 2)), "{label}");
    }
}
