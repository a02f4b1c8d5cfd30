//! Cleaning up after a process, also when it is killed: a shell waits at a pipe that only this process holds open.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its input, which comes with the end of whoever holds the guard, however that ends.
///
/// A parent-death signal would come with the end of the *thread* that started the server, and tests have one each.
const WAIT: &str = "cat >/dev/null; ";

/// Runs a script when it goes, or when this process goes.
#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// Arms a shell script; its `$1` is the argument.
    pub(crate) fn arm(script: &str, argument: &OsStr) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{WAIT}{script}"), "guard"]).arg(argument).current_dir("/");
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: what ends the test's group must not end its cleaning up.
        Ok(Self { shell: shell.process_group(0).spawn()? })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ended = self.shell.wait();
    }
}
