//! The OpenAPI 3.1 document of a service: its routes from the route table, its bodies and answers from the handlers' own types.

use std::collections::BTreeMap;

use pim_core::role::{Access as ActionAccess, Action as _};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::routes::{Access, ROUTES, Route, Upstream};

type Schemas = BTreeMap<String, Value>;

/// What one route takes and answers, by the types of its handler.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    method: &'static str,
    template: &'static str,
    summary: &'static str,
    status: u16,
    body: Option<fn(&mut Schemas) -> Value>,
    answer: fn(&mut Schemas) -> Value,
}

/// Answers of a list: the items are `T`.
#[derive(Clone, Copy, Debug)]
pub struct Listed<T>(std::marker::PhantomData<fn() -> T>);

impl Operation {
    /// A read that answers `A`.
    #[must_use]
    pub const fn get<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self { method: "GET", template, summary, status: 200, body: None, answer: reference::<A> }
    }

    /// A read that answers a page of `A`.
    #[must_use]
    pub const fn list<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self { method: "GET", template, summary, status: 200, body: None, answer: Listed::<A>::page }
    }

    /// A write that takes `B` and makes `A`.
    #[must_use]
    pub const fn create<B: ToSchema, A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self { method: "POST", template, summary, status: 201, body: Some(reference::<B>), answer: reference::<A> }
    }

    /// A write that takes `B` and changes `A`.
    #[must_use]
    pub const fn change<B: ToSchema, A: ToSchema>(
        method: &'static str,
        template: &'static str,
        summary: &'static str,
    ) -> Self {
        Self { method, template, summary, status: 200, body: Some(reference::<B>), answer: reference::<A> }
    }

    fn describes(&self, route: &Route) -> bool {
        self.method == route.method && self.template == route.template
    }
}

impl<T: ToSchema> Listed<T> {
    fn page(schemas: &mut Schemas) -> Value {
        let item = reference::<T>(schemas);
        json!({
            "type": "object",
            "required": ["items", "next_cursor"],
            "properties": {
                "items": {"type": "array", "items": item},
                "next_cursor": {"type": ["string", "null"]},
            },
        })
    }
}

/// The document of the routes that an upstream serves. A route whose types are not given is described by the table alone.
#[must_use]
pub fn document(upstream: Upstream, operations: &[Operation]) -> Value {
    let mut schemas = Schemas::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES.iter().filter(|route| route.upstream == upstream) {
        let operation = operations.iter().find(|operation| operation.describes(route));
        let described = described(route, operation, &mut schemas);
        paths.entry(route.template).or_default().insert(route.method.to_ascii_lowercase(), described);
    }
    schemas.insert("Problem".to_owned(), problem_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": format!("PIM SRE Lab: {}", upstream.name()),
            "description": "Synthetic data only.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    })
}

fn described(route: &Route, operation: Option<&Operation>, schemas: &mut Schemas) -> Value {
    let mut parameters: Vec<Value> = route.template.split('/').filter_map(path_parameter).collect();
    let mut described = Map::new();
    let mut is_write = false;
    if let Access::Granted(action, resource) = route.access {
        is_write = action.access() == ActionAccess::Write;
        described.insert("security".to_owned(), json!([{"bearer": []}]));
        let (action, resource): (pim_core::role::ActionCode, pim_core::role::ResourceCode) =
            (action.into(), resource.into());
        described.insert("x-pim-action".to_owned(), json!(action.name()));
        described.insert("x-pim-resource".to_owned(), json!(resource.name()));
    }
    if is_write {
        parameters.push(header("Idempotency-Key", true, "makes a retry the same request"));
        parameters.push(header("If-Match", false, "the version that the caller has seen"));
    }
    let answer = operation.map(|operation| (operation.answer)(schemas));
    let status = operation.map_or(200, |operation| operation.status).to_string();
    let content = answer.map_or_else(|| json!({}), |schema| json!({"application/json": {"schema": schema}}));
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    let responses = json!({
        status: {"description": "done", "content": content},
        "default": {"description": "a problem, named by its type", "content": problem},
    });
    described.insert("operationId".to_owned(), json!(operation_id(route)));
    described.insert("summary".to_owned(), json!(operation.map_or("", |operation| operation.summary)));
    described.insert("tags".to_owned(), json!([route.upstream.name()]));
    described.insert("parameters".to_owned(), Value::Array(parameters));
    if let Some(body) = operation.and_then(|operation| operation.body) {
        let content = json!({"application/json": {"schema": body(schemas)}});
        described.insert("requestBody".to_owned(), json!({"required": true, "content": content}));
    }
    described.insert("responses".to_owned(), responses);
    Value::Object(described)
}

fn path_parameter(part: &str) -> Option<Value> {
    let name = part.strip_prefix('{')?.strip_suffix('}')?;
    Some(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
}

fn header(name: &str, required: bool, description: &str) -> Value {
    let schema = json!({"type": "string", "maxLength": 128});
    json!({"name": name, "in": "header", "required": required, "description": description, "schema": schema})
}

/// `POST /v1/patients/{patient_id}/claims` becomes `post_patients_by_patient_id_claims`.
fn operation_id(route: &Route) -> String {
    let mut id = route.method.to_ascii_lowercase();
    for part in route.template.split('/').filter(|part| !part.is_empty() && *part != "v1") {
        let name = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        id.push_str(&name.map_or_else(|| format!("_{part}"), |name| format!("_by_{name}")));
    }
    id.replace('-', "_")
}

/// Puts a type and everything that it refers to among the schemas.
fn reference<T: ToSchema>(schemas: &mut Schemas) -> Value {
    let mut found: Vec<(String, RefOr<Schema>)> = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut found);
    for (name, schema) in found {
        schemas.entry(name).or_insert_with(|| serde_json::to_value(schema).unwrap_or_default());
    }
    json!({"$ref": format!("#/components/schemas/{}", T::name())})
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string", "format": "uri"},
            "request_id": {"type": "string", "format": "uuid"},
        },
        "additionalProperties": true,
    })
}
