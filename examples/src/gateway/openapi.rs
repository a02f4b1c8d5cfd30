//! One OpenAPI document for everything that is public, merged from those of the services.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::http::Gateway;
use crate::routes::Upstream;

const PATIENCE: Duration = Duration::from_secs(2);

/// Asks every service; one that does not answer is named in `x-pim-missing`.
pub(super) async fn merged(gateway: &Gateway) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    let mut missing = Vec::new();
    for upstream in Upstream::ALL {
        let Some(url) = gateway.upstream(upstream) else { continue };
        match gateway.client().get_json(&format!("{url}/openapi.json"), PATIENCE).await {
            Ok(document) => {
                merge(&mut paths, &document["paths"]);
                merge(&mut schemas, &document["components"]["schemas"]);
            }
            Err(_) => missing.push(upstream.name()),
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "PIM SRE Lab", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "x-pim-missing": missing,
    })
}

fn merge(into: &mut Map<String, Value>, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        match into.get_mut(name).and_then(Value::as_object_mut) {
            Some(known) => known.extend(value.as_object().cloned().unwrap_or_default()),
            None => drop(into.insert(name.clone(), value.clone())),
        }
    }
}
