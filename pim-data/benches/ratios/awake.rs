//! Keeps the processors from falling asleep while latencies of some microseconds are compared: on a virtual machine, waking one
//! takes longer than what is measured, and whoever takes a little longer pays for it each time.

use std::process::{Child, Command, Stdio};
use std::thread;

/// Processes that run whenever nobody else wants to; they end with it, and with this process however it ends.
#[derive(Debug)]
pub(super) struct Awake(Vec<Child>);

impl Awake {
    /// One for each processor. None where there is no `setpriv` or `chrt`: then what is measured depends on the machine's sleep.
    pub(super) fn all() -> Self {
        let idle = || {
            let mut turn = Command::new("setpriv");
            turn.args(["--pdeathsig", "KILL", "chrt", "--idle", "0", "sh", "-c", "while :; do :; done"]);
            turn.stderr(Stdio::null()).spawn()
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self((0..processors).filter_map(|_| idle().ok()).collect())
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _gone = child.kill().and_then(|()| child.wait());
        }
    }
}
