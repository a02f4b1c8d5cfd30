//! Every route of the table is served by the service that the table names, and asks for a session there.

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::clock::Clock;
use pim_data::cluster::Access;
use pim_lab::rig::{Declaration, Drain, HttpKeys, sessions};
use pim_lab::routes::{ROUTES, Upstream};
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
    let _leftover = std::fs::remove_dir_all(folder);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
