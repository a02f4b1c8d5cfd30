//! The built xtask, run to its end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The one document that was printed, whose schema must be that of the verb.
    pub(crate) fn document(&self, name: &str) -> Value {
        let document: Value = serde_json::from_str(self.out.trim()).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(document["schema"], format!("pim.lab.{name}/v1"), "{self:?}");
        let members: Vec<_> = document.as_object().expect("an object").keys().map(String::as_str).collect();
        assert!(members.len() == 2 && members.contains(&name), "schema and {name} alone: {self:?}");
        document[name].clone()
    }
}

/// Runs `cargo xtask …`.
pub(crate) fn xtask(arguments: &[&str]) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments))
}

/// Runs it where there is no PostgreSQL, neither a server that is named nor programs.
pub(crate) fn xtask_without_postgres(arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    ended(command.args(arguments).env_remove("LAB_TEST_POSTGRES_DSN").env("LAB_POSTGRES_BIN", "/nowhere"))
}

/// Runs another copy of it that is not to build anything, in an environment that names no place of what is built.
pub(crate) fn xtask_at(program: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(program);
    let unnamed = command.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR");
    ended(unnamed.args(arguments).env("LAB_BUILD", "never"))
}

/// Runs it in an environment that names other places.
pub(crate) fn xtask_with<'a>(places: impl Iterator<Item = (&'a str, String)>, arguments: &[&str]) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).envs(places))
}

fn ended(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("the built xtask runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A folder that goes away with the value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("xtask-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _absent = std::fs::remove_dir_all(&self.0);
    }
}
