//! Backups of a lab on servers: base backups and the archive behind them, with the files of the data directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pim_servers::fleet::{BackupError, Fleet, Instant, RestoredServers, ServersBackup, backups_of};
use pim_servers::local::RecoveryError;
use serde_json::{Value, json};

use super::super::api::Api;
use super::super::document::{print, say};
use super::super::process::{place, run_to_end};
use super::super::programs::services_on_servers;
use super::super::{Role, claim, journal, servers};
use super::RestoreArgs;
use super::attempt::{self, Attempt, is_any_running, is_left_over, is_name, unfinished};
use crate::exit::Failure;
use crate::shell::must;

/// Base backups and secret of the servers.
const SERVERS: &str = "servers";
/// Log, maps, keys and checkpoints.
const DATA: &str = "data";
const PART: &str = "data.part";

/// Whether a folder is such a backup.
pub(super) fn is_one(backup: &Path) -> bool {
    backup.join(SERVERS).is_dir()
}

/// Copies files and servers of the running lab, however long that takes, and removes from the archive what no backup needs.
pub(super) fn create(name: Option<&str>, json: bool) -> Result<()> {
    // Others may take one too; nobody stops or changes what is being copied.
    let _claim = claim::shared()?;
    let fleet = servers::open()?;
    let (begun, all) = (Instant::now(), backups_of(&servers::place()?));
    let name = name.map_or_else(|| named_after(begun), str::to_owned);
    let attempt = attempt_at(&all, &name)?;
    let (made, taken) = copy(&fleet, &all, &name, json).map_err(|error| match attempt {
        Some(ref attempt) => attempt.failed(error),
        None => error,
    })?;
    if let Some(attempt) = attempt {
        attempt.end();
    }
    let place = all.join(&name);
    if let Some(needing) = needing_log(&all) {
        fleet.prune_archive(&needing).map_err(failed)?;
    }
    let report = &made["report"];
    let took_ms = (Instant::now().0 - begun.0) / 1000;
    let mut report = summary(&taken, report["files"].as_u64(), report["bytes"].as_u64());
    report["took_ms"] = took_ms.into();
    print("backup-create", &json!({"name": name, "place": place, "report": report}), json);
    Ok(())
}

/// The backups whose log has to stay. None while one is being taken: it may be older than all that are whole, and who ends
/// last removes what nobody needs.
fn needing_log(all: &Path) -> Option<Vec<PathBuf>> {
    // In this order: one that ends in between is among those that are found.
    (!is_any_running(all)).then(|| sets(all).map(|it| it.join(SERVERS)).collect())
}

/// Says from now on that somebody is at it; refuses what is there, or is being taken. What is no name is left for the lab to
/// refuse.
fn attempt_at(all: &Path, name: &str) -> Result<Option<Attempt>> {
    if !is_name(name) {
        return Ok(None);
    }
    let (place, is_whole) = (all.join(name), |it: &Path| manifest_of(&it.join(DATA)).is_some());
    let refused = |why: &str| Failure::Refused.because(format!("{} {why}: choose another name", place.display()));
    if is_whole(&place) || (place.exists() && !is_left_over(&place)) {
        return Err(refused("is there already"));
    }
    let begun = Attempt::begin(all, name, is_whole).with_context(|| format!("cannot begin {}", place.display()))?;
    begun.map(Some).ok_or_else(|| refused("is being taken"))
}

/// Files first, servers after them. When that does not succeed, nothing is left.
fn copy(fleet: &Fleet, all: &Path, name: &str, json: bool) -> Result<(Value, ServersBackup)> {
    // Whether that may be a name says the lab; until it has, nothing is made of it.
    let made = Api::of(Role::Sre)?.patient().post("/v1/admin/backups", &json!({"name": name, "files_only": true}))?;
    let files = PathBuf::from(made["place"].as_str().context("the lab did not say where the files are")?);
    let place = all.join(name);
    if place.exists() {
        let _goes = fs::remove_dir_all(&files);
        return Err(Failure::Refused.because(format!("{} is there already: choose another name", place.display())));
    }
    // What is not ours is not removed either.
    attempt::make(&place).with_context(|| format!("cannot make {}", place.display())).inspect_err(|_| {
        let _goes = fs::remove_dir_all(&files);
    })?;
    let taken = fleet.back_up(&place.join(SERVERS), &mut tell(json)).map_err(failed);
    let taken = taken.and_then(|taken| {
        // Last: a backup without it is none.
        put(&files, &place, |from, into| must(Command::new("mv").arg(from).arg(into)))?;
        attempt::finish(&place).with_context(|| format!("cannot finish {}", place.display()))?;
        Ok(taken)
    });
    let taken = taken.inspect_err(|_| {
        let _nothing_is_left = (attempt::remove(&place), fs::remove_dir_all(&files));
    })?;
    Ok((made, taken))
}

/// Has the files of a backup moved beside its servers, whole or not at all: from another disk they come one by one.
fn put(files: &Path, place: &Path, moves: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
    let (part, data) = (place.join(PART), place.join(DATA));
    moves(files, &part)?;
    fs::rename(&part, &data).with_context(|| format!("cannot make {}", data.display()))
}

/// Lists what there is beside the servers, and what is or was to be.
pub(super) fn list(json: bool) -> Result<()> {
    let all = backups_of(&servers::place()?);
    let items = sets(&all).filter_map(|place| {
        let taken = ServersBackup::of(&place.join(SERVERS)).ok()?;
        let (files, bytes) = manifest_of(&place.join(DATA))?;
        let mut item = summary(&taken, Some(files), Some(bytes));
        item["state"] = "complete".into();
        item["name"] = place.file_name()?.to_string_lossy().into();
        item["place"] = place.display().to_string().into();
        Some((taken.began_at, item))
    });
    let mut items: Vec<_> = items.collect();
    items.sort_by_key(|(began_at, _)| *began_at);
    let whole: Vec<_> = items.into_iter().map(|(_, item)| item).collect();
    // One that is whole has just become so.
    let unfinished = unfinished(&all).into_iter().filter(|item| whole.iter().all(|it| it["name"] != item["name"]));
    let items: Vec<_> = whole.iter().cloned().chain(unfinished).collect();
    print("backups", &json!({"items": items, "next_cursor": null}), json);
    Ok(())
}

/// Whether every file and every segment can be read.
pub(super) fn verify(backup: &Path, json: bool) -> Result<()> {
    let backup = std::path::absolute(backup)?;
    let taken = ServersBackup::check(&backup.join(SERVERS), &mut tell(json)).map_err(failed)?;
    let (told, outcome) = run_to_end(services_on_servers()?.arg("--check-backup").arg(backup.join(DATA)))?;
    outcome?;
    let files = journal::event_in(&told, "checked").context("the program did not say what it found")?;
    let summary = summary(&taken, files["summary"]["files"].as_u64(), files["summary"]["bytes"].as_u64());
    print("backup-verify", &json!({"event": "checked", "backup": backup, "whole": true, "summary": summary}), json);
    Ok(())
}

/// Makes new servers of the backup, up to an instant or as far as their archive reaches, and a data directory beside them.
pub(super) fn restore(args: &RestoreArgs, json: bool) -> Result<()> {
    let begun = Instant::now();
    let until = args.to.as_deref().map(str::parse).transpose();
    let until: Option<Instant> = until.map_err(|rule| Failure::Usage.because(format!("--to {rule}")))?;
    let (backup, into) = (std::path::absolute(&args.backup)?, std::path::absolute(&args.data_dir)?);
    if into.exists() && !fs::read_dir(&into).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(Failure::Refused.because(format!("{} is there already: choose another place", into.display())));
    }
    servers::reachable(&into)?;
    // Before anything is recovered: what does not build has nobody wait in vain.
    let services = services_on_servers()?;
    close_archive_of(&backup, json)?;
    let mut tell = tell(json);
    let restored = Fleet::restore(&backup.join(SERVERS), &into.join(SERVERS), until, &mut tell).map_err(failed)?;
    tell("verifying, raising epochs, rebasing outboxes");
    let report = adopt(services, args, &restored, until, (&backup, &into)).inspect_err(|_| {
        // The servers go with the value.
        let _nothing_is_left = fs::remove_dir_all(into.join(DATA));
    });
    let mut report = report?;
    let (reached, has_archive) = (restored.reached, restored.has_archive);
    restored.stop().map_err(servers::failed)?;
    // Of the servers, not of the files alone: what was acknowledged later is what may be lost.
    let lost_until = until.unwrap_or(begun);
    let millis = |from: Instant, to: Instant| u64::try_from((to.0 - from.0) / 1000).unwrap_or(0);
    report["data_dir"] = into.display().to_string().into();
    report["recovered_to"] = reached.to_string().into();
    report["target"] = until.map(|it| it.to_string()).into();
    report["has_archive"] = has_archive.into();
    report["recovery_point_ms"] = millis(reached, lost_until).into();
    report["recovery_time_ms"] = millis(begun, Instant::now()).into();
    print("restore", &report, json);
    if !json {
        say(&format!("next: cargo xtask lab up --mode process --data-dir {}", into.display()));
    }
    Ok(())
}

/// Puts the files back and makes them agree with the servers.
fn adopt(
    mut services: Command,
    args: &RestoreArgs,
    restored: &RestoredServers,
    until: Option<Instant>,
    (backup, into): (&Path, &Path),
) -> Result<Value> {
    let kept = ServersBackup::of(&backup.join(SERVERS)).map_err(failed)?.archive.join(servers::KEPT);
    let origin = args.origin.as_deref().or(Some(kept.as_path()).filter(|kept| kept.is_dir()));
    place(&mut services, "--origin", origin)?;
    if let Some(until) = until {
        services.arg(format!("--recovered-to={until}"));
    }
    services.arg("--restore").arg(backup.join(DATA)).arg("--data-dir").arg(into.join(DATA));
    services.env("PIM_POSTGRES__SHARD_MAP", restored.fleet.shard_map());
    services.env("PIM_POSTGRES__SECRETS_DIR", restored.fleet.secrets());
    let (told, outcome) = run_to_end(&mut services)?;
    outcome?;
    journal::event_in(&told, "restored").context("the program did not say what it restored")
}

/// Where the servers that were backed up are still running, what they have acknowledged by now is to be had.
fn close_archive_of(backup: &Path, json: bool) -> Result<()> {
    let Ok(taken) = ServersBackup::of(&backup.join(SERVERS)) else { return Ok(()) };
    let Ok(fleet) = servers::open() else { return Ok(()) };
    if fleet.archive().as_ref() != Some(&taken.archive) {
        return Ok(());
    }
    // Only of this lab's own: what becomes of another one's backup is no matter of this folder.
    let _claim = claim::shared()?;
    servers::keep_files(&fleet);
    if let Err(error) = fleet.close_archive()
        && !json
    {
        say(&format!("the archive ends where it ends: {error}"));
    }
    Ok(())
}

fn sets(all: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(all)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|it| manifest_of(&it.join(DATA)).is_some())
}

/// How many files the data directory's part has, and how large they are; none when it is no whole one.
fn manifest_of(folder: &Path) -> Option<(u64, u64)> {
    let manifest: toml::Table = fs::read_to_string(folder.join("backup.toml")).ok()?.parse().ok()?;
    let files = manifest.get("files")?.as_array()?;
    let bytes = files.iter().filter_map(|file| file.get("bytes")?.as_integer()).filter_map(|it| u64::try_from(it).ok());
    Some((files.len() as u64, bytes.sum()))
}

fn summary(taken: &ServersBackup, files: Option<u64>, bytes: Option<u64>) -> Value {
    json!({
        "taken_at": taken.began_at.to_string(),
        "restorable_from": taken.finished_at.to_string(),
        "files": taken.files as u64 + files.unwrap_or(0),
        "bytes": taken.bytes + bytes.unwrap_or(0),
    })
}

/// `20260302t090000.123456z`
fn named_after(now: Instant) -> String {
    let text = now.to_string().to_ascii_lowercase();
    text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect()
}

fn tell(json: bool) -> impl FnMut(&str) {
    move |step| {
        if json {
            eprintln!("{step}");
        } else {
            say(step);
        }
    }
}

fn failed(error: BackupError) -> anyhow::Error {
    let failure = match &error {
        BackupError::Taken { .. } => Failure::Refused,
        BackupError::Absent { .. } | BackupError::NoArchive { .. } | BackupError::Version { .. } => {
            Failure::Precondition
        }
        BackupError::TooEarly { .. } | BackupError::Recovery(RecoveryError::Beyond { .. }) => Failure::Usage,
        BackupError::Fleet(_) => Failure::Threshold,
        _ => Failure::Restore,
    };
    let why = std::error::Error::source(&error).map(|why| format!(": {why}")).unwrap_or_default();
    failure.because(format!("{error}{why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: `needing_log` looks for attempts; a base backup that is no whole one yet needs its log as well.
    #[test]
    fn the_log_stays_while_a_backup_is_being_taken() {
        let all = std::env::temp_dir().join(format!("pim-xtask-needing-{}", std::process::id()));
        let attempt = Attempt::begin(&all, "one", |_| false).unwrap().expect("nobody is at it");
        fs::create_dir_all(all.join("two").join(DATA)).unwrap();
        fs::write(all.join("two").join(DATA).join("backup.toml"), "files = []").unwrap();
        assert_eq!(needing_log(&all), None);
        attempt.end();
        assert_eq!(needing_log(&all), Some(vec![all.join("two").join(SERVERS)]));
        fs::remove_dir_all(all).unwrap();
    }

    /// Guard: a backup whose files have come in part is none.
    #[test]
    fn what_comes_in_part_is_no_backup() {
        let all = std::env::temp_dir().join(format!("pim-xtask-part-{}", std::process::id()));
        let (files, one) = (all.join("files"), all.join("one"));
        for made in [&files, &one] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(files.join("backup.toml"), "files = []").unwrap();
        let comes = |is_broken_off: bool| {
            put(&files, &one, |from, into| {
                fs::create_dir_all(into)?;
                fs::copy(from.join("backup.toml"), into.join("backup.toml"))?;
                anyhow::ensure!(!is_broken_off, "no more of it comes");
                Ok(())
            })
        };
        comes(true).expect_err("is broken off");
        assert_eq!(sets(&all).count(), 0);
        comes(false).expect("comes");
        assert_eq!(sets(&all).collect::<Vec<_>>(), [one]);
        fs::remove_dir_all(all).unwrap();
    }
}
