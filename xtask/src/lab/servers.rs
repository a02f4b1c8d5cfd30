//! The database servers below a lab: starting, looking at, promoting and removing them.

mod examination;
mod growth;
mod promotion;
mod tenancy;

pub(super) use examination::doctor;
pub(super) use promotion::promote;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use pim_servers::fleet::{Fleet, FleetError, ServerState, ShardServers};
use serde_json::json;

use super::document::{print, say};
use super::{claim, journal};
use crate::exit::Failure;

/// What can be done with servers.
#[derive(Debug, Subcommand)]
pub(crate) enum ServersVerb {
    /// Starts a PostgreSQL primary with a synchronous standby for each shard, and one for what is not sharded.
    Up {
        /// Number of shards.
        #[arg(long, default_value_t = 4)]
        shards: u16,
    },
    /// Starts a primary and a standby for one more shard; for a lab that runs also writes the map that would bring it there.
    Add,
    /// Stops the servers of the last shard and removes their data, once no map leads there.
    Remove,
    /// Tells what each server is at present.
    Status,
    /// Stops all servers and removes their data; those of a directory that `lab restore` has made keep it.
    Down,
}

impl ServersVerb {
    /// Whether the map of the lab on them decides on it.
    pub(super) fn changes_shards(&self) -> bool {
        matches!(self, Self::Add | Self::Remove)
    }

    /// Whether it leaves all servers as they are.
    fn only_looks(&self) -> bool {
        matches!(self, Self::Status)
    }
}

/// Runs one verb.
pub(super) fn run(verb: &ServersVerb, json: bool) -> Result<()> {
    if matches!(verb, ServersVerb::Up { .. }) {
        // What is not there cannot be claimed.
        fs::create_dir_all(journal::folder()).context("cannot create the lab's folder")?;
    }
    // Taken here, and not below: `lab up` and `lab down` hold it when they make or remove servers.
    let _claim = if verb.only_looks() { None } else { claim::alone()? };
    match verb {
        ServersVerb::Up { shards } => up(*shards, json),
        ServersVerb::Add => growth::add(json),
        ServersVerb::Remove => growth::remove(json),
        ServersVerb::Status => status(json),
        ServersVerb::Down => down(json),
    }
}

/// Has the other server of a shard follow its primary again.
pub(super) fn rejoin(shard: u16, json: bool) -> Result<()> {
    let _claim = claim::to_copy(shard)?;
    if !json {
        say(&format!("shard {shard}: copying its primary"));
    }
    let standby = open()?.rejoin(shard).map_err(failed)?;
    if json {
        print("shard-rejoin", &json!({"shard": shard, "standby": standby}), true);
    } else {
        say(&format!("shard {shard}: {standby} follows, and commits wait for it"));
    }
    Ok(())
}

/// Starts the servers of so many shards.
pub(super) fn create(shards: u16, json: bool) -> Result<Fleet> {
    let place = place()?;
    if resumed().is_some() {
        // Also where it leads nowhere: new servers would come about in somebody's data directory.
        return Err(failed(FleetError::Exists { folder: beside_the_state() }));
    }
    if !json {
        say(&format!("starting {} servers in {}", u32::from(shards) * 2 + 1, place.display()));
    }
    Fleet::create(&place, shards).map_err(failed)
}

/// Whether this folder has servers, or leads to some.
pub(super) fn are_here() -> bool {
    // What cannot be told may be some.
    place().map_or(true, |place| place.is_dir())
}

/// The servers of this lab.
pub(super) fn open() -> Result<Fleet> {
    Fleet::open(&place()?).map_err(failed)
}

/// Where the servers are in a directory that `lab restore` has made.
///
/// # Errors
/// When it has not.
pub(super) fn restored(data_dir: &Path) -> Result<PathBuf> {
    let place = std::path::absolute(data_dir)?;
    // One place has one name, however it is spelled: by it a lab is told from another. What is in it may lead to a larger disk.
    let folder = fs::canonicalize(&place).unwrap_or(place).join("servers");
    if folder.is_dir() && folder.with_file_name("data").is_dir() {
        return Ok(folder);
    }
    let shown = data_dir.display();
    let sentence = format!("--data-dir: {shown} is none that `lab restore` has made of a backup of servers");
    Err(Failure::Usage.because(sentence))
}

/// Starts servers that were restored, and has this lab's folder lead to them.
pub(super) fn resume(folder: &Path, json: bool) -> Result<Fleet> {
    let link = beside_the_state();
    if fs::symlink_metadata(&link).is_ok() {
        return Err(failed(FleetError::Exists { folder: link }));
    }
    let fleet = Fleet::open(folder).map_err(failed)?;
    // This lab's own have a link, and are refused above.
    tenancy::refuse_others(&fleet, folder)?;
    if !json {
        say(&format!("starting {} servers in {}", u32::from(fleet.shards()) * 2 + 1, folder.display()));
    }
    fs::create_dir_all(journal::folder())?;
    tenancy::take(folder, &link)?;
    symlink(folder, &link)?;
    fleet.start().map_err(failed).inspect_err(|_| {
        let _only_the_first_error_counts = remove_if_any();
    })?;
    Ok(fleet)
}

/// Whether the user that runs servers can get to what will be in a folder.
pub(super) fn reachable(folder: &Path) -> Result<()> {
    if is_open(folder) {
        return Ok(());
    }
    let sentence = format!("the user that runs PostgreSQL cannot get to {}: choose another place", folder.display());
    Err(Failure::Precondition.because(sentence))
}

/// Stops all servers and removes their data, where there are some. Those that were resumed keep it.
pub(super) fn remove_if_any() -> Result<()> {
    if let Some(folder) = resumed() {
        return let_go(&folder);
    }
    // What a backup goes on from is to be had also when the servers are gone.
    if let Ok(fleet) = open() {
        if let Err(error) = fleet.close_archive() {
            eprintln!("the archive lacks the last commits: {error}");
        }
        keep_files(&fleet);
    }
    match Fleet::remove(&place()?) {
        Ok(()) | Err(FleetError::Absent { .. }) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Where servers are that this lab's folder leads to: those that were resumed.
fn resumed() -> Option<PathBuf> {
    fs::read_link(beside_the_state()).ok()
}

/// Stops servers that were resumed, and leaves their data. Nothing leads to them any more when all have ended, no sooner: who
/// has not is stopped by saying it again.
fn let_go(folder: &Path) -> Result<()> {
    // Where somebody has taken them away there is nobody to stop.
    if folder.join("secrets").exists() {
        Fleet::open(folder).and_then(|fleet| fleet.stop()).map_err(failed)?;
    }
    tenancy::leave(folder);
    let link = beside_the_state();
    fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))
}

/// Beside the archived logs, what of the data directory goes on behind a backup: maps, and checkpoints of the audit trail.
pub(super) const KEPT: &str = "data";
const KEPT_FILE: &str = "audit-checkpoints.jsonl";
const KEPT_FOLDER: &str = "maps";

/// Keeps them for a restore, where there is an archive. They are told to be lacking where they cannot be kept.
pub(super) fn keep_files(fleet: &Fleet) {
    let Some(into) = fleet.archive().map(|archive| archive.join(KEPT)) else { return };
    let from = data_dir();
    let maps = fs::read_dir(from.join(KEPT_FOLDER)).into_iter().flatten().flatten().map(|entry| entry.path());
    let maps = maps.filter(|path| path.extension().is_some_and(|it| it == "toml"));
    for path in maps.chain([from.join(KEPT_FILE)]).filter(|path| path.is_file()) {
        let target = into.join(path.strip_prefix(&from).unwrap_or(&path));
        if let Err(error) = replace(&path, &target) {
            eprintln!("the archive lacks the newest {}: {error}", path.display());
        }
    }
}

/// Copies a file over an older one, whole or not at all.
fn replace(path: &Path, target: &Path) -> std::io::Result<()> {
    fs::create_dir_all(target.parent().unwrap_or(target))?;
    let part = target.with_extension("part");
    fs::copy(path, &part)?;
    fs::rename(part, target)
}

/// The data directory of the programs on these servers.
fn data_dir() -> PathBuf {
    resumed().map_or_else(|| journal::process_folder().join("data"), |servers| servers.with_file_name("data"))
}

fn up(shards: u16, json: bool) -> Result<()> {
    let fleet = create(shards, json)?;
    show("servers-up", &fleet, &place()?, json)?;
    if !json {
        say("next: cargo xtask lab servers status · cargo xtask lab shard promote 0 · cargo xtask lab servers down");
    }
    Ok(())
}

fn status(json: bool) -> Result<()> {
    let place = place()?;
    show("servers", &Fleet::open(&place).map_err(failed)?, &place, json)
}

fn down(json: bool) -> Result<()> {
    if journal::process_folder().exists() {
        return Err(Failure::Refused.because("a lab runs on them: `cargo xtask lab down` stops both"));
    }
    if let Some(folder) = resumed() {
        let_go(&folder)?;
        if json {
            print("servers-down", &json!({"removed": null, "kept": folder}), true);
        } else {
            say(&format!("stopped all servers; their data stays in {}", folder.display()));
        }
        return Ok(());
    }
    let place = place()?;
    Fleet::remove(&place).map_err(failed)?;
    if json {
        print("servers-down", &json!({"removed": place}), true);
    } else {
        say(&format!("stopped all servers and removed {}", place.display()));
    }
    Ok(())
}

fn show(name: &str, fleet: &Fleet, place: &Path, json: bool) -> Result<()> {
    let (shards, unsharded) = (fleet.state().map_err(failed)?, fleet.unsharded().map_err(failed)?);
    if json {
        let server = |server: &ServerState| json!({"name": server.name, "port": server.port, "role": server.role});
        let shard = |it: &ShardServers| {
            let (primary, standby) = (server(&it.primary), server(&it.standby));
            json!({"shard": it.shard, "primary": primary, "standby": standby, "is_synchronous": it.is_synchronous})
        };
        let shards: Vec<_> = shards.iter().map(shard).collect();
        let files = json!({"secrets": fleet.secrets(), "map": place.join("shard-map.toml")});
        print(name, &json!({"shards": shards, "unsharded": server(&unsharded), "files": files}), true);
        return Ok(());
    }
    for shard in &shards {
        let how = if shard.is_synchronous { "synchronous" } else { "not synchronous" };
        say(&format!("shard {}: {} · {} ({how})", shard.shard, line(&shard.primary), line(&shard.standby)));
    }
    say(&format!("control database and read store: {}", line(&unsharded)));
    say(&format!("connection strings: {}", fleet.secrets().display()));
    Ok(())
}

fn line(server: &ServerState) -> String {
    format!("{} is {} at 127.0.0.1:{}", server.name, server.role, server.port)
}

fn beside_the_state() -> PathBuf {
    journal::folder().join("servers")
}

/// Whether the user that runs servers gets there.
fn is_open(folder: &Path) -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let is_open = |path: &Path| fs::metadata(path).map_or(true, |it| it.permissions().mode() & 0o001 != 0);
    !is_root || folder.ancestors().all(is_open)
}

/// Where their data is: beside the lab's state, or where that leads to, unless the user that runs them cannot get there.
pub(super) fn place() -> Result<PathBuf> {
    let folder = journal::folder();
    if let Some(resumed) = resumed() {
        return Ok(resumed);
    }
    if is_open(&folder) {
        return Ok(beside_the_state());
    }
    // Always the same one for the same lab, so that the next call finds it.
    let name: String =
        folder.display().to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let place = std::env::temp_dir().join(format!("pim-lab{name}-servers"));
    // Everybody can tell its name, and may make it there.
    ["", "-archive", "-backups"].iter().try_for_each(|end| refuse_others(&place, end))?;
    Ok(place)
}

/// Refuses a folder beside a place, or the place itself, that is somebody else's, or a link.
fn refuse_others(place: &Path, end: &str) -> Result<()> {
    let mut path = place.as_os_str().to_owned();
    path.push(end);
    let is_theirs = |it: &fs::Metadata| fs::metadata("/proc/self").is_ok_and(|me| me.uid() != it.uid());
    match fs::symlink_metadata(&path) {
        Ok(it) if !it.is_dir() || is_theirs(&it) => {
            let sentence = format!("{} is somebody else's: choose another --folder", Path::new(&path).display());
            Err(Failure::Refused.because(sentence))
        }
        _ => Ok(()),
    }
}

pub(super) fn failed(error: FleetError) -> anyhow::Error {
    let failure = match &error {
        FleetError::Shards { .. } | FleetError::NoShard { .. } => Failure::Usage,
        FleetError::Programs(_) | FleetError::Exists { .. } | FleetError::Absent { .. } => Failure::Precondition,
        FleetError::NoStandby { .. }
        | FleetError::NoPrimary { .. }
        | FleetError::Follows { .. }
        | FleetError::Succeeded { .. }
        | FleetError::Changed { .. } => Failure::Refused,
        _ => Failure::Threshold,
    };
    let fix = match &error {
        FleetError::Exists { .. } => ": `cargo xtask lab servers down`",
        FleetError::Absent { .. } => ": `cargo xtask lab servers up` starts them",
        FleetError::Programs(_) => ": see `cargo xtask lab doctor`",
        FleetError::Succeeded { .. } => ": `cargo xtask lab shard promote SHARD` completes that",
        FleetError::NoStandby { .. } => ": `cargo xtask lab shard rejoin SHARD` makes it one while the primary runs",
        _ => "",
    };
    let why = std::error::Error::source(&error).map(|why| format!(": {why}")).unwrap_or_default();
    failure.because(format!("{error}{why}{fix}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    /// Guard: nothing is read, run or removed that somebody else has put where servers would be.
    #[test]
    fn a_place_that_somebody_else_made_is_refused() {
        let place = std::env::temp_dir().join(format!("xtask-place-{}", std::process::id()));
        let beside = place.with_file_name(format!("xtask-place-{}-archive", std::process::id()));
        refuse_others(&place, "").expect("nobody has made it");
        fs::create_dir(&place).unwrap();
        refuse_others(&place, "").expect("it is ours");
        symlink(&place, &beside).unwrap();
        let refused = refuse_others(&place, "-archive").expect_err("it leads somewhere");
        assert!(Failure::Refused.is(&refused) && refused.to_string().contains("-archive"), "{refused}");
        // As root alone may.
        if chown(&place, Some(65_534), None).is_ok() {
            refuse_others(&place, "").expect_err("it is not ours");
        }
        fs::remove_file(beside).unwrap();
        fs::remove_dir(place).unwrap();
    }
}
