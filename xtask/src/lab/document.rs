//! How every verb answers: one JSON document with a schema id, or text for people.

use std::io::Write as _;

use serde_json::{Value, json};

/// Prints the answer of a verb: `{"schema": "pim.lab.NAME/v1", NAME: …}`, or the document alone, indented.
pub(super) fn print(name: &str, document: &Value, json: bool) {
    say(&if json { wrapped(name, document) } else { format!("{document:#}") });
}

/// One document, on one line.
pub(super) fn wrapped(name: &str, document: &Value) -> String {
    json!({"schema": format!("pim.lab.{name}/v1"), name: document}).to_string()
}

/// Prints a line; `false` when nobody reads any more.
pub(super) fn say(line: &str) -> bool {
    // A reader such as `head` may have gone away; that is its right.
    writeln!(std::io::stdout(), "{line}").is_ok()
}
