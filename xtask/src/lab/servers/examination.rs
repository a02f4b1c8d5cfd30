//! What is not as it should be: of the servers, and of what the lab on them finds in their databases.

use anyhow::{Error, Result};
use pim_servers::fleet::{Fleet, ShardServers};
use serde_json::{Value, json};

use super::super::Role;
use super::super::api::{self, Api};
use super::super::journal::State;
use super::super::nine;
use super::{failed, place, print, say};
use crate::exit::Failure;

/// Checks each shard, its databases as the lab that runs sees them and the servers below; fails when one is not as it should
/// be. Either will do when there is no other; a lab that was started and does not answer is there.
pub(in crate::lab) fn doctor(json: bool) -> Result<()> {
    let servers = place().and_then(|place| Fleet::open(&place).and_then(|fleet| fleet.state()).map_err(failed));
    let lab = Api::of(Role::Sre).and_then(|api| api.get("/v1/admin/shards/findings"));
    let mut findings: Vec<Value> = servers.iter().flatten().flat_map(findings_on).collect();
    let examined = match (lab, &servers) {
        (Ok(told), _) => told["items"].as_array().cloned().unwrap_or_default(),
        (Err(error), Err(_)) => return Err(error),
        (Err(error), Ok(_)) => {
            if api::named().is_some() || State::is_noted() {
                findings.push(silent(&error));
            }
            Vec::new()
        }
    };
    for shard in &examined {
        findings.extend(shard["findings"].as_array().into_iter().flatten().map(|it| found_in(&shard["shard"], it)));
    }
    if json {
        print("shard-doctor", &json!({"shards": examined, "findings": findings}), true);
    } else {
        for shard in &examined {
            say(&examined_line(shard));
        }
        for finding in &findings {
            let text = |member: &str| finding[member].as_str().unwrap_or_default();
            say(&format!("{}: {} · {}", name_of(finding), text("finding"), text("fix")));
        }
        say(&format!("{} findings", findings.len()));
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::Threshold.because("not every shard is as it should be")) }
}

/// A lab that was started, and nobody knows what is in its databases.
fn silent(error: &Error) -> Value {
    let ended = State::kept().map(|state| nine::missing(&state).join(", ")).filter(|names| !names.is_empty());
    let ended = ended.map(|names| format!("; ended without being told to: {names}")).unwrap_or_default();
    json!({
        "shard": null, "code": "lab-silent", "severity": "error", "endpoint": null,
        "finding": format!("the lab does not answer: {error:#}{ended}"),
        "fix": "cargo xtask lab status",
    })
}

/// All that the lab told of one.
fn found_in(shard: &Value, told: &Value) -> Value {
    let mut finding = json!({"shard": shard, "finding": told["message"]});
    for member in ["code", "severity", "endpoint", "fix"] {
        finding[member] = told[member].clone();
    }
    finding
}

fn examined_line(shard: &Value) -> String {
    let known = &shard["schema_version_known"];
    let version = shard["schema_version"].as_u64().map_or_else(|| "unknown".to_owned(), |it| it.to_string());
    let (owned, sampled) = (&shard["buckets_owned"], &shard["sampled"]);
    let name = name_of(shard);
    format!("{name}: schema {version} of {known} · {owned} buckets · {sampled} home keys looked at")
}

/// Whom it is about.
fn name_of(it: &Value) -> String {
    match &it["shard"] {
        Value::Null if it["code"] == "lab-silent" => "lab".to_owned(),
        Value::Null => "control database".to_owned(),
        shard => format!("shard {shard}"),
    }
}

fn findings_on(shard: &ShardServers) -> Vec<Value> {
    let number = shard.shard;
    let finding = |code: &str, endpoint: &str, what: String, fix: String| {
        json!({
            "shard": number, "code": code, "severity": "error", "endpoint": endpoint, "finding": what, "fix": fix,
        })
    };
    let (primary, standby) = (&shard.primary, &shard.standby);
    if primary.role != "primary" {
        let fix = match standby.role {
            "standby" | "primary" => format!("cargo xtask lab shard promote {number}"),
            _ => format!("neither of its two servers can serve: look at the log of {}", primary.name),
        };
        let what = format!("{} should be the primary and is {}", primary.name, primary.role);
        return vec![finding("primary", &primary.name, what, fix)];
    }
    if shard.is_succeeded {
        let what = format!("{} has taken over from {}, and nobody was told", standby.name, primary.name);
        return vec![finding("primary", &standby.name, what, format!("cargo xtask lab shard promote {number}"))];
    }
    let fix = format!("cargo xtask lab shard rejoin {number}");
    if standby.role != "standby" {
        let what = format!("{} should be the standby and is {}", standby.name, standby.role);
        return vec![finding("endpoint", &standby.name, what, fix)];
    }
    if !shard.is_synchronous {
        let what = format!("commits of {} do not wait for {}", primary.name, standby.name);
        return vec![finding("asynchronous", &primary.name, what, fix)];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use pim_servers::fleet::{ServerState, ShardServers};

    use super::findings_on;

    /// Guard: nobody is told to copy a server over the one that has taken over from it.
    #[test]
    fn whoever_has_taken_over_untold_is_to_be_promoted() {
        let server = |name: &str, role| ServerState { name: name.to_owned(), port: 1, role };
        let fix = |role, is_succeeded| {
            let (primary, standby) = (server("shard_0_a", "primary"), server("shard_0_b", role));
            let found = findings_on(&ShardServers { shard: 0, primary, standby, is_synchronous: false, is_succeeded });
            found[0]["fix"].as_str().expect("what helps").to_owned()
        };
        for role in ["primary", "stopped", "silent"] {
            assert_eq!(fix(role, true), "cargo xtask lab shard promote 0");
            assert_eq!(fix(role, false), "cargo xtask lab shard rejoin 0");
        }
    }
}
