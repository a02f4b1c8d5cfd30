//! Shards whose primary acknowledges commits alone: saying so, ending it, and what a promotion may lose because of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use pim_servers::fleet::Fleet;
use serde_json::{Value, json};

use super::Role;
use super::api::{self, Api};
use super::document::print;
use super::journal::State;
use crate::exit::Failure;
use crate::shell::pause;

/// How long a lab has to follow a promotion.
const FOLLOWS_MAX: Duration = Duration::from_secs(30);
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

/// Gives up what a shard has lost.
pub(super) fn accept_loss(shard: u16, reason: &str, json: bool) -> Result<()> {
    print("shard-accept-loss", &ask_to_give_up(shard, reason)?, json);
    Ok(())
}

fn ask_to_give_up(shard: u16, reason: &str) -> Result<Value> {
    let path = format!("/v1/admin/shards/{shard}/accept-loss");
    Api::of(Role::Sre)?.patient().post(&path, &json!({"reason": reason}))
}

/// The same behind a promotion, as soon as the lab follows it; nothing when there is no lab, or it does not in time.
pub(super) fn give_up(shard: u16, reason: &str) -> Option<Value> {
    if api::named().is_none() && State::load().is_err() {
        return None;
    }
    let give_up = Instant::now() + FOLLOWS_MAX;
    // Ends with the time for it.
    loop {
        match ask_to_give_up(shard, reason) {
            Ok(told) => return Some(told),
            Err(error) if Instant::now() > give_up => {
                eprintln!("what shard {shard} has lost is not given up yet: {error}");
                eprintln!("next: cargo xtask lab shard accept-loss {shard} --reason {reason}");
                return None;
            }
            Err(_) => pause(),
        }
    }
}

/// Whether a promotion may lose what the primary acknowledged alone, as far as that can be known: by the lab, which
/// remembers what a primary said that is gone, and by the servers that answer.
pub(super) fn may_lose(fleet: &Fleet, shard: u16) -> bool {
    by_the_lab(shard) || by_the_servers(fleet, shard)
}

/// What is said to whoever would lose it unawares.
pub(super) fn refused(shard: u16) -> anyhow::Error {
    Failure::Refused.because(format!(
        "shard {shard} is degraded: what its primary acknowledged alone would be lost with it, unless the standby has it \
         all. `cargo xtask lab shard degrade {shard} --off --reason …` proves that it has; `--accept-loss WORD` promotes anyway"
    ))
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
