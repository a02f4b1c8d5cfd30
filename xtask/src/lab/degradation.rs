//! Shards whose primary acknowledges commits alone: saying so, ending it, and what a promotion may lose because of it.

use anyhow::Result;
use pim_servers::fleet::Fleet;
use serde_json::json;

use super::Role;
use super::api::{self, Api};
use super::document::print;
use super::journal::State;
use crate::exit::Failure;

/// What a shard's own database says.
const ASK: &str = "SELECT is_on FROM pim_degraded";

/// Turns it on or off; fails when no standby has confirmed yet what was acknowledged before.
pub(super) fn turn(shard: u16, reason: &str, off: bool, json: bool) -> Result<()> {
    let path = format!("/v1/admin/shards/{shard}/degrade");
    let told = Api::of(Role::Sre)?.post(&path, &json!({"reason": reason, "off": off}))?;
    print("shard-degrade", &told, json);
    if off && !told["degraded"].is_null() {
        let sentence =
            "commits wait again; no standby has confirmed yet what was acknowledged before: start one and say it again";
        return Err(Failure::Threshold.because(sentence));
    }
    Ok(())
}

/// Refuses a promotion that may lose what the primary acknowledged alone, as far as that can be known: by the lab, which
/// remembers what a primary said that is gone, and by the servers that answer.
pub(super) fn refuse_loss(fleet: &Fleet, shard: u16) -> Result<()> {
    if !(by_the_lab(shard) || by_the_servers(fleet, shard)) {
        return Ok(());
    }
    let sentence = format!(
        "shard {shard} is degraded: what its primary acknowledged alone would be lost with it, unless the standby has it \
         all. `cargo xtask lab shard degrade {shard} --off --reason …` proves that it has; `--accept-loss` promotes anyway"
    );
    Err(Failure::Refused.because(sentence))
}

fn is_said_by(server: &pim_servers::local::LocalServer, shard: u16) -> bool {
    // One that does not answer, or has no such table, says nothing.
    server.is_running() && server.sql(&format!("shard-{shard}"), ASK).is_ok_and(|rows| !rows.is_empty())
}

fn by_the_servers(fleet: &Fleet, shard: u16) -> bool {
    fleet.servers_of(shard).is_ok_and(|(old, new)| [old, new].iter().any(|server| is_said_by(server, shard)))
}

fn by_the_lab(shard: u16) -> bool {
    if api::named().is_none() && State::load().is_err() {
        return false;
    }
    match Api::of(Role::Sre).and_then(|api| api.get("/v1/admin/shards")) {
        Ok(told) => {
            let shards = told["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            shards.iter().any(|it| it["shard"] == shard && !it["degraded"].is_null())
        }
        Err(_) => {
            eprintln!("the lab does not answer: whether shard {shard} was degraded is known by its servers alone");
            false
        }
    }
}
