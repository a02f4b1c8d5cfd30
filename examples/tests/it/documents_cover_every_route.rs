//! The OpenAPI document of a service names each of its routes, and every reference in it leads somewhere.

use pim_core::role::{Access as ActionAccess, Action as _};
use pim_lab::rig::Declaration;
use pim_lab::routes::{Access, ROUTES, Upstream};
use pim_lab::{admin, billing, broker, encounter, patient};
use serde_json::Value;

const SERVICES: [Declaration; 4] = [patient::SERVICE, encounter::SERVICE, billing::SERVICE, admin::SERVICE];

fn documents() -> Vec<(Upstream, Value)> {
    let services = SERVICES.into_iter().map(|service| (service.upstream, service.openapi()));
    services.chain([(Upstream::Broker, broker::openapi())]).collect()
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|member| references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_route_is_described_with_its_policy_and_what_it_takes() {
    let mut undescribed = Vec::new();
    for (upstream, document) in documents() {
        assert_eq!(document["openapi"], "3.1.0");
        for route in ROUTES.iter().filter(|route| route.upstream == upstream) {
            let described = &document["paths"][route.template][route.method.to_ascii_lowercase()];
            let Access::Granted(action, _) = route.access else { continue };
            let mut wanted = vec![described["x-pim-action"].is_string(), described["summary"].is_string()];
            if action.access() == ActionAccess::Write {
                let parameters = described["parameters"].as_array().cloned().unwrap_or_default();
                wanted.push(parameters.iter().any(|it| it["name"] == "Idempotency-Key" && it["required"] == true));
                wanted.push(described["requestBody"]["content"]["application/json"]["schema"].is_object());
            }
            if wanted.contains(&false) {
                undescribed.push(route.label);
            }
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{}: {reference} leads nowhere", upstream.name());
        }
    }
    assert!(undescribed.is_empty(), "{undescribed:#?}");
}

#[test]
fn what_is_served_has_a_policy() {
    for service in SERVICES {
        for operation in (service.endpoints)().operations() {
            let known = ROUTES.iter().any(|route| operation.describes(route));
            assert!(known, "{} serves {operation:?}, which no table knows", service.name());
        }
    }
}
