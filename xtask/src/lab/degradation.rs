//! Shards whose primary acknowledges commits alone: saying so, ending it, and what a promotion may lose because of it.

mod note;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use pim_servers::fleet::Fleet;
use serde_json::{Value, json};

use super::api::{self, Api};
use super::document::print;
use super::journal::State;
use super::servers::{are_here, place};
use super::{Role, claim};
use crate::exit::Failure;
use crate::shell::pause;

/// Longest reason.
const REASON_MAX: usize = 64;
/// How long a lab has to follow a promotion.
const FOLLOWS_MAX: Duration = Duration::from_secs(30);
/// What a shard's own database says.
const ASK: &str = "SELECT is_on FROM pim_degraded";

/// Turns it on or off; fails when no standby has confirmed yet what was acknowledged before.
pub(super) fn turn(shard: u16, reason: &str, off: bool, json: bool) -> Result<()> {
    let _claim = claim::to_degrade(shard)?;
    // A lab that does not answer degrades nothing, and leaves no note.
    let api = reached()?;
    let servers = place()?;
    let is_known = note::is_there(&servers, shard);
    if !off {
        note::take(&servers, shard, reason)?;
    }
    let told = api.post(&format!("/v1/admin/shards/{shard}/degrade"), &json!({"reason": reason, "off": off}));
    let is_not = match &told {
        Ok(told) => told["degraded"].is_null(),
        // Any other error leaves open what came of it.
        Err(error) => !is_known && [Failure::Refused, Failure::Usage].iter().any(|failure| failure.is(error)),
    };
    if is_not {
        note::remove(&servers, shard);
    }
    let told = told?;
    print("shard-degrade", &told, json);
    if off && !told["degraded"].is_null() {
        let sentence =
            "commits wait again; no standby has confirmed yet what was acknowledged before: start one and say it again";
        return Err(Failure::Threshold.because(sentence));
    }
    Ok(())
}

/// The lab. Programs on servers of this folder may be nobody's but who has started them by hand.
fn reached() -> Result<Api> {
    if api::named().is_none() && !State::is_noted() && are_here() {
        let sentence = "no lab is running: start one with `cargo xtask lab up`; programs that were started by hand are \
                        reached with --gateway URL";
        return Err(Failure::Precondition.because(sentence));
    }
    Api::of(Role::Sre)
}

/// Gives up what a shard has lost.
pub(super) fn accept_loss(shard: u16, reason: &str, lines: &[u64], json: bool) -> Result<()> {
    print("shard-accept-loss", &ask_to_give_up(shard, reason, lines)?, json);
    Ok(())
}

fn ask_to_give_up(shard: u16, reason: &str, lines: &[u64]) -> Result<Value> {
    let path = format!("/v1/admin/shards/{shard}/accept-loss");
    Api::of(Role::Sre)?.patient().post(&path, &json!({"reason": reason, "lines": lines}))
}

/// The same behind a promotion, as soon as the lab follows it; nothing when there is no lab. One whose gateway has ended is a
/// lab: its other programs go on writing.
pub(super) fn give_up(shard: u16, reason: &str) -> Result<Option<Value>> {
    let next = format!("cargo xtask lab shard accept-loss {shard} --reason {reason}");
    if api::named().is_none() && !State::is_noted() {
        eprintln!("no lab runs that could give up what shard {shard} may have lost; once one does: {next}");
        return Ok(None);
    }
    let lost = |error: anyhow::Error| {
        let sentence = format!("what shard {shard} has lost is not given up yet: {error:#}; next: {next}");
        Failure::Threshold.because(sentence)
    };
    if api::named().is_none() {
        // Nobody starts it again, so that there is nothing to wait for.
        State::load().map_err(lost)?;
    }
    let give_up = Instant::now() + FOLLOWS_MAX;
    // Ends with the time for it.
    loop {
        match ask_to_give_up(shard, reason, &[]) {
            Ok(told) => return Ok(Some(told)),
            // The lab, or the shard's new primary, does not answer yet.
            Err(error) if Failure::Precondition.is(&error) && Instant::now() < give_up => pause(),
            Err(error) => return Err(lost(error)),
        }
    }
}

/// One word, as the lab takes it for a reason.
pub(super) fn word(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=REASON_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err(format!("one word of at most {REASON_MAX} of `A-Z a-z 0-9 . _ -`, such as standby-lost or a ticket's number"))
}

/// Refuses a promotion that may lose what the primary acknowledged alone, as far as that can be known: by the lab, which
/// remembers what a primary said that is gone, by the servers, and by what was noted beside them.
pub(super) fn refuse_loss(fleet: &Fleet, servers: &Path, shard: u16) -> Result<()> {
    if note::is_there(servers, shard) || by_the_lab(shard) || by_the_servers(fleet, shard) {
        return Err(refused(shard));
    }
    // Where that cannot be asked, neither can a promotion be begun.
    if fleet.acknowledges_alone(shard).is_ok_and(|it| it) {
        return Err(Failure::Refused.because(format!(
            "commits of shard {shard} do not wait for its standby, or did not when its primary died: what was acknowledged \
             alone would be lost. `cargo xtask lab shard rejoin {shard}` has it follow while the primary runs; \
             `--accept-loss WORD` promotes anyway"
        )));
    }
    Ok(())
}

/// The shard has another primary, which is degraded if its own rows say so.
pub(super) fn is_over(servers: &Path, shard: u16) {
    note::remove(servers, shard);
}

/// What is said to whoever would lose it unawares.
fn refused(shard: u16) -> anyhow::Error {
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
    if api::named().is_none() && !State::is_noted() {
        return false;
    }
    match Api::of(Role::Sre).and_then(|api| api.get("/v1/admin/shards")) {
        Ok(told) => {
            let shards = told["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            shards.iter().any(|it| it["shard"] == shard && !it["degraded"].is_null())
        }
        Err(error) => {
            let known = format!("whether shard {shard} was degraded is known by its servers alone");
            eprintln!("the lab does not answer: {known}: {error:#}");
            false
        }
    }
}
