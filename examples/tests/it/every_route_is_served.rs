//! Every route of the table is served by the service that the table names, asks for a session there, and has the time that it
//! takes.

use std::fs;
use std::path::Path;

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::clock::Clock;
use pim_data::cluster::Access;
use pim_lab::rig::{Declaration, Drain, HttpKeys, sessions};
use pim_lab::routes::{Class, ROUTES, Upstream};
use pim_lab::signals::Hub;
use pim_lab::workers::Stores;
use pim_lab::{admin, billing, encounter, patient};
use tower::ServiceExt as _;
use uuid::Uuid;

const fn service_of(upstream: Upstream) -> Option<&'static Declaration> {
    match upstream {
        Upstream::Patient => Some(&patient::SERVICE),
        Upstream::Encounter => Some(&encounter::SERVICE),
        Upstream::Billing => Some(&billing::SERVICE),
        Upstream::Admin => Some(&admin::SERVICE),
        Upstream::Broker => None,
    }
}

#[tokio::test]
async fn none_is_missing_and_none_is_open() {
    let folder = std::env::temp_dir().join(format!("pim-routes-{}", Uuid::new_v4()));
    let hub = Hub::new(None).unwrap();
    let stores = Stores::open(&folder, Some(1), Access::Exclusive, Clock::system(), &hub).await.unwrap();
    let keys = || HttpKeys::at("http://127.0.0.1:9/jwks.json".parse().unwrap());
    let mut wrong = Vec::new();
    for route in ROUTES {
        let Some(service) = service_of(route.upstream) else { continue };
        let sessions = sessions(keys(), Clock::system());
        let router = service.router(&stores, &sessions, &Drain::new());
        let path = route.template.replace(['{', '}'], "");
        let request = Request::builder().method(route.method).uri(path).body(Body::empty()).unwrap();
        let status = router.oneshot(request).await.unwrap().status();
        if status != StatusCode::UNAUTHORIZED {
            wrong.push(format!("{} answers {status}", route.label));
        }
    }
    let _leftover = fs::remove_dir_all(folder);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Files that call something, below a folder.
fn callers(folder: &Path, call: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            callers(&path, call, found);
        } else if !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            found.extend(code.contains(call).then(|| path.file_name().unwrap().to_string_lossy().into_owned()));
        }
    }
}

/// Guard: the audit trail takes as long as it is.
#[test]
fn whatever_verifies_the_audit_trail_has_the_time_of_a_sweep() {
    let all_in = |folder, call: &str| {
        let mut found = Vec::new();
        callers(Path::new(folder), call, &mut found);
        found.sort_unstable();
        found
    };
    // A backup is put back by a program, and by no route.
    let verify = all_in(concat!(env!("CARGO_MANIFEST_DIR"), "/../pim-data/src"), ".verify_audit()");
    assert_eq!(
        verify,
        ["loss.rs", "restore.rs", "retention.rs"],
        "what else verifies the trail belongs into the calls below"
    );
    let calls = [".accept_loss(&cx", ".run_retention(", ".verify_audit()"];
    let found = calls.map(|call| all_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"), call)).concat();
    let routes = [
        ("degradation.rs", "/v1/admin/shards/{id}/accept-loss"),
        ("retention.rs", "/v1/admin/retention"),
        ("audit.rs", "/v1/admin/audit/verify"),
        ("runs.rs", "/v1/admin/runs/summary"),
    ];
    assert_eq!(found, routes.map(|(file, _)| file), "the route of another caller belongs into this list");
    for (_, template) in routes {
        let route = ROUTES.iter().find(|route| route.template == template).unwrap();
        assert_eq!(route.class, Class::Sweep, "{template}");
    }
}
