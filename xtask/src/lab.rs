//! `cargo xtask lab`: starts the lab in the background and questions it through its admin API.

mod alive;
mod api;
mod ask;
mod backup;
mod claim;
mod degradation;
mod doctor;
mod document;
mod journal;
mod nine;
mod outbox;
mod process;
pub(crate) mod programs;
mod retention;
mod servers;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

/// Arguments of `cargo xtask lab`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
    /// Prints one JSON document with a schema id instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Questions the lab behind this gateway instead of the one that `lab up` started.
    #[arg(long, global = true, value_name = "URL")]
    gateway: Option<String>,
    /// Where state and log of the background lab are kept [default: target/lab]; several labs may run side by side.
    #[arg(long, global = true, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// A role of the lab.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Role {
    /// Reads their own record.
    Patient,
    /// Works with the patients of their facilities.
    Clinician,
    /// Works through application procedures.
    Admin,
    /// Operates the platform.
    Sre,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Clinician => "clinician",
            Self::Admin => "admin",
            Self::Sre => "sre",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts the lab in the background and waits until it is ready.
    Up(process::UpArgs),
    /// Drains and stops the lab, and prints the summary of its run.
    Down,
    /// Tells whether the lab runs, and how it is.
    Status,
    /// Tells what is missing on this machine, and the command that installs it.
    Doctor,
    /// Database servers as local processes, with standbys; the embedded lab needs none.
    Servers {
        #[command(subcommand)]
        verb: servers::ServersVerb,
    },
    /// Prints the lab's log lines.
    Logs {
        /// How many of the last lines.
        #[arg(long, default_value_t = 50)]
        lines: usize,
        /// Goes on with the lines that come, until the lab has ended.
        #[arg(long, short)]
        follow: bool,
    },
    /// Prints an access token for a persona of a role.
    Token {
        /// The role.
        role: Role,
        /// Which persona, such as `clinician-3`; the role's first when absent.
        persona: Option<String>,
    },
    /// Prints the dataset and traffic manifest with digests; starts nothing.
    Plan(process::PlanArgs),
    /// Seeds a data directory and ends.
    Seed(process::SeedArgs),
    /// Drives load at the running lab.
    Load(process::LoadArgs),
    /// Tells every hop of a request, with its time.
    Journey {
        /// The `x-pim-request-id` of an answer, or the trace id of a metric's example.
        request_id: String,
        /// How to draw it.
        #[arg(long, value_parser = ["text", "mermaid"], default_value = "text")]
        format: String,
    },
    /// Tells how an entity came to be what it is.
    Lineage {
        /// `patient`, `encounter`, `claim`, …
        entity: String,
        /// Its id.
        id: String,
        /// State as of this instant (RFC 3339).
        #[arg(long, value_name = "TIME")]
        as_of: Option<String>,
        /// Replays the audit trail against the history.
        #[arg(long)]
        verify: bool,
    },
    /// Shards and their map.
    Shard {
        #[command(subcommand)]
        verb: ask::ShardVerb,
    },
    /// Backlog and leases of the outbox.
    Outbox,
    /// Dead letters: what is parked, and unparking.
    Dlq {
        #[command(subcommand)]
        verb: ask::DlqVerb,
    },
    /// Projections: lag, and rebuilding.
    Projection {
        #[command(subcommand)]
        verb: ask::ProjectionVerb,
    },
    /// The audit trail: looking up, and verifying.
    Audit {
        #[command(subcommand)]
        verb: ask::AuditVerb,
    },
    /// Backups of the running lab, and whether they are whole.
    Backup {
        #[command(subcommand)]
        verb: backup::BackupVerb,
    },
    /// Puts a backup into a new data directory, verifies it, and tells recovery point and time.
    Restore(backup::RestoreArgs),
    /// Removing history and audit records whose time is over.
    Retention {
        #[command(subcommand)]
        verb: retention::RetentionVerb,
    },
}

impl Verb {
    /// Whether it changes what this lab's folder leads to, and goes by what its gateway says.
    fn is_of_this_folder(&self) -> bool {
        match self {
            Self::Up(_) | Self::Down => true,
            Self::Servers { verb } => verb.changes_shards(),
            Self::Shard { verb } => verb.is_of_servers_here(),
            Self::Backup { verb } => verb.copies_servers(),
            _ => false,
        }
    }
}

/// Runs one verb.
pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let json = args.json;
    if let Some(gateway) = &args.gateway {
        api::reach(gateway)?;
    }
    if let Some(folder) = &args.folder {
        journal::keep_in(std::path::absolute(folder)?);
    }
    if args.verb.is_of_this_folder() {
        api::refuse_another()?;
    }
    match &args.verb {
        Verb::Up(up) => process::up(up, json),
        Verb::Down => process::down(json),
        Verb::Status => ask::status(json),
        Verb::Doctor => doctor::run(json),
        Verb::Servers { verb } => servers::run(verb, json),
        Verb::Logs { lines, follow } => journal::logs(*lines, *follow, json),
        Verb::Token { role, persona } => ask::token(*role, persona.as_deref(), json),
        Verb::Plan(plan) => process::plan(plan, json),
        Verb::Seed(seed) => process::seed(seed, json),
        Verb::Load(load) => process::load(load, json),
        Verb::Journey { request_id, format } => ask::journey(request_id, format, json),
        Verb::Lineage { entity, id, as_of, verify } => ask::lineage(entity, id, as_of.as_deref(), *verify, json),
        Verb::Shard { verb } => ask::shard(verb, json),
        Verb::Outbox => outbox::run(json),
        Verb::Dlq { verb } => ask::dlq(verb, json),
        Verb::Projection { verb } => ask::projection(verb, json),
        Verb::Audit { verb } => ask::audit(verb, json),
        Verb::Backup { verb } => backup::run(verb, json),
        Verb::Restore(args) => backup::restore(args, json),
        Verb::Retention { verb } => retention::run(verb, json),
    }
}
