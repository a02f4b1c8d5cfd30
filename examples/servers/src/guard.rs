//! Cleaning up after a process, also when it is killed: a shell waits at a pipe that only this process holds open.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its input, which comes with the end of whoever holds the guard, however that ends.
///
/// A parent-death signal would come with the end of the *thread* that started the server, and tests have one each.
const WAIT: &str = "cat >/dev/null; ";

/// Stops every server whose folder's path begins so. A process is only told when it is one of that folder, and its children
/// with it: one that stands still would stay behind.
macro_rules! stop {
    () => {
        r#"
running() {
    for file in "$1"*/data/postmaster.pid; do
        [ -f "$file" ] && read -r pid <"$file" && grep -qF "$1" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
    done
}
family() {
    echo "$1"
    for status in /proc/[0-9]*/status; do
        grep -q "^PPid:[[:space:]]*$1\$" "$status" 2>/dev/null && status=${status%/status} && echo "${status##*/}"
    done
}
stop() {
    for pid in $(running "$1"); do kill -CONT $(family "$pid"); kill -QUIT "$pid"; done
    tries=0
    while [ -n "$(running "$1")" ] && [ "$tries" -lt 200 ]; do
        tries=$((tries + 1))
        [ "$tries" -eq 100 ] && for pid in $(running "$1"); do kill -KILL $(family "$pid"); done
        sleep 0.05
    done
}
"#
    };
}

/// Stops every server below a folder and removes it. The archive that the folder links to goes too, where it is in the place
/// of this folder's archives: whoever could put another link there would have anything removed. What the servers are found
/// by goes last, so that whoever is broken off is gone on with.
pub(crate) const SERVERS: &str = concat!(
    stop!(),
    r#"
stop "$1/"
archive=$(readlink "$1/archive")
name=${archive#"$1-archive/"}
case "$name" in
    "$archive" | .* | */*) ;;
    *) rm -rf "$archive" && rmdir "$1-archive" 2>/dev/null ;;
esac
for each in "$1"/* "$1"/.[!.]*; do
    [ "$each" = "$1/secrets" ] || rm -rf "$each" || exit
done
rm -rf "$1"
"#
);

/// Stops and removes the servers whose folders' paths begin so: those of one shard. What they archived goes too, where a
/// second argument says that nobody needs it.
pub(crate) const SOME_SERVERS: &str = concat!(
    stop!(),
    r#"
stop "$1"
# Whoever copies a segment may outlive its server by a moment.
for try in 1 2 3; do
    rm -rf "$1"* ${2:+"$2"} && break
    sleep 0.1
done
"#
);

/// Runs a script when it goes, or when this process goes.
#[derive(Debug)]
pub struct Guard {
    shell: Child,
}

impl Guard {
    /// Arms a shell script; its `$1` and so on are the arguments.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn arm(script: &str, arguments: &[&OsStr]) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{WAIT}{script}"), "guard"]).args(arguments).current_dir("/");
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: what ends the test's group must not end its cleaning up.
        Ok(Self { shell: shell.process_group(0).spawn()? })
    }

    /// The group of processes that it is in, for who is to be in it from the first moment on.
    #[must_use]
    pub fn group(&self) -> i32 {
        self.shell.id().cast_signed()
    }

    /// What it guards stays from now on.
    ///
    /// # Errors
    /// When the shell cannot be told.
    pub fn disarm(mut self) -> io::Result<()> {
        self.shell.kill()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ended = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::Command;

    use super::SERVERS;

    /// Guard: a link leads to nothing that is removed, unless it is that of an archive.
    #[test]
    fn nothing_else_goes_than_the_folder_and_its_archive() {
        let place = std::env::temp_dir().join(format!("pim-guard-links-{}", std::process::id()));
        let folder = place.join("servers");
        let (theirs, ours) = (place.join("theirs"), place.join("servers-archive/0a"));
        for (target, goes) in [(theirs.clone(), false), (place.join("servers-archive/../theirs"), false), (ours, true)]
        {
            for made in [&folder, &theirs, &place.join("servers-archive"), &target] {
                fs::create_dir_all(made).expect("a folder");
            }
            symlink(&target, folder.join("archive")).expect("a link");
            let ended = Command::new("/bin/sh").args(["-c", SERVERS, "guard"]).arg(&folder).status();
            assert!(ended.is_ok() && !folder.exists());
            assert_eq!(!target.exists(), goes, "{}", target.display());
        }
        assert!(!place.join("servers-archive").exists(), "it was the last one there");
        fs::remove_dir_all(place).expect("goes");
    }

    /// Guard: where something cannot be removed, what the servers are found by is still there.
    #[test]
    fn what_servers_are_found_by_goes_last() {
        let place = std::env::temp_dir().join(format!("pim-guard-{}", std::process::id()));
        let (folder, bin) = (place.join("servers"), place.join("bin"));
        for made in ["secrets", "shard_0_a", "unsharded"] {
            fs::create_dir_all(folder.join(made)).expect("a folder");
        }
        fs::create_dir(&bin).expect("a folder");
        let remove = |does: &str| {
            let rm = bin.join("rm");
            fs::write(&rm, format!("#!/bin/sh\n{does}\nexec /bin/rm \"$@\"\n")).expect("writes");
            fs::set_permissions(&rm, fs::Permissions::from_mode(0o755)).expect("is a program");
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
            let ended = Command::new("/bin/sh").args(["-c", SERVERS, "guard"]).arg(&folder).env("PATH", path).status();
            assert!(ended.is_ok());
        };
        remove("case \"$*\" in *unsharded|*/servers) exit 1;; esac");
        assert!(folder.join("secrets").exists() && !folder.join("shard_0_a").exists());
        // Broken off at the very last.
        remove("case \"$*\" in */servers) exit 1;; esac");
        assert!(folder.join("secrets").exists() && !folder.join("unsharded").exists());
        remove("");
        assert!(!folder.exists());
        fs::remove_dir_all(place).expect("goes");
    }
}
