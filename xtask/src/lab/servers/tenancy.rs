//! Servers that `lab restore` has made are one lab's at a time: beside them a file names its folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use pim_servers::fleet::Fleet;

use super::super::journal;
use super::failed;
use crate::exit::Failure;

const FILE: &str = "used-by";

/// Refuses servers that run, and those of a lab that goes on: who took them for its own would stop them when it ends.
pub(super) fn refuse_others(fleet: &Fleet, folder: &Path) -> Result<()> {
    let running = fleet.running().map_err(failed)?;
    let tenant = tenant_of(folder);
    if running.is_empty() && tenant.is_none() {
        return Ok(());
    }
    let what =
        if running.is_empty() { "are a lab's".to_owned() } else { format!("run already: {}", running.join(", ")) };
    let fix = match tenant {
        Some(lab) => {
            // Whoever was broken off before the programs came has servers alone, and `lab down` finds nothing there.
            let verb = if journal::process_folder_in(&lab).exists() { "down" } else { "servers down" };
            format!("they are those of the lab in {0}: `cargo xtask lab --folder {0} {verb}` stops it", lab.display())
        }
        None => "no lab is known to have started them: stop them first, with `pg_ctl stop`".to_owned(),
    };
    Err(Failure::Precondition.because(format!("servers in {} {what}; {fix}", folder.display())))
}

/// Notes whose they are from now on.
pub(super) fn take(folder: &Path, link: &Path) -> Result<()> {
    let file = folder.with_file_name(FILE);
    fs::write(&file, link.as_os_str().as_encoded_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

/// They are nobody's any more.
pub(super) fn leave(folder: &Path) {
    let _absent = fs::remove_file(folder.with_file_name(FILE));
}

/// The folder of the lab that was noted, while that still leads here.
fn tenant_of(folder: &Path) -> Option<PathBuf> {
    let link = PathBuf::from(fs::read_to_string(folder.with_file_name(FILE)).ok()?);
    let leads_here = fs::canonicalize(&link).is_ok_and(|led| fs::canonicalize(folder).is_ok_and(|it| it == led));
    leads_here.then(|| link.parent().map(Path::to_path_buf))?
}
