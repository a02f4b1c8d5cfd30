//! The OpenAPI document of a service names each of its routes, and every reference in it leads somewhere.

use pim_lab::routes::{ROUTES, Upstream};
use pim_lab::{admin, billing, encounter, patient};
use serde_json::Value;

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
fn every_route_is_described_with_its_policy() {
    let services = [
        (Upstream::Patient, patient::SERVICE),
        (Upstream::Encounter, encounter::SERVICE),
        (Upstream::Billing, billing::SERVICE),
        (Upstream::Admin, admin::SERVICE),
    ];
    for (upstream, service) in services {
        let document = (service.openapi)();
        assert_eq!(document["openapi"], "3.1.0");
        for route in ROUTES.iter().filter(|route| route.upstream == upstream) {
            let described = &document["paths"][route.template][route.method.to_ascii_lowercase()];
            assert!(described["x-pim-action"].is_string(), "{} {}", route.method, route.template);
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 10, "{}", service.name);
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{}: {reference} leads nowhere", service.name);
        }
    }
}
