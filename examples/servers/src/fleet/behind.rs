//! The log behind a base backup: what of it there is in an archive, and whether it goes on from the base backup without a gap.

use std::fs;
use std::path::Path;

use super::backup::{BackupError, ask};
use crate::local::{last_before, name_of, number_of, segments};
use crate::programs::Programs;

const SEGMENT_BYTES: u64 = 16 << 20;

/// No segment is missing from the base backup on, and each record of each can be read.
pub(super) fn check_archive(programs: &Programs, base: &Path, archive: &Path) -> Result<(), BackupError> {
    let absent = || BackupError::Absent { folder: base.to_owned() };
    let start = start_of(base).ok_or_else(absent)?;
    let (first, end) = number_of(&start).zip(end_of(base)).ok_or_else(absent)?;
    let found: Vec<_> = segments(archive).into_iter().filter(|(number, _)| *number >= first).collect();
    let bad = |segment: &str, what: String| BackupError::Segment {
        folder: archive.to_owned(),
        segment: segment.to_owned(),
        what,
    };
    let missing = |number| bad(&name_of(&start[..8], number), "missing".to_owned());
    // A base backup has its own log, and an archive has that as well, but what it began with.
    match found.first() {
        None => return Err(missing(end)),
        Some((number, _)) if *number > end + 1 => return Err(missing(end + 1)),
        Some(_) => {}
    }
    for pair in found.windows(2) {
        if pair[1].0 > pair[0].0 + 1 {
            return Err(bad(&pair[0].1, "the last before a gap".to_owned()));
        }
    }
    for (_, name) in &found {
        if fs::metadata(archive.join(name)).map_or(0, |it| it.len()) != SEGMENT_BYTES {
            return Err(bad(name, "cut".to_owned()));
        }
    }
    // A timeline at a time: the program reads along one.
    let mut names: Vec<_> = found.into_iter().map(|(_, name)| name).collect();
    names.sort();
    for run in names.chunk_by(|a, b| a[..8] == b[..8]) {
        if let [from, .., to] | [from @ to] = run {
            ask(programs, "pg_waldump", |it| it.args(["--quiet", "--path"]).arg(archive).args([from, to]))
                .map_err(|why| bad(from, format!("not readable up to {to}: {why}")))?;
        }
    }
    Ok(())
}

/// The first segment that a base backup needs, as its label says: `START WAL LOCATION: 0/2000028 (file 00…02)`.
pub(super) fn start_of(base: &Path) -> Option<String> {
    let label = fs::read_to_string(base.join("backup_label")).ok()?;
    let (_, rest) = label.lines().next()?.split_once("(file ")?;
    Some(rest.trim_end_matches(')').to_owned())
}

/// The number of the last segment that a base backup needs, as its manifest says: `"End-LSN": "0/2000100"`.
pub(super) fn end_of(base: &Path) -> Option<u64> {
    let manifest = fs::read_to_string(base.join("backup_manifest")).ok()?;
    let (_, rest) = manifest.rsplit_once("\"End-LSN\": \"")?;
    last_before(rest.split_once('"')?.0)
}
