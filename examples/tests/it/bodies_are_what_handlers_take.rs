//! What the documents say of bodies is what the running handlers take: examples pass, and what does not fit is refused by name.

use http::{Method, Request};
use pim_core::role::{ActionCode, ClosedEnum as _, ResourceCode, RoleCode};
use pim_lab::policy::{LabRole, lab_policy};
use pim_lab::rig::Declaration;
use pim_lab::routes::{Access, ROUTES, Route};
use pim_lab::{admin, billing, encounter, patient};
use serde_json::{Map, Value, json};

use crate::world::{Answered, World};

/// Problems that say that a body is not what the operation takes.
const OF_BODIES: [&str; 4] = ["invalid-body", "malformed-json", "real-identifier", "unsupported-media-type"];

/// A body as a document describes it.
pub(crate) struct Described {
    pub(crate) route: &'static Route,
    schema: Value,
    document: Value,
}

/// Every body of a write.
pub(crate) fn all() -> Vec<Described> {
    let mut all = Vec::new();
    for service in [patient::SERVICE, encounter::SERVICE, billing::SERVICE, admin::SERVICE] {
        let Declaration { upstream, .. } = service;
        let document = service.openapi();
        for route in ROUTES.iter().filter(|route| route.upstream == upstream) {
            let operation = &document["paths"][route.template][route.method.to_ascii_lowercase()];
            let schema = operation["requestBody"]["content"]["application/json"]["schema"].clone();
            if schema.is_object() {
                all.push(Described { route, schema, document: document.clone() });
            }
        }
    }
    all
}

impl Described {
    /// The schema behind a reference.
    fn resolved(&self, schema: &Value) -> Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.document.pointer(reference.trim_start_matches('#')).expect("it is there").clone(),
            None => schema.clone(),
        }
    }

    /// The headers that the document speaks of.
    pub(crate) fn headers(&self) -> Vec<&str> {
        let operation = &self.document["paths"][self.route.template][self.route.method.to_ascii_lowercase()];
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        parameters.filter(|it| it["in"] == "header").filter_map(|it| it["name"].as_str()).collect()
    }

    /// A body that fits.
    pub(crate) fn good(&self) -> Value {
        self.example(&self.resolved(&self.schema))
    }

    /// What the document says that fits: its examples, and else something of the kind.
    fn example(&self, schema: &Value) -> Value {
        let schema = self.resolved(schema);
        if let Some(example) = schema.get("example") {
            return example.clone();
        }
        if let Some(first) = schema["enum"].get(0) {
            return first.clone();
        }
        for alternatives in ["oneOf", "anyOf", "allOf"] {
            let some = schema[alternatives].as_array().into_iter().flatten();
            if let Some(first) = some.into_iter().find(|it| it["type"] != "null") {
                return self.example(first);
            }
        }
        match (kind_of(&schema), schema["format"].as_str()) {
            (Some("object"), _) => self.object(&schema),
            (Some("array"), _) => json!([]),
            (Some("boolean"), _) => json!(true),
            (Some("integer"), _) => json!(1),
            (_, Some("uuid")) => json!("018f2c6e-0000-8000-8000-000000000001"),
            (_, Some("date-time")) => json!("2026-03-02T09:00:00Z"),
            _ => json!("text"),
        }
    }

    /// Everything that is required, and what else has an example.
    fn object(&self, schema: &Value) -> Value {
        let mut object = Map::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_told = property.get("example").is_some() || self.resolved(property).get("example").is_some();
            if is_told || required_of(schema).contains(name) {
                object.insert(name.clone(), self.example(property));
            }
        }
        Value::Object(object)
    }
}

/// Whether the document says that a member may be null.
fn takes_null(property: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("null")));
    let alternatives = ["oneOf", "anyOf"].into_iter().flat_map(|name| property[name].as_array().into_iter().flatten());
    is_null(&property["type"]) || alternatives.into_iter().any(|it| is_null(&it["type"]))
}

fn kind_of(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    }
}

fn required_of(schema: &Value) -> Vec<String> {
    schema["required"].as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
}

/// Somebody who may do this.
pub(crate) fn token_for(world: &World, route: &Route, patient: &str) -> String {
    let Access::Granted(action, resource) = route.access else { return String::new() };
    let (action, resource) = (ActionCode::of(action), ResourceCode::of(resource));
    let may = |role: &LabRole| {
        *role != LabRole::Service
            && lab_policy().grants().iter().any(|(r, a, o, _)| (*r, *a, *o) == (RoleCode::of(*role), action, resource))
    };
    let role = [LabRole::Clinician, LabRole::Admin, LabRole::Sre, LabRole::Patient].into_iter().find(may);
    world.session(role.expect("somebody may").name(), &[world.facility], patient.parse().ok())
}

async fn asked(world: &World, described: &Described, patient: &str, body: &Value) -> Answered {
    let route = described.route;
    // Ids of one bucket. What they name is not there, which comes after the body.
    let path = route.template.replace("{patient_id}", patient).replace("{id}", &world.facility.to_string());
    let path = path.replace("{point}", "outbox-relay").replace("{consumer}", "search").replace("{name}", "nothing");
    let parts = path.split('/').map(|part| if part.starts_with('{') { patient } else { part });
    let request = Request::builder().method(Method::from_bytes(route.method.as_bytes()).unwrap());
    let request = request.uri(parts.collect::<Vec<_>>().join("/"));
    let request =
        request.header("txn-token", token_for(world, route, patient)).header("content-type", "application/json");
    let request = request.header("idempotency-key", uuid::Uuid::new_v4().to_string());
    world.send(request.body(body.to_string().into()).unwrap()).await
}

#[tokio::test]
async fn and_nothing_else() {
    let world = World::new().await;
    let patient = world.registered("somebody").await.id();
    let (mut wrong, mut bodies, mut members) = (Vec::new(), 0, 0);
    for described in all() {
        let schema = described.resolved(&described.schema);
        let good = described.example(&schema);
        let label = described.route.label;
        bodies += 1;
        let answered = asked(&world, &described, &patient, &good).await;
        if OF_BODIES.contains(&answered.problem())
            || answered.status.as_u16() == 403
            || answered.status.is_server_error()
        {
            wrong.push(format!("{label} refuses its own example {good}: {:?}", answered.body));
        }
        let mut refused = Vec::new();
        let mut more = good.clone();
        more["nobody_knows"] = json!(1);
        refused.push(("a member that nobody knows".to_owned(), more, None));
        for quoting in ["x expected 123-45-6789", "x`, expected 123-45-6789", "must be 123-45-6789"] {
            let mut more = good.clone();
            more[quoting] = json!(1);
            refused.push((format!("a member called {quoting}"), more, None));
        }
        for name in required_of(&schema) {
            let mut less = good.clone();
            less.as_object_mut().unwrap().remove(&name);
            refused.push((format!("no {name}"), less, Some(format!("missing field `{name}`"))));
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            members += 1;
            let other =
                if kind_of(&described.resolved(property)) == Some("object") { json!(true) } else { json!({"a": 1}) };
            let mut odd = good.clone();
            odd[name] = other;
            refused.push((format!("{name} of another kind"), odd, None));
            let mut null = good.clone();
            null[name] = Value::Null;
            if !takes_null(property) {
                refused.push((format!("null for {name}"), null, None));
                continue;
            }
            // Another rule may need a value.
            let answered = asked(&world, &described, &patient, &null).await;
            if answered.body["detail"].as_str().is_some_and(|told| told.starts_with("expected ")) {
                wrong.push(format!("{label} refuses null for {name}"));
            }
        }
        for (what, body, rule) in refused {
            let answered = asked(&world, &described, &patient, &body).await;
            let told = answered.body["detail"].as_str().unwrap_or_default();
            let is_repeated = answered.body.to_string().contains("123-45-6789");
            if is_repeated || answered.problem() != "invalid-body" || rule.is_some_and(|rule| told != rule) {
                wrong.push(format!("{label} with {what}: {:?}", answered.body));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(bodies >= 30 && members >= 60, "{bodies} bodies with {members} members were looked at");
}
