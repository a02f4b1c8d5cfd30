//! Questions to a running lab, and how their answers are shown.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::{Value, json};

use super::Role;
use super::api::Api;
use super::journal::State;
use crate::exit::Failure;

/// What can be asked of shards.
#[derive(Debug, Subcommand)]
pub(crate) enum ShardVerb {
    /// Lists the shards with their health.
    List,
    /// Prints the map in force.
    Map,
    /// Publishes a new map, or tells what publishing would change.
    Publish {
        /// The map file.
        map: PathBuf,
        /// Only validates and shows the difference.
        #[arg(long)]
        dry_run: bool,
    },
}

/// What can be asked of dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DlqVerb {
    /// Lists what is parked.
    List,
    /// Applies a key's parked sequence in order and lets the key go on.
    Unpark {
        /// The consumer that parked it.
        consumer: String,
        /// The key: a patient's id.
        key: String,
    },
}

/// What can be asked of projections.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectionVerb {
    /// Lists projections with their lag.
    List,
    /// Builds a new version from the log and swaps it in.
    Rebuild {
        /// The projection.
        name: String,
    },
}

/// What can be asked of the audit trail.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Records of a request or a user.
    Show {
        /// By request.
        #[arg(long, required_unless_present = "user")]
        request: Option<String>,
        /// By user.
        #[arg(long)]
        user: Option<String>,
    },
    /// Checks every lane's chain and every checkpoint.
    Verify,
}

/// GETs one document and prints it.
pub(super) fn show(name: &str, path: &str, role: Role, json: bool) -> Result<()> {
    let document = Api::of(role)?.get(path)?;
    print(name, &document, json);
    Ok(())
}

/// Whether the lab runs, and how it is.
pub(super) fn status(json: bool) -> Result<()> {
    let state = State::load()?;
    let summary = Api::of(Role::Sre)?.get("/v1/admin/runs/summary")?;
    let document = json!({"gateway": state.gateway, "broker": state.broker, "pid": state.pid, "run": summary});
    print("status", &document, json);
    Ok(())
}

/// A token for a role.
pub(super) fn token(role: Role, json: bool) -> Result<()> {
    let api = Api::of(role)?;
    if json {
        print("token", &json!({"role": role.name(), "access_token": api.token()}), true);
    } else {
        println!("{}", api.token());
    }
    Ok(())
}

/// Every hop of a request.
pub(super) fn journey(request_id: &str, format: &str, json: bool) -> Result<()> {
    let path = format!("/v1/admin/journeys/{request_id}");
    if json {
        return show("journey", &path, Role::Sre, true);
    }
    let media_type = if format == "mermaid" { "text/vnd.mermaid" } else { "text/plain" };
    println!("{}", Api::of(Role::Sre)?.get_text(&path, media_type)?);
    Ok(())
}

/// How an entity came to be what it is.
pub(super) fn lineage(entity: &str, id: &str, as_of: Option<&str>, verify: bool, json: bool) -> Result<()> {
    let mut path = format!("/v1/admin/lineage/{entity}/{id}?verify={verify}");
    if let Some(time) = as_of {
        path.push_str("&as_of=");
        path.push_str(&time.replace('+', "%2B"));
    }
    let document = Api::of(Role::Sre)?.get(&path)?;
    print("lineage", &document, json);
    if verify && document["verify"]["agrees"] != true {
        return Err(Failure::Threshold.because("history and audit do not agree"));
    }
    Ok(())
}

/// Shards.
pub(super) fn shard(verb: &ShardVerb, json: bool) -> Result<()> {
    match verb {
        ShardVerb::List => show("shards", "/v1/admin/shards", Role::Sre, json),
        ShardVerb::Map => show("shard-map", "/v1/admin/shards/map", Role::Sre, json),
        ShardVerb::Publish { map, dry_run } => {
            let text = std::fs::read_to_string(map).with_context(|| format!("cannot read {}", map.display()))?;
            let path = format!("/v1/admin/shards/map?dry_run={dry_run}");
            print("shard-publish", &Api::of(Role::Sre)?.post(&path, &json!({"map": text}))?, json);
            Ok(())
        }
    }
}

/// Dead letters.
pub(super) fn dlq(verb: &DlqVerb, json: bool) -> Result<()> {
    match verb {
        DlqVerb::List => show("dead-letters", "/v1/admin/dead-letters", Role::Sre, json),
        DlqVerb::Unpark { consumer, key } => {
            let path = format!("/v1/admin/dead-letters/{consumer}/{key}/unpark");
            print("unpark", &Api::of(Role::Sre)?.post(&path, &json!({}))?, json);
            Ok(())
        }
    }
}

/// Projections.
pub(super) fn projection(verb: &ProjectionVerb, json: bool) -> Result<()> {
    match verb {
        ProjectionVerb::List => show("projections", "/v1/admin/projections", Role::Sre, json),
        ProjectionVerb::Rebuild { name } => {
            let path = format!("/v1/admin/projections/{name}/rebuild");
            print("rebuild", &Api::of(Role::Sre)?.post(&path, &json!({}))?, json);
            Ok(())
        }
    }
}

/// The audit trail.
pub(super) fn audit(verb: &AuditVerb, json: bool) -> Result<()> {
    match verb {
        AuditVerb::Show { request, user } => {
            let (name, value) = match (request, user) {
                (Some(request), _) => ("request_id", request),
                (None, Some(user)) => ("user_id", user),
                (None, None) => return Err(Failure::Usage.because("name a --request or a --user")),
            };
            show("audit", &format!("/v1/admin/audit?{name}={value}"), Role::Sre, json)
        }
        AuditVerb::Verify => {
            let report = Api::of(Role::Sre)?.post("/v1/admin/audit/verify", &json!({}))?;
            print("audit-verify", &report, json);
            if report["verified"] == true {
                return Ok(());
            }
            Err(Failure::Threshold.because("the audit trail does not verify"))
        }
    }
}

fn print(name: &str, document: &Value, json: bool) {
    let text = if json {
        json!({"schema": format!("pim.lab.{name}/v1"), name: document}).to_string()
    } else {
        format!("{document:#}")
    };
    // A reader such as `head` may have gone away; that is its right.
    let _gone = writeln!(std::io::stdout(), "{text}");
}
