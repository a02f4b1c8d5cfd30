//! Keeping what a server writes: its finished log segments in a folder, and base backups that they continue.

use std::fs;
use std::path::Path;

use super::{LocalError, LocalServer, number_of, segments};

/// A segment is finished at the latest after this time, if anything was written: what an archive lacks is no older.
pub const ARCHIVE_EVERY_SECONDS: u64 = 60;

/// A server cuts a command at 1024 bytes, and then what is left is none.
const PLACE_LEN_MAX: usize = 600;

/// Copies a segment into a folder: whole or not at all, also after a power cut, and never over another one.
fn command_into(folder: &Path) -> Result<String, LocalError> {
    let is_fit = |it: &&str| it.len() <= PLACE_LEN_MAX && !it.contains(['\'', '"', '\\', '`', '$', '%', '\n']);
    let place = folder.to_str().filter(is_fit).ok_or_else(|| LocalError::Name { folder: folder.to_owned() })?;
    let copy = "cp --sparse=always \"%p\" \"$t\" && sync \"$t\" && mv \"$t\" \"$f\" && sync \"$d\"";
    Ok(format!(
        "d=\"{place}\"; f=\"$d/%f\"; t=\"$d/.%f.$$\"; \
         if [ -f \"$f\" ]; then cmp -s \"%p\" \"$f\"; else {copy} || {{ rm -f \"$t\"; false; }}; fi"
    ))
}

/// The name of a segment, as the server in a folder told it. Any other text names something else in an archive, and an empty
/// one the archive itself.
fn segment_in(folder: &Path, told: String) -> Result<String, LocalError> {
    if number_of(&told).is_some() {
        return Ok(told);
    }
    let why = format!("it told of the segment `{told}`, which is none");
    Err(LocalError::Program { program: "psql".to_owned(), folder: folder.to_owned(), why })
}

impl LocalServer {
    /// Refuses a folder that cannot be named in the command of a server's archive.
    ///
    /// # Errors
    /// [`LocalError::Name`].
    pub(crate) fn check_archive(folder: &Path) -> Result<(), LocalError> {
        command_into(folder).map(drop)
    }

    /// Has every finished segment of the log copied into a folder from now on. A standby does so as well, so that nothing is
    /// missing when it takes over; who comes second finds the same file there.
    ///
    /// # Errors
    /// When the folder cannot be used, or its name cannot stand in a command of the server.
    pub fn archive_into(&self, folder: &Path) -> Result<(), LocalError> {
        let command = command_into(folder)?;
        fs::create_dir_all(folder).and_then(|()| self.programs.give(folder)).map_err(self.in_its_folder())?;
        if self.archives_by(&command) {
            return Ok(());
        }
        let every = ARCHIVE_EVERY_SECONDS.to_string();
        let settings = [("archive_command", command.as_str()), ("archive_timeout", every.as_str())];
        if self.is_running() { self.configure(&settings) } else { self.append(&settings) }
    }

    /// Whether it does so already: by its own account while it runs, else by its settings.
    fn archives_by(&self, command: &str) -> bool {
        if self.is_running() {
            return self.sql("postgres", "SHOW archive_command").is_ok_and(|told| told == command);
        }
        let settings = fs::read_to_string(self.settings()).unwrap_or_default();
        let last = settings.lines().rev().find_map(|line| line.strip_prefix("archive_command = "));
        last == Some(format!("'{command}'").as_str())
    }

    /// Copies the server while it serves into a folder that does not exist yet, with the log that the copy needs.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn base_backup(&self, into: &Path) -> Result<(), LocalError> {
        let mut copy = self.client("pg_basebackup", "postgres");
        copy.args(["--checkpoint=fast", "--wal-method=stream", "--manifest-checksums=SHA256", "-D"]);
        self.run(copy.arg(into))
    }

    /// Finishes the segment that is being written and returns when the archive has it: what was committed before is in it.
    ///
    /// # Errors
    /// When it does not run, or the archive does not take the segment.
    pub fn close_segment(&self, archive: &Path) -> Result<(), LocalError> {
        // Something to stop at for who recovers to an instant; it waits for no standby.
        let mark = "SELECT set_config('synchronous_commit', 'local', false), pg_current_xact_id()";
        self.sql("postgres", mark)?;
        let told = self.sql("postgres", "SELECT pg_walfile_name(pg_switch_wal())")?;
        let file = archive.join(segment_in(&self.folder, told)?);
        self.wait_until("archived", || file.exists())
    }

    /// Whether the archive has a segment of this number, which was finished, in time.
    pub(crate) fn is_archived(&self, archive: &Path, number: u64) -> bool {
        self.wait_until("archived", || segments(archive).iter().any(|(found, _)| *found == number)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::segment_in;

    /// Guard: nothing that is in an archive anyway, as the archive itself is, is taken for a segment that has come.
    #[test]
    fn only_a_segment_is_waited_for() {
        let told = |text: &str| segment_in(Path::new("/servers/one"), text.to_owned()).ok();
        assert_eq!(told("000000010000000000000005").as_deref(), Some("000000010000000000000005"));
        for other in ["", ".", "00000002.history", "000000010000000000000005\nt"] {
            assert_eq!(told(other), None, "{other:?}");
        }
    }
}
