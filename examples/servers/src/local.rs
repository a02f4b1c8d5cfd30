//! One PostgreSQL server as a local process, run by an unprivileged user and reachable on loopback only.

mod archive;
mod program;
mod recovery;
mod standby;

pub use archive::ARCHIVE_EVERY_SECONDS;
pub use recovery::RecoveryError;
pub(crate) use recovery::{Source, last_before, name_of, number_of, segments};

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::port;
use crate::programs::{Programs, ProgramsError};
use crate::signal;
use crate::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_SECONDS: &str = "60";
/// A week: a server that recovers ends by itself when it cannot go on.
const RECOVERY_SECONDS: &str = "604800";
const PORT_TRIES_MAX: u32 = 5;

/// What a server of ours has that PostgreSQL's own default has not. A replication slot of a lost standby is bounded. The
/// log is kept from the first base backup on: nothing could use it without. A standby that has lost its primary sleeps for
/// `wal_retrieve_retry_interval` between two tries, and a request to take over that meets it in between lets it sleep on.
/// Some of the log stays in any case: `pg_basebackup` reserves what it needs only after the server has begun the copy, and the
/// checkpoint of another copy may remove it in between.
const CONFIGURATION: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = '64MB'
wal_log_hints = on
max_slot_wal_keep_size = '1GB'
wal_keep_size = '128MB'
archive_mode = always
archive_command = 'true'
wal_retrieve_retry_interval = '250ms'
";

/// Why a server cannot be what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// PostgreSQL cannot be run here.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// A folder or a file of it.
    #[error("cannot use {}", folder.display())]
    Folder {
        /// Which one.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program of PostgreSQL said no.
    #[error("`{program}` failed for {}: {why}", folder.display())]
    Program {
        /// Which program.
        program: String,
        /// The server's folder.
        folder: PathBuf,
        /// What it said.
        why: String,
    },
    /// A folder that cannot be named in a command of the server.
    #[error("{} has a character that a server's command cannot take: choose another folder", folder.display())]
    Name {
        /// Which one.
        folder: PathBuf,
    },
    /// Something that should come about has not.
    #[error("the server in {} was not {what} within {} s", folder.display(), PATIENCE.as_secs())]
    Waited {
        /// The server's folder.
        folder: PathBuf,
        /// What was waited for.
        what: &'static str,
    },
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ends its sessions, writes a checkpoint, and lets a standby receive everything.
    Fast,
    /// Ends at once and recovers at its next start.
    Immediate,
}

/// A server in a folder of its own; the value is a handle, the server outlives it.
#[derive(Clone, Debug)]
pub struct LocalServer {
    programs: Programs,
    folder: PathBuf,
    name: String,
    password: String,
    port: u16,
}

impl LocalServer {
    /// Makes a new database cluster in a folder that does not exist yet, and starts it. Its superuser is `postgres`.
    ///
    /// # Errors
    /// When it cannot be made or does not become ready.
    pub fn create(programs: &Programs, folder: &Path, name: &str, password: &str) -> Result<Self, LocalError> {
        let mut server = Self::in_folder(programs, folder, name, password)?;
        let secret = folder.join("password");
        server.write(&secret, password)?;
        let mut initdb = programs.command("initdb");
        initdb.args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        initdb.arg("--pwfile").arg(&secret).arg("-D").arg(server.data());
        server.run(&mut initdb)?;
        fs::remove_file(&secret).map_err(server.in_its_folder())?;
        server.write(&server.settings(), CONFIGURATION)?;
        server.start_on_free_port()?;
        Ok(server)
    }

    /// A server that was made before, by this or another process; it may be running or not.
    ///
    /// # Errors
    /// When PostgreSQL cannot be run here, or there is no server in the folder.
    pub fn open(programs: &Programs, folder: &Path, name: &str, password: &str) -> Result<Self, LocalError> {
        let server = Self::open_or_missing(programs, folder, name, password)?;
        if server.is_missing() {
            return Err(server.in_its_folder()(io::ErrorKind::NotFound.into()));
        }
        Ok(server)
    }

    /// The same, also where its folder or its data are gone, or were never completed.
    pub(crate) fn open_or_missing(
        programs: &Programs,
        folder: &Path,
        name: &str,
        password: &str,
    ) -> Result<Self, LocalError> {
        let (programs, name, password) = (programs.clone(), name.to_owned(), password.to_owned());
        let mut server = Self { programs, folder: folder.to_owned(), name, password, port: 0 };
        let text = match fs::read_to_string(server.settings()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(server.in_its_folder())?,
        };
        let last = |key| text.lines().filter_map(|line| line.strip_prefix(key)).next_back();
        // A copy has the settings of the server that it is one of, until it is complete.
        if last("cluster_name = ") == Some(format!("'{}'", server.name).as_str()) {
            server.port = last("port = ").and_then(|port| port.parse().ok()).unwrap_or(0);
        }
        Ok(server)
    }

    /// Whether it has no data, or such as were never completed.
    pub(crate) const fn is_missing(&self) -> bool {
        self.port == 0
    }

    /// The connection string of the superuser.
    #[must_use]
    pub fn dsn(&self) -> String {
        self.dsn_of("postgres", &self.password, "postgres")
    }

    /// A connection string for somebody else, or another database.
    #[must_use]
    pub fn dsn_of(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens on 127.0.0.1; the same for as long as it exists.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its name, which is also that of a standby in `synchronous_standby_names` of its primary.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Starts it again, on its port, and returns when it takes connections.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(&self) -> Result<(), LocalError> {
        self.launch(&mut self.control("start"))
    }

    /// Stops it and returns when it has ended.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn stop(&self, how: Stop) -> Result<(), LocalError> {
        let mut stop = self.control("stop");
        self.run(stop.args(["-m", if how == Stop::Fast { "fast" } else { "immediate" }]))
    }

    /// SIGKILL to the server and to all its sessions: no checkpoint, no farewell, nothing.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn kill(&self) -> Result<(), LocalError> {
        let Some(postmaster) = self.postmaster() else { return Err(self.waited("running")) };
        // The sessions as well: they would go on for a moment, and the memory they share keeps a new start waiting.
        let mut pids = vec![postmaster];
        pids.extend(children_of(postmaster));
        self.signal("-KILL", &pids)?;
        self.wait_until("gone", || pids.iter().all(|&pid| !is_alive(pid)))?;
        // Nobody may have collected the dead process yet, and then a new server takes its file for a living one's.
        fs::remove_file(self.data().join("postmaster.pid")).map_err(self.in_its_folder())
    }

    /// SIGSTOP: it is there and answers nobody, as on the far side of a partition.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<(), LocalError> {
        self.signal_all("-STOP")
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<(), LocalError> {
        self.signal_all("-CONT")
    }

    /// Whether its process is there.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.postmaster().is_some()
    }

    /// Changes settings and has them read again; some take effect at the next start only.
    ///
    /// # Errors
    /// When they cannot be written, or it does not run.
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<(), LocalError> {
        self.append(settings)?;
        self.run(&mut self.control("reload"))
    }

    /// Runs SQL as the superuser in a database, each statement by itself, and returns the rows as psql prints them
    /// without decoration.
    ///
    /// # Errors
    /// When it cannot be reached, or a statement fails.
    pub fn sql(&self, database: &str, text: &str) -> Result<String, LocalError> {
        self.run_apart(&mut self.question(database, text))
    }

    /// The same; the text finds the superuser's password as `current_setting('lab.password')`, and has it not itself.
    pub(crate) fn sql_with_password(&self, database: &str, text: &str) -> Result<(), LocalError> {
        let mut psql = self.question(database, text);
        self.run(psql.env("PGOPTIONS", format!("-c lab.password={}", self.password)))
    }

    fn question(&self, database: &str, text: &str) -> Command {
        let mut psql = self.client("psql", database);
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text]);
        psql
    }

    fn in_folder(programs: &Programs, folder: &Path, name: &str, password: &str) -> Result<Self, LocalError> {
        let (programs, name, password) = (programs.clone(), name.to_owned(), password.to_owned());
        let server = Self { programs, folder: folder.to_owned(), name, password, port: 0 };
        fs::create_dir_all(folder).map_err(server.in_its_folder())?;
        server.programs.give(folder).map_err(server.in_its_folder())?;
        Ok(server)
    }

    /// Somebody who asks for that very port may be faster: then another one is tried.
    fn start_on_free_port(&mut self) -> Result<(), LocalError> {
        self.on_free_port(Self::start)
    }

    /// The same, however long it takes until what the server has to replay first is replayed.
    fn recover_on_free_port(&mut self) -> Result<(), LocalError> {
        self.on_free_port(|server| server.launch(&mut server.control_within("start", RECOVERY_SECONDS)))
    }

    fn on_free_port(&mut self, start: impl Fn(&Self) -> Result<(), LocalError>) -> Result<(), LocalError> {
        let mut tries = 0;
        loop {
            self.port = port::reserve().map_err(self.in_its_folder())?.port();
            let port = self.port.to_string();
            self.append(&[("port", &port), ("cluster_name", &self.name)])?;
            tries += 1;
            match start(self) {
                Err(_) if tries < PORT_TRIES_MAX && self.log_tail().contains("Address already in use") => {}
                outcome => return outcome,
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn settings(&self) -> PathBuf {
        self.data().join("postgresql.conf")
    }

    fn control(&self, verb: &str) -> Command {
        self.control_within(verb, PATIENCE_SECONDS)
    }

    fn control_within(&self, verb: &str, seconds: &str) -> Command {
        let mut command = self.programs.command("pg_ctl");
        command.args([verb, "--silent", "--wait", "--timeout", seconds, "-D"]).arg(self.data());
        command
    }

    fn append(&self, settings: &[(&str, &str)]) -> Result<(), LocalError> {
        let lines = settings.iter().map(|(key, value)| match value.parse::<u64>() {
            Ok(number) => format!("{key} = {number}\n"),
            Err(_) => format!("{key} = '{}'\n", value.replace('\'', "''")),
        });
        self.write(&self.settings(), &lines.collect::<String>())
    }

    /// Appends, and gives the file to the one who runs the server; nobody else may read a new one.
    fn write(&self, file: &Path, text: &str) -> Result<(), LocalError> {
        let written = OpenOptions::new().create(true).append(true).mode(0o600).open(file);
        let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
        written.and_then(|()| self.programs.give(file)).map_err(self.in_its_folder())
    }

    /// Its process, when it is there: the file alone proves nothing, a number is given to others in time.
    fn postmaster(&self) -> Option<u32> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = String::from_utf8_lossy(&line).contains(&*self.data().to_string_lossy());
        (ours && is_alive(pid)).then_some(pid)
    }

    fn signal_all(&self, signal: &str) -> Result<(), LocalError> {
        let Some(postmaster) = self.postmaster() else { return Err(self.waited("running")) };
        let mut pids = vec![postmaster];
        pids.extend(children_of(postmaster));
        self.signal(signal, &pids)
    }

    fn signal(&self, signal: &str, pids: &[u32]) -> Result<(), LocalError> {
        // A session may end by itself meanwhile; whether the signal had its effect is what callers wait for.
        signal::send(signal, pids).map(drop).map_err(self.in_its_folder())
    }

    fn wait_until(&self, what: &'static str, holds: impl FnMut() -> bool) -> Result<(), LocalError> {
        if until(PATIENCE, holds) { Ok(()) } else { Err(self.waited(what)) }
    }

    fn waited(&self, what: &'static str) -> LocalError {
        LocalError::Waited { folder: self.folder.clone(), what }
    }

    fn in_its_folder(&self) -> impl Fn(io::Error) -> LocalError + use<> {
        let folder = self.folder.clone();
        move |source| LocalError::Folder { folder: folder.clone(), source }
    }
}

/// Parent and state of a process.
fn stat(pid: u32) -> Option<(u32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = text.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(_, state)| state != 'Z')
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| stat(pid).is_some_and(|(its_parent, _)| its_parent == parent)).collect()
}
