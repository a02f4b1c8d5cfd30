//! Backups: taking one of the running lab, listing, checking, restoring.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::document::print;
use super::process::{built, place, run_to_end};
use super::{Role, api::Api, journal};

/// What can be done about backups.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupVerb {
    /// Copies everything of the running lab while it serves.
    Create {
        /// What it is called [default: the time].
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists the backups of the running lab.
    List,
    /// Says whether every file of a backup is the one that was backed up; needs no running lab.
    Verify {
        /// The backup's folder.
        backup: PathBuf,
    },
}

/// Arguments of `lab restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The backup's folder.
    backup: PathBuf,
    /// The data directory that it is put into; it must not be there yet, or be empty.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

/// Backups.
pub(super) fn run(verb: &BackupVerb, json: bool) -> Result<()> {
    match verb {
        BackupVerb::Create { name } => {
            let made = Api::of(Role::Sre)?.post("/v1/admin/backups", &json!({"name": name}))?;
            print("backup-create", &made, json);
            Ok(())
        }
        BackupVerb::List => super::ask::show("backups", "/v1/admin/backups", Role::Sre, json),
        BackupVerb::Verify { backup } => {
            let mut command = Command::new(built("services")?);
            command.arg("--json");
            place(&mut command, "--check-backup", Some(backup))?;
            tell(&mut command, "checked", "backup-verify", json)
        }
    }
}

/// Restores.
pub(super) fn restore(args: &RestoreArgs, json: bool) -> Result<()> {
    let mut command = Command::new(built("services")?);
    command.arg("--json");
    place(&mut command, "--restore", Some(&args.backup))?;
    place(&mut command, "--data-dir", Some(&args.data_dir))?;
    tell(&mut command, "restored", "restore", json)
}

fn tell(command: &mut Command, event: &str, name: &str, json: bool) -> Result<()> {
    let (told, outcome) = run_to_end(command)?;
    if let Some(document) = journal::event_in(&told, event) {
        print(name, &document, json);
    }
    outcome
}
