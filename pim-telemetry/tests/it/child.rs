//! A test of this binary in a process of its own: an install is the whole process's, and so is a panic's hook.

use std::process::Command;

use serde_json::Value;

/// Tells the child that it is one.
const CHILD: &str = "LAB_TEST_CHILD";

/// Whether this process is to do what its test is for.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs a test, which has to pass, and returns what it wrote to standard error.
pub(crate) fn stderr_of(test: &str) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let output = command.output().expect("runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{}{stderr}", String::from_utf8_lossy(&output.stdout));
    stderr
}

/// What stands in lines of JSON and nothing else.
pub(crate) fn lines_of(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}
