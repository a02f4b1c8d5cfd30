//! The table.

use pim_lab::ids::PatientId;
use serde_json::{Value, json};

use super::case::{Case, Who};
use super::place::Place;

const BODY_BYTES_MAX: usize = pim_lab::rig::BODY_BYTES_MAX;

pub(super) fn all(place: &Place) -> Vec<Case> {
    let rooms = [
        bodies(place),
        records(place),
        headers(place),
        queries(place),
        ids(place),
        paths(),
        callers(place),
        operations(place),
    ];
    rooms.concat()
}

fn with(mut body: Value, member: &str, value: Value) -> Value {
    body[member] = value;
    body
}

/// Bodies that are none, or do not fit.
fn bodies(place: &Place) -> Vec<Case> {
    let good = place.clinician.registration(7);
    let post = |name, body: &Value, status, problem| Case::post(name, "/v1/patients", body, status, problem);
    let raw = |name, body: Vec<u8>, status, problem| post(name, &good, status, problem).body(body);
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let without = |member: &str| {
        let mut body = good.clone();
        body.as_object_mut().expect("an object").remove(member);
        body
    };
    let huge = with(good.clone(), "given_name", json!("a".repeat(BODY_BYTES_MAX)));
    vec![
        post("a body above the bound", &huge, 413, "body-too-large"),
        raw("a body far above the bound", vec![b' '; 4 << 20], 413, "body-too-large"),
        raw("a large body that is announced", vec![b' '; 10], 413, "body-too-large")
            .header("content-length", "9999999"),
        raw("a body that never comes", vec![b' '; 10], 408, "body-late").header("content-length", "100"),
        raw("a large body in chunks", chunked(BODY_BYTES_MAX + 1), 413, "body-too-large")
            .header("transfer-encoding", "chunked"),
        post("no content type", &good, 415, "unsupported-media-type").without("content-type"),
        post("text", &good, 415, "unsupported-media-type").header("content-type", "text/plain"),
        post("a form", &good, 415, "unsupported-media-type")
            .header("content-type", "application/x-www-form-urlencoded"),
        post("nearly json", &good, 415, "unsupported-media-type").header("content-type", "application/jsonp"),
        raw("half an object", b"{\"given_name\": ".to_vec(), 400, "malformed-json"),
        raw("two objects", b"{} {}".to_vec(), 400, "malformed-json"),
        raw("no utf-8", b"{\"given_name\": \"\xff\xfe\"}".to_vec(), 400, "malformed-json"),
        raw("nested too deeply", deep.into_bytes(), 400, "malformed-json"),
        raw("nothing but spaces", b"   ".to_vec(), 400, "malformed-json"),
        raw("a list", b"[]".to_vec(), 422, "invalid-body"),
        raw("null", b"null".to_vec(), 422, "invalid-body"),
        post("nothing inside", &json!({}), 422, "invalid-body"),
        post("unknown sex", &with(good.clone(), "sex", json!("maybe")), 422, "invalid-body"),
        post("a member nobody knows", &with(good.clone(), "is_admin", json!(true)), 422, "invalid-body"),
        post("a number for a name", &with(good.clone(), "given_name", json!(7)), 422, "invalid-body"),
        post("an empty name", &with(good.clone(), "given_name", json!("")), 422, "invalid-body"),
        post("a day that there is not", &with(good.clone(), "birth_date", json!("1980-02-30")), 422, "invalid-body"),
        post("no birth date", &without("birth_date"), 422, "invalid-body"),
        post("no facility", &without("facility_id"), 422, "invalid-body"),
        post("a facility that is no id", &with(good.clone(), "facility_id", json!("north")), 422, "invalid-body"),
        post(
            "a number that could be real",
            &with(good.clone(), "syn_number", json!("123-45-6789")),
            422,
            "real-identifier",
        ),
    ]
}

/// A body of so many bytes in chunks of 8 KiB.
fn chunked(bytes: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..bytes.div_ceil(8192) {
        body.extend_from_slice(b"2000\r\n");
        body.extend_from_slice(&[b' '; 8192]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

/// Records and their states.
fn records(place: &Place) -> Vec<Case> {
    let Place { patient, stranger, encounter, claim, clinician, .. } = place;
    let patient_path = format!("/v1/patients/{patient}");
    let moves = |of: &str| format!("{patient_path}{of}/transitions");
    let encounter_path = format!("/encounters/{encounter}");
    let (to_encounter, to_claim) = (moves(&encounter_path), moves(&format!("/claims/{claim}")));
    let scheduling = json!({"facility_id": clinician.facility, "provider_id": clinician.provider, "kind": "telehealth",
        "scheduled_at": "2026-03-02T09:00:00Z"});
    let encounters = format!("{patient_path}/encounters");
    let payments = format!("{patient_path}/claims/{claim}/payments");
    let lines = format!("{patient_path}/claims/{claim}/lines");
    let amount = json!({"value": "10.00", "currency": "USD"});
    let line = |name, value: &str| {
        let body = json!({"code": "G0438", "amount": with(amount.clone(), "value", json!(value))});
        Case::post(name, &*lines, &body, 422, "invalid-body").by(Who::Admin)
    };
    let diagnoses = format!("{patient_path}{encounter_path}/diagnoses");
    let notes = format!("{patient_path}{encounter_path}/notes");
    vec![
        Case::post("a patient back to registered", moves(""), &json!({"to": "registered"}), 409, "illegal-transition"),
        Case::post("a patient to nowhere", moves(""), &json!({"to": "gone"}), 422, "invalid-body"),
        Case::post(
            "an encounter skips a state",
            &*to_encounter,
            &json!({"to": "completed"}),
            409,
            "illegal-transition",
        ),
        Case::post("an encounter to nowhere", &*to_encounter, &json!({"to": "held"}), 422, "invalid-body"),
        Case::post("a claim skips a state", &*to_claim, &json!({"to": "closed"}), 409, "illegal-transition")
            .by(Who::Admin),
        Case::post("a diagnosis before the start", &*diagnoses, &json!({"code": "E11.9"}), 409, "illegal-transition"),
        Case::post("a code that is none", &*diagnoses, &json!({"code": "nonsense"}), 422, "invalid-body"),
        Case::post("a note with a nul", &*notes, &json!({"text": "no\0pain"}), 422, "invalid-body"),
        Case::post("a note that moves a cursor", &*notes, &json!({"text": "no\u{1b}[2Jpain"}), 422, "invalid-body"),
        Case::post(
            "a payment of a draft",
            &*payments,
            &json!({"amount": amount, "method": "card"}),
            409,
            "illegal-transition",
        )
        .by(Who::Admin),
        Case::post(
            "a payment by nothing",
            &*payments,
            &json!({"amount": amount, "method": "shells"}),
            422,
            "invalid-body",
        )
        .by(Who::Admin),
        Case::post(
            "a line in no currency",
            &*lines,
            &json!({"code": "G0438", "amount": {"value": "1.00", "currency": "XXX"}}),
            422,
            "invalid-body",
        )
        .by(Who::Admin),
        line("a line of an amount that is none when rounded", "0.0099999999999999999999999999999"),
        line("a line of a power", "1e2"),
        line("a line of thousands", "1_000"),
        Case::post(
            "a kind of visit nobody knows",
            &*encounters,
            &with(scheduling.clone(), "kind", json!("seance")),
            422,
            "invalid-body",
        ),
        Case::post(
            "no time",
            &*encounters,
            &with(scheduling.clone(), "scheduled_at", json!("soon")),
            422,
            "invalid-body",
        ),
        Case::post(
            "a provider who is not there",
            &*encounters,
            &with(scheduling.clone(), "provider_id", json!(stranger)),
            422,
            "unknown-reference",
        ),
        Case::post(
            "a facility that is not there",
            &*encounters,
            &with(scheduling, "facility_id", json!(stranger)),
            422,
            "unknown-reference",
        ),
        Case::write("an old version", "PATCH", &*patient_path, &json!({"given_name": "Bela"}), (412, "stale-version"))
            .header("if-match", "\"99\""),
        Case::post(
            "an old version of an encounter",
            &*to_encounter,
            &json!({"to": "in_progress"}),
            412,
            "stale-version",
        )
        .header("if-match", "\"9\""),
    ]
}

/// Headers of a write.
fn headers(place: &Place) -> Vec<Case> {
    let good = place.clinician.registration(8);
    let post = |name, status, problem| Case::post(name, "/v1/patients", &good, status, problem);
    let corrected = |name| {
        let (patient, body) = (format!("/v1/patients/{}", place.patient), json!({"given_name": "Bela"}));
        Case::write(name, "PATCH", patient, &body, (400, "bad-request"))
    };
    vec![
        post("no key", 400, "idempotency-key-missing").without("idempotency-key"),
        post("an empty key", 400, "idempotency-key-invalid").header("idempotency-key", ""),
        post("a key with a space", 400, "idempotency-key-invalid").header("idempotency-key", "a b"),
        post("a key that is too long", 400, "idempotency-key-invalid").header("idempotency-key", "k".repeat(129)),
        post("a version of what is not there", 400, "bad-request").header("if-match", "\"1\""),
        corrected("a version that is no tag").header("if-match", "3"),
        corrected("any version").header("if-match", "*"),
        post("a token of nothing", 400, "bad-request").header("x-pim-token", "7.nonsense"),
        post("a header with an underscore", 400, "bad-request").header("x_pim_role", "admin"),
        post("a connection that names a header", 400, "bad-request").header("connection", "content-type"),
        post("an upgrade", 400, "bad-request").header("upgrade", "websocket"),
    ]
}

/// Lists and searches.
fn queries(place: &Place) -> Vec<Case> {
    let list = |query: &str| format!("/v1/patients/{}/encounters?{query}", place.patient);
    let get = |name, path: String, problem| Case::get(name, path, 400, problem);
    vec![
        get("a cursor that is none", list("cursor=zz"), "invalid-cursor"),
        get("a cursor with other bytes", list("cursor=____"), "invalid-cursor"),
        // base64 of `1:nonsense`: of the right form, but not of this list.
        get("a cursor of another list", list("cursor=MTpub25zZW5zZQ"), "invalid-cursor"),
        get("a limit of nothing", list("limit=0"), "invalid-query"),
        get("a limit above the bound", list("limit=201"), "invalid-query"),
        get("a limit that is no number", list("limit=many"), "invalid-query"),
        get("a parameter nobody knows", list("order=name"), "invalid-query"),
        get("a search for nothing", "/v1/patients".to_owned(), "invalid-query"),
        get("a search by no date", "/v1/patients?birth_date=yesterday".to_owned(), "invalid-query"),
        get("a search at no facility", "/v1/patients?facility=north".to_owned(), "invalid-query"),
        get(
            "a timeline's cursor",
            format!("/v1/patients/{}/timeline?cursor=MTpub25zZW5zZQ", place.patient),
            "invalid-cursor",
        ),
        get("revenue of no time", "/v1/revenue?from=now&to=then".to_owned(), "invalid-query").by(Who::Admin),
        get("lineage as of no time", format!("/v1/admin/lineage/patient/{}?as_of=now", place.patient), "invalid-query")
            .by(Who::Sre),
        get("a trail of nobody", "/v1/admin/audit".to_owned(), "invalid-query").by(Who::Sre),
        get("a trail of no request", "/v1/admin/audit?request_id=7".to_owned(), "invalid-id").by(Who::Sre),
        // base64 of `1:0/NUL/00000000-0000-8000-8000-000000000001`.
        get(
            "a cursor with a nul",
            "/v1/admin/dead-letters?cursor=MTowLwAvMDAwMDAwMDAtMDAwMC04MDAwLTgwMDAtMDAwMDAwMDAwMDAx".to_owned(),
            "invalid-cursor",
        )
        .by(Who::Sre),
        get("a trail of nobody's name", "/v1/admin/audit?user_id=%00".to_owned(), "invalid-id").by(Who::Sre),
        get("a trail of an address", "/v1/admin/audit?user_id=ada@example.org".to_owned(), "invalid-id").by(Who::Sre),
        get("a trail's limit", "/v1/admin/audit?user_id=x&limit=201".to_owned(), "invalid-query").by(Who::Sre),
        get("a trail's cursor", "/v1/admin/audit?user_id=x&cursor=MTpub25zZW5zZQ".to_owned(), "invalid-cursor")
            .by(Who::Sre),
        get("a run since no time", "/v1/admin/runs/summary?since=then".to_owned(), "invalid-query").by(Who::Sre),
    ]
}

/// Ids that are none, or do not live where they say.
fn ids(place: &Place) -> Vec<Case> {
    let Place { patient, elsewhere, .. } = place;
    let moves = |patient: &str, encounter: &str| format!("/v1/patients/{patient}/encounters/{encounter}/transitions");
    let to = json!({"to": "in_progress"});
    vec![
        Case::get("a patient that is no id", "/v1/patients/42", 400, "invalid-id"),
        Case::get("an id in braces", format!("/v1/patients/%7B{patient}%7D"), 400, "invalid-id"),
        Case::get("an id without hyphens", format!("/v1/patients/{}", patient.replace('-', "")), 400, "invalid-id"),
        Case::get(
            "an id of a version that is never minted",
            "/v1/patients/00000000-0000-1000-8000-000000000000",
            400,
            "invalid-id",
        ),
        Case::get("nobody", format!("/v1/patients/{}", PatientId::derive(b"nobody", 0)), 404, "not-found"),
        Case::get("no encounter", format!("/v1/encounters/{patient}"), 404, "not-found"),
        Case::post("an encounter of another bucket", moves(patient, elsewhere), &to, 404, "wrong-bucket"),
        Case::post(
            "a diagnosis in another bucket",
            format!("/v1/patients/{patient}/encounters/{elsewhere}/diagnoses"),
            &json!({"code": "I10"}),
            404,
            "wrong-bucket",
        ),
        Case::post(
            "a claim of another bucket",
            format!("/v1/patients/{patient}/claims/{elsewhere}/transitions"),
            &json!({"to": "submitted"}),
            404,
            "wrong-bucket",
        )
        .by(Who::Admin),
        Case::post("an encounter that is no id", moves(patient, "x"), &to, 400, "invalid-id"),
        Case::get("the journey of no request", "/v1/admin/journeys/x", 400, "invalid-id").by(Who::Sre),
        Case::get("the lineage of no id", "/v1/admin/lineage/patient/x", 400, "invalid-id").by(Who::Sre),
        Case::get("the lineage of a thing", format!("/v1/admin/lineage/chair/{patient}"), 404, "not-found")
            .by(Who::Sre),
    ]
}

/// Paths that two readers could read differently, and those that lead nowhere.
fn paths() -> Vec<Case> {
    let trick = |name, path: &str| Case::get(name, path, 400, "bad-path");
    vec![
        trick("dots", "/v1/patients/../admin/outbox"),
        trick("dots at the end", "/v1/patients/.."),
        trick("one dot", "/v1/./patients"),
        trick("encoded dots", "/v1/patients/%2e%2e/admin/outbox"),
        trick("an encoded slash", "/v1/patients%2f..%2fadmin"),
        trick("an encoded backslash", "/v1/patients%5cadmin"),
        trick("a double slash", "/v1//admin/outbox"),
        trick("a parameter in the path", "/v1/patients;role=sre"),
        trick("an encoded nul", "/v1/patients/%00"),
        trick("half an encoding", "/v1/patients/%2"),
        trick("no utf-8", "/v1/patients/%ff%fe"),
        Case::get("a path nobody serves", "/v1/nothing", 404, "not-found"),
        Case::get("a slash at the end", "/v1/patients/", 404, "not-found"),
        Case::get("another case", "/v1/Patients", 404, "not-found"),
        Case::get("an internal path", "/internal/spans", 404, "not-found").by(Who::Sre),
        Case::get("a path for writes alone", "/v1/dev/token", 405, "method-not-allowed"),
        Case::write("a method that it does not know", "PUT", "/v1/patients", &json!({}), (405, "method-not-allowed")),
        Case::write("a method that nobody knows", "BREW", "/v1/patients", &json!({}), (405, "method-not-allowed")),
    ]
}

/// Who they say they are.
fn callers(place: &Place) -> Vec<Case> {
    let sign_in = |name, body: Value, status, problem| {
        Case::post(name, "/v1/dev/token", &body, status, problem).by(Who::Nobody).without("idempotency-key")
    };
    let account = |name, role: &str| {
        let body = json!({"subject": "s", "role": role, "facilities": [], "patient": null});
        Case::post(name, "/v1/admin/accounts", &body, 422, "invalid-body").by(Who::Admin)
    };
    let search = |name, status, problem| Case::get(name, "/v1/patients?name=a", status, problem);
    let admin = "/v1/admin/outbox";
    vec![
        sign_in("a role nobody knows", json!({"role": "janitor"}), 422, "invalid-body"),
        sign_in("a role of our own programs", json!({"role": "service"}), 422, "invalid-body"),
        sign_in("a persona nobody knows", json!({"subject": "clinician-999"}), 422, "invalid-body"),
        sign_in(
            "a known persona in a role of our own",
            json!({"subject": "x", "role": "service"}),
            422,
            "invalid-body",
        ),
        sign_in("nobody at all", json!({}), 422, "invalid-body"),
        sign_in("a claim of one's own", json!({"role": "patient", "scope": "all"}), 422, "invalid-body"),
        sign_in("half a sign-in", json!(null), 400, "malformed-json").body(b"{".to_vec()),
        sign_in("a sign-in in text", json!({"role": "sre"}), 415, "unsupported-media-type")
            .header("content-type", "text/plain"),
        sign_in("a large sign-in", json!({"role": "a".repeat(BODY_BYTES_MAX)}), 413, "body-too-large"),
        account("an account in a role nobody knows", "janitor"),
        account("an account in a role of our own", "service"),
        search("no token", 401, "unauthenticated").by(Who::Nobody),
        search("another scheme", 401, "unauthenticated").header("authorization", "Basic YTpi"),
        search("a token that is none", 401, "token-malformed").header("authorization", "Bearer garbage"),
        search("an operation's role", 403, "forbidden").by(Who::Admin),
        Case::get("a patient among operators", admin, 403, "forbidden").by(Who::Patient),
        Case::get("a clinician among operators", admin, 403, "forbidden"),
        Case::post("a patient who registers", "/v1/patients", &place.clinician.registration(9), 403, "forbidden")
            .by(Who::Patient),
        Case::get("somebody else's record", format!("/v1/patients/{}", place.patient), 404, "not-found")
            .by(Who::Patient),
    ]
}

/// Operations that cannot be done. Each is refused before it becomes one, so that it leaves no row either.
fn operations(place: &Place) -> Vec<Case> {
    let post =
        |name, path: &str, body: Value, status, problem| Case::post(name, path, &body, status, problem).by(Who::Sre);
    let fault = json!({"fault": "error", "percent": 10, "seconds": 5});
    let arm = |name, point: &str, body: Value, expected| {
        Case::write(name, "PUT", format!("/v1/admin/chaos/flags/{point}"), &body, expected).by(Who::Sre)
    };
    let admin = |name, path: &str, body: Value| Case::post(name, path, &body, 422, "invalid-body").by(Who::Admin);
    vec![
        post("a map that is none", "/v1/admin/shards/map", json!({"map": "format = 9"}), 422, "invalid-shard-map"),
        post("a map of another type", "/v1/admin/shards/map", json!({"map": 7}), 422, "invalid-body"),
        post("a way back to no map", "/v1/admin/shards/map/rollback", json!({"to": 99}), 422, "invalid-shard-map"),
        post("a way back without a map", "/v1/admin/shards/map/rollback", json!({}), 422, "invalid-body"),
        post("a projection nobody has", "/v1/admin/projections/horoscope/rebuild", json!({}), 404, "not-found"),
        post(
            "a consumer nobody has",
            "/v1/admin/dead-letters/horoscope/00000000-0000-0000-0000-000000000001/unpark",
            json!({}),
            404,
            "unknown-consumer",
        ),
        post("a key that is none", "/v1/admin/dead-letters/patient_search/x/unpark", json!({}), 400, "invalid-id"),
        post(
            "a replay of something",
            "/v1/admin/dead-letters/replay",
            json!({"selection": {"colour": "red"}}),
            422,
            "invalid-body",
        ),
        post(
            "a replay for nobody",
            "/v1/admin/dead-letters/replay",
            json!({"selection": {"consumer": "horoscope"}}),
            404,
            "unknown-consumer",
        ),
        post(
            "a replay of what never happens",
            "/v1/admin/dead-letters/replay",
            json!({"selection": {"event_type": "moon.rose"}}),
            404,
            "unknown-event-type",
        ),
        admin(
            "an account by its mail address",
            "/v1/admin/accounts",
            json!({"subject": "ada@example.org", "role": "clinician", "facilities": [], "patient": null}),
        ),
        arm("a fault nobody knows", "gateway", with(fault.clone(), "fault", json!("meteor")), (422, "invalid-body")),
        arm("a fault without end", "gateway", with(fault.clone(), "seconds", json!(1_000_000)), (422, "invalid-body")),
        arm("a fault nowhere", "moon", fault, (404, "not-found")),
        admin("a facility in no state", "/v1/admin/facilities", json!({"name": "a", "state_code": "oregon"})),
        admin("a facility without a name", "/v1/admin/facilities", json!({"name": " ", "state_code": "OR"})),
        admin("a flag that is maybe", "/v1/admin/flags", json!({"name": "a", "enabled": "maybe"})),
        admin(
            "a period that ends before it begins",
            "/v1/billing-cycles",
            json!({"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}),
        ),
        Case::post(
            "a period that is not over",
            "/v1/billing-cycles",
            &json!({"from": "2026-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"}),
            409,
            "period-not-over",
        )
        .by(Who::Admin),
        Case::write(
            "a facility of another version",
            "PATCH",
            format!("/v1/admin/facilities/{}", place.clinician.facility),
            &json!({"name": "b"}),
            (412, "stale-version"),
        )
        .by(Who::Admin)
        .header("if-match", "\"7\""),
        Case::write(
            "a facility that is not there",
            "PATCH",
            format!("/v1/admin/facilities/{}", place.patient),
            &json!({"name": "b"}),
            (404, "not-found"),
        )
        .by(Who::Admin),
    ]
}
