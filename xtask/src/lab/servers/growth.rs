//! Servers for one more shard of a lab, and for one fewer. The map decides whether anybody uses them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pim_servers::fleet::Fleet;
use serde_json::{Value, json};

use super::super::Role;
use super::super::api::{self, Api};
use super::super::document::{print, say};
use super::super::journal;
use super::{failed, place};
use crate::exit::Failure;

const MAP: &str = "/v1/admin/shards/map";

/// Starts them, and writes down the map that would bring the shard to a lab that runs.
pub(super) fn add(json: bool) -> Result<()> {
    let place = place()?;
    let mut fleet = Fleet::open(&place).map_err(failed)?;
    // Before anything is started that nobody could use.
    let in_force = map_in_force()?;
    if !json {
        say(&format!("starting 2 servers in {}", place.display()));
    }
    let shard = fleet.add().map_err(failed)?;
    let next = in_force.map(|map| propose(&map, shard, &place)).transpose()?;
    if json {
        print("servers-add", &json!({"shard": shard, "next_map": next}), true);
        return Ok(());
    }
    say(&format!("shard {shard} has a primary and a standby, and no buckets yet"));
    if let Some(next) = next {
        let publish = format!("cargo xtask lab shard publish {}", next.display());
        say(&format!("next: {publish} · cargo xtask lab shard move 7 --to {shard} · cargo xtask lab backup create"));
    }
    Ok(())
}

/// Stops and removes those of the last shard, unless the lab's map leads to them.
pub(super) fn remove(json: bool) -> Result<()> {
    let mut fleet = Fleet::open(&place()?).map_err(failed)?;
    let last = fleet.shards().saturating_sub(1);
    if map_in_force()?.is_some_and(|map| leads_to(&map, last)) {
        let fix = "publish a map in which it is retired and has no endpoints; once written it keeps them, for its audit trail";
        return Err(Failure::Refused.because(format!("the lab's map leads to the servers of shard {last}: {fix}")));
    }
    let shard = fleet.take_away().map_err(failed)?;
    if json {
        print("servers-remove", &json!({"shard": shard}), true);
    } else {
        say(&format!("stopped the servers of shard {shard} and removed their data"));
    }
    Ok(())
}

/// The map of the lab on these servers, where one runs or is named.
fn map_in_force() -> Result<Option<Value>> {
    if !journal::process_folder().exists() && api::named().is_none() {
        return Ok(None);
    }
    Api::of(Role::Sre).and_then(|api| api.get(MAP)).map(Some)
}

fn parsed(map: &Value) -> Result<toml::Table> {
    map["toml"].as_str().context("the lab did not tell its map")?.parse().context("the lab's map is no TOML")
}

/// Whether somebody would look for the shard's primary there.
fn leads_to(map: &Value, shard: u16) -> bool {
    let Ok(map) = parsed(map) else { return true };
    let shards = map.get("shards").and_then(toml::Value::as_array).into_iter().flatten();
    shards.filter(|it| number_of(it) == Some(shard.into())).any(|it| {
        let endpoints = it.get("endpoints").and_then(toml::Value::as_array);
        endpoints
            .is_some_and(|all| all.iter().any(|it| it.get("role").and_then(toml::Value::as_str) == Some("primary")))
    })
}

fn number_of(shard: &toml::Value) -> Option<i64> {
    shard.get("id").and_then(toml::Value::as_integer)
}

/// The map behind the one in force, with the shard in it.
fn propose(in_force: &Value, shard: u16, place: &Path) -> Result<PathBuf> {
    let mut map = parsed(in_force)?;
    let version = in_force["version"].as_i64().context("the lab did not tell the version of its map")?;
    let digest = in_force["digest"].as_str().context("the lab did not tell the digest of its map")?;
    map.insert("version".to_owned(), (version + 1).into());
    map.insert("parent".to_owned(), digest.into());
    let entry: toml::Table = Fleet::entry_of(shard).parse().context("an entry of a map is TOML")?;
    let shards = map.get_mut("shards").and_then(toml::Value::as_array_mut).context("a map has shards")?;
    // Named once; whether one that was retired may come back is for the lab to say.
    shards.retain(|it| number_of(it) != Some(shard.into()));
    shards.extend(entry["shards"].as_array().cloned().unwrap_or_default());
    let file = place.join("shard-map.next.toml");
    fs::write(&file, map.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
