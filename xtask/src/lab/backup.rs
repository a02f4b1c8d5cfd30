//! Backups: taking one of the running lab, listing, checking, restoring.

mod attempt;
mod servers;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::document::print;
use super::process::{place, run_to_end};
use super::programs::built;
use super::{Role, api::Api, journal};
use crate::exit::Failure;

/// What can be done about backups.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupVerb {
    /// Copies everything of the running lab while it serves; of one on servers also archives their logs from then on.
    Create {
        /// What it is called [default: the time].
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists the backups of the running lab: `complete`, `running`, or `failed` with the reason.
    List,
    /// Says whether every file of a backup is the one that was backed up; needs no running lab.
    Verify {
        /// The backup's folder.
        backup: PathBuf,
    },
}

impl BackupVerb {
    /// Whether it copies the servers of this folder, beside what the lab copies.
    pub(super) fn copies_servers(&self) -> bool {
        matches!(self, Self::Create { .. }) && journal::process_folder().exists()
    }
}

/// Arguments of `lab restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The backup's folder.
    backup: PathBuf,
    /// The data directory that it is put into; it must not be there yet, or be empty.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Restores servers up to this instant (RFC 3339) instead of as far as their archive reaches.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// The data directory that was backed up, or a copy of it, for the audit checkpoints that were signed since
    /// [default: where it was; of servers also what their archive keeps of it].
    #[arg(long, value_name = "DIR")]
    origin: Option<PathBuf>,
}

/// Backups.
pub(super) fn run(verb: &BackupVerb, json: bool) -> Result<()> {
    let is_on_servers = journal::process_folder().exists();
    match verb {
        BackupVerb::Create { name } if is_on_servers => servers::create(name.as_deref(), json),
        BackupVerb::List if is_on_servers => servers::list(json),
        BackupVerb::Verify { backup } if servers::is_one(backup) => servers::verify(backup, json),
        BackupVerb::Create { name } => {
            let made = Api::of(Role::Sre)?.patient().post("/v1/admin/backups", &json!({"name": name}))?;
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
    if servers::is_one(&args.backup) {
        return servers::restore(args, json);
    }
    if args.to.is_some() {
        let sentence = "--to is for backups of servers: one of files has no archive behind it, and is of one instant";
        return Err(Failure::Usage.because(sentence));
    }
    let mut command = Command::new(built("services")?);
    command.arg("--json");
    place(&mut command, "--restore", Some(&args.backup))?;
    place(&mut command, "--data-dir", Some(&args.data_dir))?;
    place(&mut command, "--origin", args.origin.as_deref())?;
    tell(&mut command, "restored", "restore", json)
}

fn tell(command: &mut Command, event: &str, name: &str, json: bool) -> Result<()> {
    let (told, outcome) = run_to_end(command)?;
    if let Some(document) = journal::event_in(&told, event) {
        print(name, &document, json);
    }
    outcome
}
