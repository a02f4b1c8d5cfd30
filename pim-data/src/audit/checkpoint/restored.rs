//! Checkpoints that were signed after a backup: those that hold are taken over, the others stay, given up by a signed line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use pim_core::clock::Timestamp;
use serde::Serialize;

use super::lines::{Back, Reason, Tail, digest, head_of, next, parse, tail};
use super::signed::goes_on_from;
use super::{CheckpointError, CheckpointKey, Heads, KEY_FILE, LINES_FILE, blocking};
use crate::audit::verify::{VerifyReport, heads};
use crate::cluster::Cluster;

/// How much of two files is compared at once.
const COMPARED_BYTES: usize = 64 << 10;

/// What became of the checkpoints that were signed after the backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LaterCheckpoints {
    /// Where they were found; none when there was no file that goes on from the one in the backup.
    pub found_in: Option<PathBuf>,
    /// How many were signed by the instant that was restored, and hold.
    pub kept: u64,
    /// How many name records that were given up. They stay in the file, and the line of the restore counts them.
    pub given_up: u64,
    /// How many records these name that are not there any more.
    pub records_given_up: u64,
    /// The number of the line that tells of the restore; zero when the trail did not verify, and nothing was signed.
    pub signed: u64,
}

/// The lines of a file behind those of a backup.
#[derive(Debug, Default)]
pub(crate) struct Later {
    told: LaterCheckpoints,
    /// From where to where they lie that were given up.
    given_up: (u64, u64),
    /// What the newest of all names.
    heads: Heads,
}

impl Cluster {
    /// Takes over from the checkpoints of the system that was backed up what was signed behind the backup and holds: that of
    /// before `to`, and that whose records are all here. The file of a folder that is only guessed may be another's.
    pub(crate) async fn adopt_checkpoints(
        &self,
        (origin, is_named): (&Path, bool),
        to: Option<Timestamp>,
    ) -> Result<Later, CheckpointError> {
        let here: Heads = heads(self).await?.iter().filter_map(|text| head_of(text)).collect();
        let (folder, theirs) = (self.data_dir().to_path_buf(), origin.join(LINES_FILE));
        let holds =
            move |at: i64, heads: &Heads| to.is_some_and(|to| at <= to.as_micros()) || goes_on_from(heads, &here);
        blocking(move || {
            let failed = |source| CheckpointError::File { path: theirs.clone(), source };
            let ours = folder.join(LINES_FILE);
            let key = CheckpointKey::open_or_create(&folder.join("keys").join(KEY_FILE))?;
            let Some((later, kept)) = look(&theirs, &ours, &key.public(), holds).map_err(failed)? else {
                return if is_named { Err(CheckpointError::Foreign { path: theirs }) } else { Ok(Later::default()) };
            };
            copy(&theirs, &ours, kept).map_err(failed)?;
            Ok(later)
        })
        .await
    }

    /// Signs that everything was restored, behind the lines that were given up. The trail must have been verified.
    pub(crate) async fn sign_restore(
        &self,
        later: Later,
        to: Option<Timestamp>,
    ) -> Result<LaterCheckpoints, CheckpointError> {
        let Later { mut told, given_up, heads: newest } = later;
        let tombstones = self.checkpointed(&mut VerifyReport::default()).await?.tombstones;
        let here: Heads = heads(self).await?.iter().filter_map(|text| head_of(text)).collect();
        let gone = newest.iter().map(|(place, (end, _))| end.saturating_sub(here.get(place).map_or(0, |here| here.0)));
        told.records_given_up = gone.sum();
        let (folder, found_in) = (self.data_dir().to_path_buf(), told.found_in.clone());
        let kept = blocking(move || {
            let failed = |source| CheckpointError::File { path: folder.join(LINES_FILE), source };
            let key = CheckpointKey::open_or_create(&folder.join("keys").join(KEY_FILE))?;
            let ours = folder.join(LINES_FILE);
            let last = end_of(&ours).map_err(failed)?.last;
            if let Some(theirs) = found_in {
                copy(&theirs, &ours, given_up).map_err(failed)?;
            }
            Ok(last.and_then(|line| parse(&line, &key.public())).map_or(0, |(body, _)| body.number))
        });
        let kept = kept.await?;
        let purged =
            tombstones.iter().map(|((shard, lane), (seq, hash))| super::lines::text(*shard, *lane, *seq, hash));
        let back = Back { to: to.map(Timestamp::as_micros), kept, purged: purged.collect() };
        told.signed = self.sign_audit(Some(Reason::Restore(back))).await?;
        Ok(told)
    }
}

/// What `theirs` has behind all of `ours`, and from where to where that lies which holds; nothing when neither begins with
/// the other, or it is not there.
fn look(
    theirs: &Path,
    ours: &Path,
    public: &[u8],
    holds: impl Fn(i64, &Heads) -> bool,
) -> io::Result<Option<(Later, (u64, u64))>> {
    let Tail { last, end: from } = end_of(ours)?;
    let file = match File::open(theirs) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if from > 0 && !begins_alike(&file, &File::open(ours)?, from)? {
        // An older copy of ours, as one kept before the backup is: it is no other's, and has nothing later.
        return Ok(is_older(theirs, ours, from)?.then(|| (Later::default(), (from, from))));
    }
    let (mut previous, mut number) = (digest(last.as_deref().unwrap_or_default()), 0);
    if let Some((body, _)) = last.as_deref().and_then(|line| parse(line, public)) {
        number = body.number;
    }
    let mut file = BufReader::new(file);
    file.seek(SeekFrom::Start(from))?;
    let (mut later, mut line, mut kept_to, mut to) = (Later::default(), Vec::new(), from, from);
    while next(&mut file, &mut line)? {
        // Behind a line that is not ours nothing says anything.
        let ours = parse(&line, public).filter(|(body, _)| body.previous == previous && body.number == number + 1);
        let Some((body, heads)) = ours else { break };
        (previous, number, to) = (digest(&line), body.number, to + line.len() as u64 + 1);
        if later.told.given_up == 0 && holds(body.at, &heads) {
            (later.told.kept, kept_to) = (later.told.kept + 1, to);
        } else {
            (later.told.given_up, later.heads) = (later.told.given_up + 1, heads);
        }
    }
    later.given_up = (kept_to, to);
    later.told.found_in = Some(theirs.to_owned());
    Ok(Some((later, (from, kept_to))))
}

/// Whether a file has lines, and all of them are the first ones of ours.
fn is_older(theirs: &Path, ours: &Path, from: u64) -> io::Result<bool> {
    let end = end_of(theirs)?.end;
    Ok(0 < end && end < from && begins_alike(&File::open(theirs)?, &File::open(ours)?, end)?)
}

fn end_of(lines: &Path) -> io::Result<Tail> {
    match File::open(lines) {
        Ok(mut file) => tail(&mut file),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Tail { last: None, end: 0 }),
        Err(error) => Err(error),
    }
}

/// Whether two files have the same first bytes.
fn begins_alike(mut a: &File, mut b: &File, bytes: u64) -> io::Result<bool> {
    if a.metadata()?.len() < bytes {
        return Ok(false);
    }
    let (mut left, mut from_a, mut from_b) = (bytes, [0; COMPARED_BYTES], [0; COMPARED_BYTES]);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(COMPARED_BYTES).min(COMPARED_BYTES);
        a.read_exact(&mut from_a[..size])?;
        b.read_exact(&mut from_b[..size])?;
        if from_a[..size] != from_b[..size] {
            return Ok(false);
        }
        left -= size as u64;
    }
    Ok(true)
}

/// Copies lines to where they lie in the other file, over what half a line may have left there.
fn copy(from: &Path, into: &Path, (begin, end): (u64, u64)) -> io::Result<()> {
    if begin == end {
        return Ok(());
    }
    let mut source = File::open(from)?;
    source.seek(SeekFrom::Start(begin))?;
    let mut target = OpenOptions::new().write(true).create(true).truncate(false).open(into)?;
    target.set_len(begin)?;
    target.seek(SeekFrom::Start(begin))?;
    io::copy(&mut source.take(end - begin), &mut target)?;
    target.sync_all()
}
