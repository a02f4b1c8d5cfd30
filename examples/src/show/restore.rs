//! Restoring instead of running: what came of it, for people or as a JSON line, and the exit code that says it.

use std::path::Path;

use pim_data::audit::{CheckpointError, LaterCheckpoints};
use pim_data::backup::{BackupError, RestorePoint};
use serde_json::json;

use super::flags::Settings;
use crate::backup::{RestoreError, Restored};
use crate::rig::{EXIT_PRECONDITION, EXIT_USAGE, reasons};

const EXIT_RESTORE: u8 = 5;
const EXIT_REFUSED: u8 = 7;

/// Puts a backup into a data directory.
pub(super) async fn put_back(backup: &Path, point: &RestorePoint, settings: &Settings, json: bool) -> u8 {
    let into = &settings.data_dir;
    match crate::backup::restore(backup, point, into, &settings.postgres).await {
        Ok(restored) => {
            println!("{}", if json { as_json(&restored, into) } else { as_text(&restored, into) });
            0
        }
        Err(RestoreError::Backup(error)) => failed(&error),
        Err(error) => {
            let code = if matches!(error, RestoreError::Horizon { .. }) { EXIT_USAGE } else { EXIT_RESTORE };
            eprintln!("error: {:#}", anyhow::Error::from(error));
            code
        }
    }
}

/// Says whether a backup is whole.
pub(super) async fn check(backup: &Path, json: bool) -> u8 {
    match pim_data::backup::check(backup).await {
        Ok(found) => {
            let told = json!({"event": "checked", "backup": backup, "whole": true, "summary": found});
            let text = format!(
                "{} is whole: {} files, {} bytes, from {}",
                backup.display(),
                found.files,
                found.bytes,
                found.taken_at
            );
            println!("{}", if json { told.to_string() } else { text });
            0
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &BackupError) -> u8 {
    let code = match &error {
        BackupError::Taken { .. } => EXIT_REFUSED,
        BackupError::Absent { .. } | BackupError::Map { .. } | BackupError::Audit(CheckpointError::Foreign { .. }) => {
            EXIT_PRECONDITION
        }
        _ => EXIT_RESTORE,
    };
    eprintln!("error: {}", reasons(error));
    code
}

fn as_json(restored: &Restored, into: &Path) -> String {
    let mut line = json!({"event": "restored", "data_dir": into});
    if let (Some(line), Ok(serde_json::Value::Object(members))) = (line.as_object_mut(), serde_json::to_value(restored))
    {
        line.extend(members);
    }
    line.to_string()
}

fn as_text(restored: &Restored, into: &Path) -> String {
    let report = &restored.report;
    let seconds = |ms: u64| format!("{}.{:03} s", ms / 1000, ms % 1000);
    format!(
        "restored into {}\n  recovery point (RPO)  {}: what was acknowledged since {} may be lost\n  recovery time (RTO)   {}\n  \
         audit                 {} records in {} lanes verify, {} checkpoints; {}\n  map                   version {}, every epoch risen\n  \
         outboxes              {} rebased, {} positions of consumers",
        into.display(),
        seconds(report.recovery_point_ms),
        report.taken_at,
        seconds(report.recovery_time_ms),
        report.audit.records,
        report.audit.lanes,
        report.audit.checkpoints,
        later(&report.checkpoints),
        report.map_version,
        restored.outboxes_rebased,
        restored.positions_rebased,
    )
}

/// What became of the checkpoints that were signed after the backup.
fn later(checkpoints: &LaterCheckpoints) -> String {
    match &checkpoints.found_in {
        None => "later ones were not found".to_owned(),
        Some(_) => format!(
            "{} later ones hold, {} are given up with {} records",
            checkpoints.kept, checkpoints.given_up, checkpoints.records_given_up
        ),
    }
}
