//! Questions to a running lab, and how their answers are shown.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::Role;
use super::api::{self, Api, segment};
use super::document::{print, say};
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
    let known = if api::named().is_some() { Ok(None) } else { State::load().map(Some) };
    let asked = known.and_then(|state| Ok((state, Api::of(Role::Sre)?.get("/v1/admin/runs/summary")?)));
    let (state, run) = match asked {
        Ok(found) => found,
        Err(error) => {
            if json {
                print("status", &json!({"running": false}), true);
            }
            return Err(error);
        }
    };
    let mut document = json!({"running": true, "run": run, "gateway": api::named()});
    if let Some(state) = state {
        document["gateway"] = state.gateway.into();
        document["broker"] = state.broker.into();
        document["pid"] = state.pid.into();
    }
    print("status", &document, json);
    Ok(())
}

/// A token for a role, or for one persona of it.
pub(super) fn token(role: Role, persona: Option<&str>, json: bool) -> Result<()> {
    let asked = match persona {
        Some(subject) => json!({"subject": subject}),
        None => json!({"role": role.name()}),
    };
    let (api, told) = Api::signed_in(&asked).map_err(|error| match persona {
        Some(subject) => error.context(format!("the lab knows no persona `{subject}`: they are like clinician-0")),
        None => error,
    })?;
    if told["role"] != role.name() {
        let sentence = format!("persona {} is a {}, not a {}", told["subject"], told["role"], role.name());
        return Err(Failure::Usage.because(sentence));
    }
    if json {
        let mut document = json!({"access_token": api.token()});
        for member in ["role", "subject", "expires_in", "facility_id", "provider_id", "patient_id"] {
            document[member] = told[member].clone();
        }
        print("token", &document, true);
    } else {
        say(api.token());
    }
    Ok(())
}

/// Every hop of a request.
pub(super) fn journey(request_id: &str, format: &str, json: bool) -> Result<()> {
    let path = format!("/v1/admin/journeys/{}", segment(request_id));
    if json {
        return show("journey", &path, Role::Sre, true);
    }
    let media_type = if format == "mermaid" { "text/vnd.mermaid" } else { "text/plain" };
    say(&Api::of(Role::Sre)?.get_text(&path, media_type)?);
    Ok(())
}

/// How an entity came to be what it is.
pub(super) fn lineage(entity: &str, id: &str, as_of: Option<&str>, verify: bool, json: bool) -> Result<()> {
    let mut path = format!("/v1/admin/lineage/{}/{}?verify={verify}", segment(entity), segment(id));
    if let Some(time) = as_of {
        path.push_str("&as_of=");
        path.push_str(&segment(time));
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
            let text = std::fs::read_to_string(map)
                .map_err(|error| Failure::Usage.because(format!("cannot read {}: {error}", map.display())))?;
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
            let path = format!("/v1/admin/dead-letters/{}/{}/unpark", segment(consumer), segment(key));
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
            let path = format!("/v1/admin/projections/{}/rebuild", segment(name));
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
            show("audit", &format!("/v1/admin/audit?{name}={}", segment(value)), Role::Sre, json)
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
