//! PostgreSQL's programs: where they are, and as whom they run, because they refuse root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the directory of PostgreSQL's programs, where they are not found by themselves.
pub const BIN_VARIABLE: &str = "LAB_POSTGRES_BIN";
/// Names the unprivileged user that runs the servers when the caller is root.
pub const USER_VARIABLE: &str = "LAB_POSTGRES_USER";

const MAJOR_MIN: u32 = 15;
/// What would have a program talk to another server, as somebody else, or by another name.
const CALLERS_OWN: [&str; 9] =
    ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGDATA", "PGSERVICE", "PGOPTIONS", "PGAPPNAME"];
const DEBIAN: &str = "/usr/lib/postgresql";

/// Why there are no programs that could be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramsError {
    /// No directory has them.
    #[error(
        "PostgreSQL's programs (initdb, postgres, pg_basebackup) were not found in {looked_in}: install the package `postgresql`, or set {BIN_VARIABLE}"
    )]
    Missing {
        /// Where they were looked for.
        looked_in: String,
    },
    /// They are there, but too old.
    #[error("{program} is version {found}, at least {MAJOR_MIN} is needed: set {BIN_VARIABLE}")]
    TooOld {
        /// Which program was asked.
        program: PathBuf,
        /// What it said.
        found: String,
    },
    /// Root asked, and there is nobody who could run them.
    #[error("PostgreSQL refuses root, and the user `{name}` does not exist: set {USER_VARIABLE}")]
    NoUser {
        /// Whom we looked for.
        name: String,
    },
}

/// Who runs the servers instead of root.
#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

/// The programs of one installation.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
    user: Option<User>,
    major: u32,
}

impl Programs {
    /// Finds them: the directory of `LAB_POSTGRES_BIN`, that of `pg_config`, or the newest of Debian's.
    ///
    /// # Errors
    /// When there are none, they are too old, or nobody may run them.
    pub fn find() -> Result<Self, ProgramsError> {
        let places = places();
        let complete = |bin: &&PathBuf| {
            ["initdb", "postgres", "pg_basebackup", "pg_ctl", "psql"].iter().all(|program| bin.join(program).exists())
        };
        let Some(bin) = places.iter().find(complete) else {
            let looked_in: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            return Err(ProgramsError::Missing { looked_in: looked_in.join(", ") });
        };
        Ok(Self { bin: bin.clone(), user: unprivileged()?, major: Self::version(bin)? })
    }

    /// Where they are.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// One of them, to be run by somebody whom it does not refuse.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // Messages are parsed, and a caller's own settings must not reach another server.
        command.env("LC_ALL", "C").current_dir("/");
        for variable in CALLERS_OWN {
            command.env_remove(variable);
        }
        if let Some(user) = self.user {
            command.gid(user.gid).uid(user.uid);
        }
        command
    }

    /// Makes a folder or file belong to the one who runs the servers.
    ///
    /// # Errors
    /// When it cannot be given away.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some(user) => chown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        }
    }

    /// The major version, which must be that of the files that they work on.
    #[must_use]
    pub const fn major(&self) -> u32 {
        self.major
    }

    fn version(bin: &Path) -> Result<u32, ProgramsError> {
        let program = bin.join("postgres");
        let output = Command::new(&program).arg("--version").output();
        let told = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        match major_of(&told) {
            Some(major) if major >= MAJOR_MIN => Ok(major),
            _ => Err(ProgramsError::TooOld { program, found: told }),
        }
    }
}

/// `postgres (PostgreSQL) 15.6 (Debian …)`
fn major_of(told: &str) -> Option<u32> {
    let version = told.split_once("(PostgreSQL) ")?.1;
    version.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

fn places() -> Vec<PathBuf> {
    if let Some(bin) = std::env::var_os(BIN_VARIABLE) {
        return vec![bin.into()];
    }
    let mut places = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        places.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|version| version.path()).collect();
    versions.sort();
    places.extend(versions.into_iter().rev().map(|version| version.join("bin")));
    places
}

/// Nobody when the caller is no root.
fn unprivileged() -> Result<Option<User>, ProgramsError> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !is_root {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Ok(name) = std::env::var(USER_VARIABLE) {
        return user_of(&users, &name).map(Some).ok_or(ProgramsError::NoUser { name });
    }
    let found = ["postgres", "nobody"].iter().find_map(|name| user_of(&users, name));
    found.map(Some).ok_or_else(|| ProgramsError::NoUser { name: "nobody".to_owned() })
}

fn user_of(users: &str, name: &str) -> Option<User> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    Some(User { uid, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::{major_of, user_of};

    #[test]
    fn version_is_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.6 (Debian 15.6-0+deb12u1)"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 17beta1"), Some(17));
        assert_eq!(major_of(""), None);
    }

    #[test]
    fn user_is_found_by_whole_name() {
        let users = "root:x:0:0::/root:/bin/sh\npostgres2:x:9:9::/:/bin/sh\npostgres:x:105:112::/:/bin/sh";
        let user = user_of(users, "postgres").expect("is there");
        assert_eq!((user.uid, user.gid), (105, 112));
        assert!(user_of(users, "post").is_none());
    }
}
