//! Signals to processes, also where no `kill` is installed: a slim Debian has none but that of its shell.

use std::io;
use std::process::{Command, ExitStatus, Stdio};

/// Sends a signal such as `-TERM` to all of them. Whoever has ended meanwhile is passed over.
///
/// Of a single one the status says whether it was told; of several, shells differ. Who has ended was not, nor was whoever is
/// somebody else's: only the caller can tell these apart.
///
/// # Errors
/// When no shell can be started: then nobody was told anything.
pub fn send(signal: &str, pids: &[u32]) -> io::Result<ExitStatus> {
    let mut kill = Command::new("/bin/sh");
    kill.args(["-c", r#"kill "$@""#, "kill", signal]).args(pids.iter().map(u32::to_string));
    kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    /// Guard: one that is gone keeps nobody else from being told.
    #[test]
    fn everybody_who_is_there_is_told() {
        let start = || Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("starts");
        let (mut gone, mut there) = (start(), start());
        gone.kill().and_then(|()| gone.wait()).expect("ends");
        send("-TERM", &[gone.id(), there.id()]).expect("a shell");
        assert_eq!(there.wait().expect("ends").signal(), Some(15));
        assert!(!send("-TERM", &[gone.id()]).expect("a shell").success(), "nobody was told");
    }
}
