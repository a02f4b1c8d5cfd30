//! Running PostgreSQL's programs for a server: whoever asks gets the answer to what was asked, and no command line has a
//! secret.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{LocalError, LocalServer};

/// How long a server may take to let somebody in.
const CONNECT_SECONDS: &str = "5";

impl LocalServer {
    /// A program that talks to this server as its superuser. The password is in its environment: everybody on a machine sees
    /// command lines.
    pub(super) fn client(&self, program: &str, database: &str) -> Command {
        let mut client = self.programs.command(program);
        client.arg("-d").arg(format!("postgres://postgres@127.0.0.1:{}/{database}", self.port));
        client.env("PGPASSWORD", &self.password);
        // A server that stands still takes connections and answers none.
        client.env("PGCONNECT_TIMEOUT", CONNECT_SECONDS);
        client
    }

    pub(super) fn run(&self, command: &mut Command) -> Result<(), LocalError> {
        self.run_apart(command).map(drop)
    }

    /// Runs a program that leaves nothing running behind, beside others that do the same, and returns what it printed.
    pub(super) fn run_apart(&self, command: &mut Command) -> Result<String, LocalError> {
        let output = command.stdin(Stdio::null()).output().map_err(self.in_its_folder())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        Err(self.failed(command, &String::from_utf8_lossy(&output.stderr)))
    }

    /// Runs `pg_ctl start`: what it starts may keep its parent's outputs open, so that they go to a file instead of a pipe.
    pub(super) fn launch(&self, command: &mut Command) -> Result<(), LocalError> {
        command.arg("-l").arg(self.folder.join("log"));
        let told = self.folder.join("told");
        let errors = File::create(&told).map_err(self.in_its_folder())?;
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).status();
        if status.map_err(self.in_its_folder())?.success() {
            return Ok(());
        }
        Err(self.failed(command, &std::fs::read_to_string(&told).unwrap_or_default()))
    }

    fn failed(&self, command: &Command, told: &str) -> LocalError {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What the server itself says of it is in its log.
        let log = if program == "pg_ctl" { self.log_tail() } else { String::new() };
        let why = format!("{told}\n{log}").trim().to_owned();
        LocalError::Program { program, folder: self.folder.clone(), why }
    }
}
