//! Questions to a running lab, and how their answers are shown.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Role;
use super::api::{self, Api, segment};
use super::document::{print, say};
use super::journal::State;
use super::{degradation, nine, servers};
use crate::exit::{Failure, is_problem};

/// What can be asked of shards.
#[derive(Debug, Subcommand)]
pub(crate) enum ShardVerb {
    /// Lists the shards with their health.
    List,
    /// Prints the map in force, as a file that can be edited and published; its digest, which the next one names as its parent, comes first.
    Map,
    /// Publishes a new map, or tells what publishing would change.
    Publish {
        /// The map file.
        map: PathBuf,
        /// Only validates and shows the difference.
        #[arg(long)]
        dry_run: bool,
    },
    /// Goes back to an earlier map: publishes a new one with its shards, servers and owners.
    Rollback {
        /// Version of the earlier map.
        #[arg(long, value_name = "VERSION")]
        to: u64,
        /// Only shows the map that would be published, and the difference.
        #[arg(long)]
        dry_run: bool,
    },
    /// Says whether a map could be published now, with every finding.
    Validate {
        /// The map file.
        map: PathBuf,
    },
    /// Tells what publishing a map would change.
    Diff {
        /// The map file.
        map: PathBuf,
    },
    /// Moves a bucket, or a run of buckets such as 7-9, to another shard while both serve.
    Move {
        /// The bucket, or first and last.
        buckets: String,
        /// Where they go.
        #[arg(long, value_name = "SHARD")]
        to: u16,
        /// Only says what would move.
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists moves, the newest first, with their steps.
    Moves,
    /// Takes a move back: moves its buckets to where they came from.
    Reverse {
        /// The move.
        id: String,
    },
    /// Gives a move up that has not changed the map yet.
    Cancel {
        /// The move.
        id: String,
    },
    /// Empties a shard: moves all of its buckets to others, 64 at a time.
    Drain {
        /// The shard.
        shard: u16,
        /// Where they go, in turn.
        #[arg(long, value_name = "SHARD", required = true)]
        to: Vec<u16>,
    },
    /// Makes the standby of a shard its primary, on the servers of `lab servers`.
    Promote {
        /// Number of the shard.
        shard: u16,
        /// Promotes also where that loses what the shard's primary acknowledged alone, and gives that up. Why: one word.
        #[arg(long, value_name = "WORD", value_parser = degradation::word)]
        accept_loss: Option<String>,
    },
    /// Copies a shard's primary anew to the server that should follow it and does not, unless that one has taken over.
    Rejoin {
        /// Number of the shard.
        shard: u16,
    },
    /// Gives up what a shard has lost with its primary: raises its epochs, and signs that the trail holds without it.
    AcceptLoss {
        /// Number of the shard.
        shard: u16,
        /// Why: one word, such as standby-lost or a ticket's number; it goes into the audit trail and the signed line.
        #[arg(long, value_name = "WORD", value_parser = degradation::word)]
        reason: String,
        /// A checkpoint that had signed less of the shard and is given up too, as `lab audit verify` tells it (`set-back`).
        #[arg(long = "line", value_name = "NUMBER")]
        lines: Vec<u64>,
    },
    /// Lets a shard's primary acknowledge commits alone, as long as no standby is to be had.
    Degrade {
        /// Number of the shard.
        shard: u16,
        /// Why: one word, such as standby-lost or a ticket's number; it goes into the audit trail.
        #[arg(long, value_name = "WORD", value_parser = degradation::word)]
        reason: String,
        /// Has commits wait again, and the standbys confirm what was acknowledged without them.
        #[arg(long)]
        off: bool,
    },
    /// Checks each shard: schema, ownership, identity and a sample of its rows as the running lab finds them, and the
    /// servers of `lab servers`, where there are some.
    Doctor,
}

impl ShardVerb {
    /// Whether it goes by servers of this folder, or by what is noted beside them, as well as by what the gateway of the lab
    /// here says. Where there is no lab, programs on the servers may have been started by hand: theirs is the one that is meant.
    pub(super) fn is_of_servers_here(&self) -> bool {
        matches!(self, Self::Promote { .. } | Self::Degrade { .. }) && State::is_noted()
    }
}

/// What can be asked of dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DlqVerb {
    /// Lists what is parked, and what was put aside because it is no event, page by page.
    List {
        /// Most entries of each list: 1 to 200.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Goes on with the parked keys: `next_cursor` of the page before.
        #[arg(long)]
        cursor: Option<String>,
        /// Goes on with what was put aside: `next_unreadable_cursor` of the page before.
        #[arg(long)]
        unreadable_cursor: Option<String>,
    },
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
    /// Lets a consumer run again that stands still because it held too much.
    Resume {
        /// Its name, as in the list.
        name: String,
    },
}

/// What can be asked of the audit trail.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Records of a request or a user, page by page.
    Show {
        /// By request.
        #[arg(long, required_unless_present = "user")]
        request: Option<String>,
        /// By user.
        #[arg(long)]
        user: Option<String>,
        /// Most records: 1 to 200.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Goes on: `next_cursor` of the page before.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Checks every lane's chain and every checkpoint, and that history and trail agree.
    Verify,
}

/// GETs one document and prints it.
pub(super) fn show(name: &str, path: &str, role: Role, json: bool) -> Result<()> {
    let document = Api::of(role)?.get(path)?;
    print(name, &document, json);
    Ok(())
}

/// The map in force: for people as the file that `lab shard publish` takes.
fn show_map(json: bool) -> Result<()> {
    let document = Api::of(Role::Sre)?.get("/v1/admin/shards/map")?;
    match document["toml"].as_str() {
        Some(toml) if !json => {
            say(&format!(
                "# The next one: `version` {}, `parent` {}\n{toml}",
                following(&document),
                document["digest"]
            ));
        }
        _ => print("shard-map", &document, json),
    }
    Ok(())
}

/// The version that may follow.
fn following(map: &Value) -> u64 {
    map["version"].as_u64().unwrap_or_default() + 1
}

/// What the run has come to.
pub(super) fn run_summary() -> Result<Value> {
    Api::of(Role::Sre)?.patient().get("/v1/admin/runs/summary")
}

/// Whether the lab runs, and how it is.
pub(super) fn status(json: bool) -> Result<()> {
    // Before anybody is asked: whoever has ended may be the one who would have told.
    let state = State::kept().filter(|state| api::named().is_none() && state.is_any_alive());
    let missing = state.as_ref().map(nine::missing).unwrap_or_default();
    let (mut document, unanswered) = answered(run_summary());
    if state.is_some() {
        document["running"] = true.into();
    }
    if let Some(state) = &state {
        document["gateway"] = state.gateway.clone().into();
        document["broker"] = state.broker.clone().into();
        document["pid"] = state.serving_pid().into();
        if !state.programs.is_empty() {
            document["programs"] = state.ready["programs"].clone();
        }
        if !missing.is_empty() {
            document["ended"] = json!(missing);
        }
    }
    if json || document["running"] == true {
        print("status", &document, json);
    }
    if !missing.is_empty() {
        return Err(Failure::Threshold.because(format!("ended without being told to: {}", missing.join(", "))));
    }
    unanswered.map_or(Ok(()), Err)
}

/// What a summary, or what came in its place, tells of the lab, and what is wrong.
fn answered(run: Result<Value>) -> (Value, Option<anyhow::Error>) {
    match run {
        Ok(run) => (json!({"running": true, "run": run, "gateway": api::named()}), None),
        // Whose run is just being summed up for somebody else is there, and well.
        Err(error) if is_problem(&error, "run-being-summed-up") => {
            (json!({"running": true, "being_summed_up": true, "gateway": api::named()}), None)
        }
        Err(error) => (json!({"running": false}), Some(error)),
    }
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
        ShardVerb::Map => show_map(json),
        ShardVerb::Publish { map, dry_run } => {
            let text = text_of(map)?;
            let path = format!("/v1/admin/shards/map?dry_run={dry_run}");
            print("shard-publish", &Api::of(Role::Sre)?.post(&path, &json!({"map": text}))?, json);
            Ok(())
        }
        ShardVerb::Rollback { to, dry_run } => {
            let path = format!("/v1/admin/shards/map/rollback?dry_run={dry_run}");
            print("shard-rollback", &Api::of(Role::Sre)?.post(&path, &json!({"to": to}))?, json);
            Ok(())
        }
        ShardVerb::Validate { map } | ShardVerb::Diff { map } => {
            let name = if matches!(verb, ShardVerb::Diff { .. }) { "shard-diff" } else { "shard-validate" };
            check_map(name, map, json)
        }
        ShardVerb::Move { buckets, to, dry_run } => {
            let (first, last) = run_of(buckets)?;
            let asked = json!({"first": first, "last": last, "to": to, "dry_run": dry_run});
            print("shard-move", &Api::of(Role::Sre)?.post("/v1/admin/shards/moves", &asked)?, json);
            Ok(())
        }
        ShardVerb::Moves => show("shard-moves", "/v1/admin/shards/moves", Role::Sre, json),
        ShardVerb::Reverse { id } => about_move(id, "reverse", json),
        ShardVerb::Cancel { id } => about_move(id, "cancel", json),
        ShardVerb::Drain { shard, to } => drain(*shard, to, json),
        ShardVerb::Promote { shard, accept_loss } => servers::promote(*shard, accept_loss.as_deref(), json),
        ShardVerb::Rejoin { shard } => servers::rejoin(*shard, json),
        ShardVerb::AcceptLoss { shard, reason, lines } => degradation::accept_loss(*shard, reason, lines, json),
        ShardVerb::Degrade { shard, reason, off } => degradation::turn(*shard, reason, *off, json),
        ShardVerb::Doctor => servers::doctor(json),
    }
}

fn text_of(map: &Path) -> Result<String> {
    std::fs::read_to_string(map)
        .map_err(|error| Failure::Usage.because(format!("cannot read {}: {error}", map.display())))
}

/// Findings and difference of a map; fails when it could not be published.
fn check_map(name: &str, map: &Path, json: bool) -> Result<()> {
    let asked = json!({"map": text_of(map)?});
    let told = Api::of(Role::Sre)?.post("/v1/admin/shards/map?dry_run=true", &asked)?;
    print(name, &told, json);
    let is_error = |finding: &Value| finding["severity"] == "error";
    if told["findings"].as_array().is_some_and(|findings| findings.iter().any(is_error)) {
        return Err(Failure::Threshold.because("the map may not be published"));
    }
    Ok(())
}

/// `7` or `7-9`.
fn run_of(buckets: &str) -> Result<(u16, u16)> {
    let (first, last) = buckets.split_once('-').unwrap_or((buckets, buckets));
    let wrong = || Failure::Usage.because(format!("`{buckets}` is no bucket and no run of buckets such as 7-9"));
    Ok((first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?))
}

fn about_move(id: &str, what: &str, json: bool) -> Result<()> {
    let path = format!("/v1/admin/shards/moves/{}/{what}", segment(id));
    print(&format!("shard-{what}"), &Api::of(Role::Sre)?.post(&path, &json!({}))?, json);
    Ok(())
}

/// Most requests that empty one shard: it has at most as many runs of 64 buckets.
const DRAIN_REQUESTS_MAX: usize = 64;

fn drain(shard: u16, to: &[u16], json: bool) -> Result<()> {
    if to.contains(&shard) {
        // Before any of its buckets goes elsewhere.
        return Err(Failure::Usage.because(format!("shard {shard} is emptied to others")));
    }
    let api = Api::of(Role::Sre)?;
    let mut moves = Vec::new();
    for target in to.iter().cycle().take(DRAIN_REQUESTS_MAX) {
        let told = api.post("/v1/admin/shards/moves", &json!({"shard": shard, "to": target}))?;
        moves.extend(told["moves"].as_array().cloned().unwrap_or_default());
        if told["left"] == 0 {
            print("shard-drain", &json!({"shard": shard, "moves": moves}), json);
            return Ok(());
        }
    }
    Err(Failure::Threshold.because(format!("shard {shard} still owns buckets")))
}

/// Dead letters.
pub(super) fn dlq(verb: &DlqVerb, json: bool) -> Result<()> {
    match verb {
        DlqVerb::List { limit, cursor, unreadable_cursor } => {
            let mut path = format!("/v1/admin/dead-letters?limit={limit}");
            for (name, value) in [("cursor", cursor), ("unreadable_cursor", unreadable_cursor)] {
                path += &value.as_ref().map(|value| format!("&{name}={}", segment(value))).unwrap_or_default();
            }
            show("dead-letters", &path, Role::Sre, json)
        }
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
            print("rebuild", &Api::of(Role::Sre)?.patient().post(&path, &json!({}))?, json);
            Ok(())
        }
        ProjectionVerb::Resume { name } => {
            let path = format!("/v1/admin/projections/{}/resume", segment(name));
            print("resume", &Api::of(Role::Sre)?.post(&path, &json!({}))?, json);
            Ok(())
        }
    }
}

/// The audit trail.
pub(super) fn audit(verb: &AuditVerb, json: bool) -> Result<()> {
    match verb {
        AuditVerb::Show { request, user, limit, cursor } => {
            let (name, value) = match (request, user) {
                (Some(request), _) => ("request_id", request),
                (None, Some(user)) => ("user_id", user),
                (None, None) => return Err(Failure::Usage.because("name a --request or a --user")),
            };
            let mut path = format!("/v1/admin/audit?{name}={}&limit={limit}", segment(value));
            path += &cursor.as_ref().map(|cursor| format!("&cursor={}", segment(cursor))).unwrap_or_default();
            show("audit", &path, Role::Sre, json)
        }
        AuditVerb::Verify => {
            let report = Api::of(Role::Sre)?.patient().post("/v1/admin/audit/verify", &json!({}))?;
            print("audit-verify", &report, json);
            if report["verified"] == true {
                return Ok(());
            }
            let what = if report["agrees"] == false {
                "history and audit trail do not agree"
            } else {
                "the audit trail does not verify"
            };
            Err(Failure::Threshold.because(what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::refused;
    use super::*;

    #[test]
    fn a_lab_whose_run_is_being_summed_up_is_well_and_one_that_refuses_does_not_say_so() {
        let problem = |status, name| refused(status, &json!({"type": format!("urn:pim:problem:{name}")}).to_string());
        let (told, wrong) = answered(Err(problem(409, "run-being-summed-up")));
        assert_eq!((&told["running"], &told["being_summed_up"]), (&json!(true), &json!(true)));
        assert!(wrong.is_none(), "{wrong:?}");
        for error in
            [problem(403, "forbidden"), problem(409, "conflict"), Failure::Precondition.because("nobody is there")]
        {
            let (told, wrong) = answered(Err(error));
            assert_eq!((&told, wrong.is_some()), (&json!({"running": false}), true));
        }
        let (told, wrong) = answered(Ok(json!({"facts": 7})));
        assert_eq!((&told["run"]["facts"], wrong.is_none()), (&json!(7), true));
    }
}
