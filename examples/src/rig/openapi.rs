//! The OpenAPI 3.1 document of a service: its policies from the route table, what operations take from their handlers.

use std::collections::BTreeMap;

use pim_core::role::ClosedEnum as _;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::endpoint::{Taken, Verb};
use crate::routes::{Access, ROUTES, Route, Upstream};

/// Schemas of a document, by name.
pub type Schemas = BTreeMap<String, Value>;

/// One operation: where it is, what it is for and what it answers. What it takes is known once it has a handler.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub(super) method: Verb,
    pub(super) template: &'static str,
    summary: &'static str,
    status: u16,
    answer: fn(&mut Schemas) -> Value,
    takes: fn(&mut Taken, &mut Schemas),
}

/// Answers of a list: the items are `T`.
#[derive(Clone, Copy, Debug)]
struct Listed<T>(std::marker::PhantomData<fn() -> T>);

impl Operation {
    const fn new(
        method: Verb,
        template: &'static str,
        summary: &'static str,
        answer: fn(&mut Schemas) -> Value,
    ) -> Self {
        Self { method, template, summary, status: 200, answer, takes: |_, _| {} }
    }

    /// A read that answers `A`.
    #[must_use]
    pub const fn get<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Get, template, summary, reference::<A>)
    }

    /// A read that answers a page of `A`.
    #[must_use]
    pub const fn list<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Get, template, summary, Listed::<A>::page)
    }

    /// A read that answers a document of its own form.
    #[must_use]
    pub const fn tell(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Get, template, summary, document_of_its_own)
    }

    /// A write that makes `A`.
    #[must_use]
    pub const fn create<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        let made = Self::new(Verb::Post, template, summary, reference::<A>);
        Self { status: 201, ..made }
    }

    /// A write that moves `A` to another state.
    #[must_use]
    pub const fn transition<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Post, template, summary, reference::<A>)
    }

    /// A write that changes `A`.
    #[must_use]
    pub const fn patch<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Patch, template, summary, reference::<A>)
    }

    /// An operation that says what it did in a document of its own form.
    #[must_use]
    pub const fn operate(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Post, template, summary, document_of_its_own)
    }

    /// Puts something in force.
    #[must_use]
    pub const fn put<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Put, template, summary, reference::<A>)
    }

    /// Ends something.
    #[must_use]
    pub const fn delete<A: ToSchema>(template: &'static str, summary: &'static str) -> Self {
        Self::new(Verb::Delete, template, summary, reference::<A>)
    }

    pub(super) const fn taking(self, takes: fn(&mut Taken, &mut Schemas)) -> Self {
        Self { takes, ..self }
    }

    /// Whether it is what the table calls this.
    #[must_use]
    pub fn describes(&self, route: &Route) -> bool {
        self.method.name() == route.method && self.template == route.template
    }
}

fn document_of_its_own(_schemas: &mut Schemas) -> Value {
    json!({"type": "object"})
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

/// The document of the routes that an upstream serves. A route that no operation describes is not in it, which a test refuses.
#[must_use]
pub fn document(upstream: Upstream, operations: &[Operation]) -> Value {
    let mut schemas = Schemas::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES.iter().filter(|route| route.upstream == upstream) {
        let Some(operation) = operations.iter().find(|operation| operation.describes(route)) else { continue };
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

fn described(route: &Route, operation: &Operation, schemas: &mut Schemas) -> Value {
    let mut described = Map::new();
    if let Access::Granted(action, resource) = route.access {
        described.insert("security".to_owned(), json!([{"bearer": []}]));
        described.insert("x-pim-action".to_owned(), json!(action.name()));
        described.insert("x-pim-resource".to_owned(), json!(resource.name()));
    }
    let mut taken = Taken::default();
    (operation.takes)(&mut taken, schemas);
    let mut parameters: Vec<Value> = route.template.split('/').filter_map(path_parameter).collect();
    parameters.extend(taken.parameters);
    let answer = json!({"application/json": {"schema": (operation.answer)(schemas)}});
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    let responses = json!({
        operation.status.to_string(): {"description": "done", "content": answer},
        "default": {"description": "a problem, named by its type", "content": problem},
    });
    described.insert("operationId".to_owned(), json!(operation_id(route)));
    described.insert("summary".to_owned(), json!(operation.summary));
    described.insert("tags".to_owned(), json!([route.upstream.name()]));
    described.insert("parameters".to_owned(), Value::Array(parameters));
    if let Some(body) = taken.body {
        described.insert("requestBody".to_owned(), body);
    }
    described.insert("responses".to_owned(), responses);
    Value::Object(described)
}

fn path_parameter(part: &str) -> Option<Value> {
    let name = part.strip_prefix('{')?.strip_suffix('}')?;
    Some(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
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
pub(super) fn reference<T: ToSchema>(schemas: &mut Schemas) -> Value {
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
