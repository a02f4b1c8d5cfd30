//! One OpenAPI document for everything that is public, merged from those of the services and kept for a while.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use pim_core::problem::{self, Problem};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::http::Gateway;
use crate::routes::Upstream;

const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a document is shown before the services are asked again.
const KEPT: Duration = Duration::from_secs(30);
/// The same of one that lacks a service.
const LACKING_KEPT: Duration = Duration::from_secs(1);

/// The merged document, as it was shown last.
#[derive(Debug, Default)]
pub(super) struct Document(Arc<Mutex<Option<Kept>>>);

#[derive(Debug)]
struct Kept {
    json: Bytes,
    until: Instant,
}

impl Document {
    /// The document. Anybody may ask for it, and each time it is made every service is asked: so that is done for all who want it at once.
    pub(super) async fn shown(&self, gateway: &Gateway) -> Result<Bytes, Problem> {
        let mut kept = Arc::clone(&self.0).lock_owned().await;
        if let Some(fresh) = kept.as_ref().filter(|kept| Instant::now() < kept.until) {
            return Ok(fresh.json.clone());
        }
        let gateway = gateway.clone();
        // Whoever hangs up ends it for nobody, or whoever does so again and again would have it made each time.
        let made = tokio::spawn(async move { kept.insert(made(&gateway).await).json.clone() });
        made.await.map_err(|_| Problem::of(problem::INTERNAL))
    }
}

/// Asks every service; one that does not answer is named in `x-pim-missing`.
async fn made(gateway: &Gateway) -> Kept {
    let asked = Upstream::ALL.into_iter().filter_map(|upstream| {
        let url = format!("{}/openapi.json", gateway.upstream(upstream)?);
        Some(async move { (upstream, gateway.client().get_json(&url, PATIENCE).await) })
    });
    let (mut paths, mut schemas, mut missing) = (Map::new(), Map::new(), Vec::new());
    for (upstream, answer) in join_all(asked).await {
        match answer {
            Ok(document) => {
                merge(&mut paths, &document["paths"]);
                merge(&mut schemas, &document["components"]["schemas"]);
            }
            Err(_) => missing.push(upstream.name()),
        }
    }
    let kept = if missing.is_empty() { KEPT } else { LACKING_KEPT };
    let document = json!({
        "openapi": "3.1.0",
        "info": {"title": "PIM SRE Lab", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "x-pim-missing": missing,
    });
    Kept { json: document.to_string().into(), until: Instant::now() + kept }
}

fn merge(into: &mut Map<String, Value>, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        match into.get_mut(name).and_then(Value::as_object_mut) {
            Some(known) => known.extend(value.as_object().cloned().unwrap_or_default()),
            None => drop(into.insert(name.clone(), value.clone())),
        }
    }
}
