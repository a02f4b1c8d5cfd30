//! Keeping what a server writes: its finished log segments in a folder, and base backups that they continue.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{LocalError, LocalServer, segments};

/// A segment is finished at the latest after this time, if anything was written: what an archive lacks is no older.
pub const ARCHIVE_EVERY_SECONDS: u64 = 60;

/// A server cuts a command at 1024 bytes, and then what is left is none.
const PLACE_LEN_MAX: usize = 600;

impl LocalServer {
    /// Has every finished segment of the log copied into a folder from now on. A standby does so as well, so that nothing is
    /// missing when it takes over; who comes second finds the same file there.
    ///
    /// # Errors
    /// When the folder cannot be used, or its name cannot stand in a command of the server.
    pub fn archive_into(&self, folder: &Path) -> Result<(), LocalError> {
        let is_fit = |it: &&str| it.len() <= PLACE_LEN_MAX && !it.contains(['\'', '"', '\\', '`', '$', '%', '\n']);
        let place = folder.to_str().filter(is_fit).ok_or_else(|| LocalError::Name { folder: folder.to_owned() })?;
        fs::create_dir_all(folder).and_then(|()| self.programs.give(folder)).map_err(self.in_its_folder())?;
        // Whole or not at all, also after a power cut, and never over another one.
        let copy = "cp --sparse=always \"%p\" \"$t\" && sync \"$t\" && mv \"$t\" \"$f\" && sync \"$d\"";
        let command = format!(
            "d=\"{place}\"; f=\"$d/%f\"; t=\"$d/.%f.$$\"; \
             if [ -f \"$f\" ]; then cmp -s \"%p\" \"$f\"; else {copy} || {{ rm -f \"$t\"; false; }}; fi"
        );
        let every = ARCHIVE_EVERY_SECONDS.to_string();
        let settings = [("archive_command", command.as_str()), ("archive_timeout", every.as_str())];
        if self.is_running() { self.configure(&settings) } else { self.append(&settings) }
    }

    /// Copies the server while it serves into a folder that does not exist yet, with the log that the copy needs.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn base_backup(&self, into: &Path) -> Result<(), LocalError> {
        let mut copy = self.programs.command("pg_basebackup");
        copy.args(["-d", &self.dsn(), "--checkpoint=fast", "--wal-method=stream", "--manifest-checksums=SHA256", "-D"]);
        self.run_apart(copy.arg(into)).map(drop)
    }

    /// Finishes the segment that is being written and returns when the archive has it: what was committed before is in it.
    ///
    /// # Errors
    /// When it does not run, or the archive does not take the segment.
    pub fn close_segment(&self, archive: &Path) -> Result<(), LocalError> {
        // Something to stop at for who recovers to an instant; it waits for no standby.
        let mark = "SELECT set_config('synchronous_commit', 'local', false), pg_current_xact_id()";
        self.sql("postgres", mark)?;
        let file = archive.join(self.sql("postgres", "SELECT pg_walfile_name(pg_switch_wal())")?);
        self.wait_until("archived", || file.exists())
    }

    /// Whether the archive has a segment of this number, which was finished, in time.
    pub(crate) fn is_archived(&self, archive: &Path, number: u64) -> bool {
        self.wait_until("archived", || segments(archive).iter().any(|(found, _)| *found == number)).is_ok()
    }

    /// Runs a program that leaves nothing running behind, beside others that do the same.
    pub(super) fn run_apart(&self, command: &mut Command) -> Result<String, LocalError> {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let output = command.stdin(Stdio::null()).output().map_err(self.in_its_folder())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LocalError::Program { program, folder: self.folder.clone(), why })
    }
}
