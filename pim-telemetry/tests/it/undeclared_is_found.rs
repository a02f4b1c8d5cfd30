//! Names and labels that no catalog declares are found in a live exposition.

use pim_core::signal::SignalRegistry;
use pim_telemetry::capture::undeclared;
use pim_telemetry::process::{CATALOG, ProcessSignals};

#[test]
fn a_declared_exposition_has_nothing_to_find() {
    let mut registry = SignalRegistry::new();
    ProcessSignals::bind(&mut registry).unwrap().read();
    let text = registry.encode();
    assert!(undeclared(&text, &[&CATALOG]).is_empty(), "{text}");
}

#[test]
fn a_stranger_is_named() {
    let text = "process_threads 3\nshop_sales_total{kind=\"x\"} 1\nprocess_open_fds{pid=\"1\"} 2\n# EOF\n";
    let found = undeclared(text, &[&CATALOG]);
    assert!(found.contains("shop_sales_total") && found.contains("process_open_fds{pid=\"1\"}"), "{found:?}");
    assert_eq!(found.len(), 2);
}

#[test]
fn an_example_tells_a_trace_and_nothing_else() {
    let sample = "process_threads 3 # ";
    let of = |example: &str| undeclared(&format!("{sample}{{{example}}} 3\n"), &[&CATALOG]);
    assert!(of("trace_id=\"0123456789abcdef0123456789abcdef\"").is_empty());
    for example in ["trace_id=\"Ada\"", "user_id=\"0123456789abcdef0123456789abcdef\"", "trace_id=\"\""] {
        assert_eq!(of(example).len(), 1, "{example}");
    }
}
