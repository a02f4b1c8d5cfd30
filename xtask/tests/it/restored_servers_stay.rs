//! Servers that `lab restore` has made and `lab up --data-dir` was led to, without a lab on them: they are stopped, and all
//! that they have stays.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::xtask::{Ended, Folder, xtask_on};

/// A lab's folder that leads to servers elsewhere, and what does as if it were PostgreSQL's programs.
struct Led {
    folder: Folder,
}

impl Led {
    /// As `lab up --data-dir` leaves it that is broken off while it starts servers.
    fn new(pg_ctl: &str) -> Self {
        let led = Self { folder: Folder::new("led") };
        let servers = led.servers();
        for secret in ["secrets/fleet", "secrets/shard-0", "service-secrets/shard-0"] {
            fs::create_dir_all(servers.join(secret).parent().unwrap()).unwrap();
            fs::write(servers.join(secret), "a secret").unwrap();
        }
        for server in ["shard_0_a", "shard_0_b", "unsharded"] {
            fs::create_dir_all(servers.join(server).join("data")).unwrap();
            fs::write(servers.join(server).join("data/postgresql.conf"), "port = 1\n").unwrap();
        }
        fs::create_dir(led.folder.path().join("lab")).unwrap();
        symlink(&servers, led.link()).unwrap();
        fs::create_dir(led.folder.path().join("bin")).unwrap();
        for name in ["initdb", "pg_basebackup", "psql"] {
            led.program(name, "exit 1");
        }
        led.program("postgres", "echo 'postgres (PostgreSQL) 15.6'");
        led.program("pg_ctl", pg_ctl);
        led
    }

    fn program(&self, name: &str, does: &str) {
        let path = self.folder.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn servers(&self) -> PathBuf {
        self.folder.path().join("new").join("servers")
    }

    fn link(&self) -> PathBuf {
        self.folder.path().join("lab").join("servers")
    }

    fn leads_there(&self) -> bool {
        fs::read_link(self.link()).is_ok_and(|it| it == self.servers())
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let lab = self.folder.join("lab");
        xtask_on(&self.folder.path().join("bin"), &[&["lab", "--json", "--folder", &lab], arguments].concat())
    }
}

/// What is taken for a server, because its command line names the data; goes with the value.
struct Running(Child);

impl Running {
    fn on(data: &Path) -> Self {
        let mut tail = Command::new("tail");
        tail.arg("-f").arg(data.join("postgresql.conf")).stdout(Stdio::null());
        let running = tail.spawn().expect("runs");
        fs::write(data.join("postmaster.pid"), format!("{}\n", running.id())).unwrap();
        Self(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Guard: `servers down`, which is what the refusals below name, removes nothing of what was restored.
#[test]
fn when_they_are_stopped_without_a_lab() {
    let led = Led::new("exit 0");
    let refused = led.run(&["servers", "up", "--shards", "1"]);
    assert_eq!((refused.code, refused.err.contains("servers down")), (Some(3), true), "{refused:?}");
    let down = led.run(&["servers", "down"]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert!(led.servers().join("secrets/fleet").exists(), "what was restored is gone");
    assert_eq!(down.document("servers-down")["kept"], led.servers().display().to_string());
    assert!(fs::symlink_metadata(led.link()).is_err(), "nothing leads there any more");
    assert_eq!(led.run(&["servers", "down"]).code, Some(3), "there are none");
}

/// Guard: nothing is made behind a link that leads nowhere, and `servers down` takes it away.
#[test]
fn and_none_come_about_where_they_were() {
    let led = Led::new("exit 0");
    fs::remove_dir_all(led.servers()).unwrap();
    let refused = led.run(&["servers", "up", "--shards", "1"]);
    assert_eq!((refused.code, refused.err.contains("servers down")), (Some(3), true), "{refused:?}");
    assert!(!led.servers().exists());
    assert_eq!(led.run(&["servers", "down"]).code, Some(0));
    assert!(fs::symlink_metadata(led.link()).is_err());
}

/// Guard: a server that does not end is not lost sight of, and keeps no other from ending.
#[test]
fn and_are_found_again_when_one_does_not_end() {
    let led = Led::new("case \"$*\" in *shard_0_a*) echo 'does not shut down' >&2; exit 1;; esac; echo told: \"$@\"");
    let of = |server: &str| led.servers().join(server);
    let (one, other) = (Running::on(&of("shard_0_a/data")), Running::on(&of("unsharded/data")));
    let failed = led.run(&["servers", "down"]);
    assert_eq!((failed.code, failed.err.contains("does not shut down")), (Some(4), true), "{failed:?}");
    assert!(led.leads_there() && of("secrets/fleet").exists());
    let told = fs::read_to_string(of("unsharded/printed")).unwrap_or_default();
    assert!(told.contains("told: stop"), "the other one goes on: {told}");
    drop((one, other));
    assert_eq!(led.run(&["servers", "down"]).code, Some(0), "they have ended");
    assert!(!led.leads_there());
}
