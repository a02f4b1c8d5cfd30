//! What a load has come to is told also when somebody has had enough of it.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::led::Led;
use super::stand_in;

/// Guard: Ctrl-C, which the personas take for the end of their run, does not end whoever reads their summary.
#[test]
#[expect(clippy::disallowed_methods, reason = "there is no runtime here that it could block")]
fn when_ctrl_c_ends_them() {
    let led = Led::new("exit 0");
    let (began, ends) = (led.folder.path().join("began"), led.folder.path().join("ends"));
    // It stands for a program that hears the signal and takes its time: a script that was started deaf stays so.
    led.program(
        "persona-simulator",
        &format!(
            ": >'{}'; until [ -e '{}' ]; do sleep 0.02; done; echo '{{\"event\":\"summary\",\"requests\":7}}'",
            began.display(),
            ends.display()
        ),
    );
    let gateway = format!("http://{}", stand_in::gateway(200, "{}"));
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(["lab", "--json", "--gateway", &gateway, "load"]).env("CARGO", led.folder.join("bin/cargo"));
    let load = xtask.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
    let has_begun = (0..500).any(|_| {
        thread::sleep(Duration::from_millis(20));
        began.exists()
    });
    let told = Command::new("/bin/sh").args(["-c", r#"kill -INT "$0""#, &load.id().to_string()]).status();
    fs::write(&ends, "").unwrap();
    let ended = load.wait_with_output().expect("ends");
    assert!(has_begun && told.expect("a shell").success());
    let out = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && out.contains(r#""requests":7"#), "{ended:?}");
}
