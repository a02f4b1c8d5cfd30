//! Whether a process is still the one that was started: its id may have been given to another since. And which one was
//! started, where nobody has noted it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

/// Tells a process from any other that ever had or will have its id: when it began, as the system tells it.
///
/// `None` when no such process is running.
pub(super) fn birth_of(pid: u32) -> Option<String> {
    if fs::exists("/proc/self/stat").unwrap_or(false) {
        return birth_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    }
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    let (state, began) = line.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| began.trim().to_owned())
}

/// The processes whose standard output is a file, as the system's `/proc` tells; none where it has none.
pub(super) fn printing_to(file: &Path) -> Vec<u32> {
    let Ok(file) = fs::metadata(file) else { return Vec::new() };
    let prints_there = |pid: &u32| {
        let output = fs::metadata(format!("/proc/{pid}/fd/1"));
        output.is_ok_and(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(prints_there).collect()
}

/// Field 22 of `/proc/PID/stat`. The second field is a name in brackets, which may hold anything.
fn birth_in(stat: &str) -> Option<String> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    // One that has ended and waits for its parent is not running.
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{birth_in, birth_of};

    #[test]
    fn this_process_has_one_birth() {
        let pid = std::process::id();
        assert!(birth_of(pid).is_some());
        assert_eq!(birth_of(pid), birth_of(pid));
        assert_ne!(birth_of(pid), birth_of(1), "process 1 began earlier");
    }

    #[test]
    fn a_name_may_hold_brackets_and_blanks() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(birth_in(&format!("9 (a) Z (b)) {rest}")).as_deref(), Some("4711"));
        assert_eq!(birth_in(&format!("9 (a) {}", rest.replacen('S', "Z", 1))), None, "it has ended");
        assert_eq!(birth_in(""), None);
    }
}
