//! A lab without a build and without PostgreSQL: scripts stand in for the programs of both.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::xtask::{Ended, Folder, xtask_with};

/// A lab's folder that leads to servers elsewhere, and what does as if it were PostgreSQL's programs.
pub(crate) struct Led {
    pub(crate) folder: Folder,
}

impl Led {
    /// As `lab up --data-dir` leaves it that is broken off while it starts servers.
    pub(crate) fn new(pg_ctl: &str) -> Self {
        let led = Self { folder: Folder::new("led") };
        let servers = led.servers();
        for secret in ["secrets/fleet", "secrets/shard-0", "service-secrets/shard-0"] {
            fs::create_dir_all(servers.join(secret).parent().unwrap()).unwrap();
            fs::write(servers.join(secret), "a secret").unwrap();
        }
        for server in ["shard_0_a", "shard_0_b", "unsharded"] {
            fs::create_dir_all(servers.join(server).join("data")).unwrap();
            let settings = format!("cluster_name = '{server}'\nport = 1\n");
            fs::write(servers.join(server).join("data/postgresql.conf"), settings).unwrap();
        }
        fs::create_dir(led.folder.path().join("lab")).unwrap();
        symlink(&servers, led.link()).unwrap();
        fs::create_dir(led.folder.path().join("bin")).unwrap();
        for name in ["initdb", "pg_basebackup", "psql"] {
            led.program(name, "exit 1");
        }
        led.program("postgres", "echo 'postgres (PostgreSQL) 15.6'");
        led.program("pg_ctl", pg_ctl);
        // Nothing is built: programs of the lab are scripts too, where a test has any. Where they are cargo alone says.
        let elsewhere = led.folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink("../bin", elsewhere.join("examples")).unwrap();
        let line = format!(
            r#"{{"manifest_path":"/lab/Cargo.toml","profile":{{"test":false}},"executable":"{}/examples/%s"}}"#,
            elsewhere.display()
        );
        let names = "services persona-simulator";
        led.program("cargo", &format!("for name in {names}; do printf '{line}\\n' \"$name\"; done"));
        led
    }

    /// A script in place of a program.
    pub(crate) fn program(&self, name: &str, does: &str) {
        let path = self.folder.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn servers(&self) -> PathBuf {
        self.folder.path().join("new").join("servers")
    }

    pub(crate) fn link(&self) -> PathBuf {
        self.folder.path().join("lab").join("servers")
    }

    pub(crate) fn leads_there(&self) -> bool {
        fs::read_link(self.link()).is_ok_and(|it| it == self.servers())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let lab = self.folder.join("lab");
        let places = ["bin", "bin/cargo", "built"].map(|name| self.folder.join(name));
        let places = ["LAB_POSTGRES_BIN", "CARGO", "CARGO_TARGET_DIR"].into_iter().zip(places);
        xtask_with(places, &[&["lab", "--json", "--folder", &lab], arguments].concat())
    }
}

/// What is taken for a server, because its command line names the data; goes with the value.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn on(data: &Path) -> Self {
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
