//! A panic is one line with its place; what it said stays where it was.

use pim_telemetry::Telemetry;

use crate::child::{is_child, lines_of, stderr_of};

#[test]
fn and_not_their_message() {
    let text = stderr_of("panics_tell_their_place::a_child_panics");
    assert!(!text.contains("Quillfeather"), "{text}");
    let lines = lines_of(&text);
    let told: Vec<_> = lines.iter().map(|line| (&line["level"], &line["service"], &line["event"])).collect();
    assert_eq!(told, [(&"error".into(), &"shop".into(), &"program.panicked".into()); 2], "{text}");
    for line in &lines {
        let (file, number) = line["place"].as_str().and_then(|place| place.rsplit_once(':')).unwrap();
        assert!(file.ends_with("panics_tell_their_place.rs") && number.parse::<u32>().is_ok(), "{line}");
    }
}

fn says_a_name() -> u8 {
    panic!("{} is not here", "Quillfeather")
}

/// The child of the test above; does nothing when nobody asks for it.
#[test]
fn a_child_panics() {
    if !is_child() {
        return;
    }
    let telemetry = Telemetry::builder("shop").install().unwrap();
    assert!(std::panic::catch_unwind(says_a_name).is_err());
    // While an event is put together, in a thread of its own.
    let rings = || pim_core::warn!("bell.rung", times = says_a_name());
    assert!(std::thread::spawn(rings).join().is_err());
    assert_eq!(telemetry.shutdown().dropped, 0);
}
