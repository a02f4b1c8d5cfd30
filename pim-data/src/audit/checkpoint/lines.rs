//! The file of checkpoints: one signed line each, chained by digest; an append reads no more than the last of them.
//!
//! No line signs less than the one before it, unless it says that everything was restored as it was at an earlier line, or
//! that what a shard has lost is given up.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pim_core::clock::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::signed::Signed;
use super::{CheckpointError, CheckpointKey, Head, Heads, sync_name};
use crate::audit::verify::{AuditFinding, AuditFindingKind, AuditLoss, AuditRestore, VerifyReport};
use crate::cluster::CONTROL;

/// Longest line: the lanes of as many shards as a map may name take six mebibytes.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// How much of the end is looked at first; doubled until the last line is in it.
const TAIL_BYTES: u64 = 16 << 10;

/// One line of the file: what was signed, and the signature.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    body: String,
    signature: String,
}

/// What is signed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    format: u32,
    pub(super) at: i64,
    pub(super) number: u64,
    /// SHA-256 of the line before, in base64url.
    pub(super) previous: String,
    /// `shard/lane:seq:hash`, sorted.
    heads: Vec<String>,
    /// What retention is about to remove.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) purge: Option<Purge>,
    /// That everything was restored, which lets this line sign less than the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) back: Option<Back>,
    /// That what one shard has lost is given up, which lets this line and others sign less of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) loss: Option<Loss>,
}

/// That everything stands again where it stood at an earlier line, or soon after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Back {
    /// The instant that was asked for, in microseconds; none for as far as there was something.
    pub(crate) to: Option<i64>,
    /// The last line that holds. Those behind it name records that were given up.
    pub(crate) kept: u64,
    /// Up to where each chain had been purged by then, as `shard/lane:seq:hash`.
    pub(crate) purged: Vec<String>,
}

/// Why a line is more than a checkpoint.
#[derive(Clone, Debug)]
pub(crate) enum Reason {
    /// Records are about to be removed.
    Purge(Purge),
    /// Everything was restored.
    Restore(Back),
    /// What a shard has lost is given up.
    Loss(Loss),
}

/// That what a shard has lost with its primary is given up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loss {
    /// Which shard, as chains name it.
    pub(crate) shard: u16,
    /// By whose word, and why.
    pub(crate) user: String,
    pub(crate) request: String,
    pub(crate) reason: String,
    /// The lines before this one that sign less of the shard, counted from one.
    pub(crate) lines: Vec<u64>,
    /// The first record of each lane that was signed and is another now: what was signed from there on is given up.
    #[serde(default)]
    pub(crate) forks: Vec<(u64, u64)>,
}

impl Loss {
    pub(super) fn place(&self) -> Option<u16> {
        (self.shard != CONTROL.0).then_some(self.shard)
    }
}

/// A tombstone: records that are about to go, because their time is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Purge {
    /// Records of before this instant go, in microseconds.
    pub(crate) before: i64,
    /// By whose word.
    pub(crate) user: String,
    pub(crate) request: String,
    /// The last record of each lane that goes, as `shard/lane:seq:hash`.
    pub(crate) ends: Vec<String>,
}

/// The end of a file of lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The last whole line, without its end; none in a file that has no line.
    pub(super) last: Option<Vec<u8>>,
    /// Where the whole lines end. What is behind was being written when the power went, and was never answered for.
    pub(super) end: u64,
}

/// The file while nobody else signs.
#[derive(Debug)]
pub(super) struct Lines {
    file: File,
    path: PathBuf,
}

impl Lines {
    /// Waits until nobody else signs. Several processes may: the lock orders them, and ends with the value.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::File { path: path.to_path_buf(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Appends a signed checkpoint; its number. The heads must have been read since the file was opened, so that none is
    /// older than those in the line before.
    pub(super) fn append(
        self,
        key: &CheckpointKey,
        at: Timestamp,
        heads: Vec<String>,
        reason: Option<Reason>,
    ) -> Result<u64, CheckpointError> {
        let Self { mut file, path } = self;
        let failed = |source| CheckpointError::File { path: path.clone(), source };
        let Tail { last, end } = tail(&mut file).map_err(failed)?;
        file.set_len(end).map_err(failed)?;
        let (number, previous) = match &last {
            None => (0, digest(b"")),
            Some(line) => match parse(line, &key.public()) {
                Some((body, _)) => (body.number, digest(line)),
                // Not ours, which verifying says: its place is counted, since it cannot be believed.
                None => (count(&mut file).map_err(failed)?, digest(line)),
            },
        };
        let (format, purge, back, loss) = match reason {
            None => (1, None, None, None),
            Some(Reason::Purge(purge)) => (2, Some(purge), None, None),
            Some(Reason::Restore(back)) => (3, None, Some(back), None),
            Some(Reason::Loss(loss)) => (4, None, None, Some(loss)),
        };
        let body = Body { format, at: at.as_micros(), number: number + 1, previous, heads, purge, back, loss };
        let body = serde_json::to_string(&body).map_err(|error| failed(error.into()))?;
        let signature = key.sign(&body);
        let mut line = serde_json::to_string(&Line { body, signature }).map_err(|error| failed(error.into()))?;
        line.push('\n');
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.write_all(line.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        if last.is_none() {
            sync_name(&path).map_err(failed)?;
        }
        Ok(number + 1)
    }
}

/// Reads every checkpoint, one at a time, checks signatures and chain, and returns what they say.
pub(super) fn read(path: &Path, public: &[u8], report: &mut VerifyReport) -> Result<Signed, CheckpointError> {
    let failed = |source| CheckpointError::File { path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Signed::default()),
        Err(error) => return Err(failed(error)),
    };
    file.lock_shared().map_err(failed)?;
    let (mut signed, mut previous, mut number) = (Signed::default(), digest(b""), 0);
    let (mut file, mut line) = (BufReader::new(&file), Vec::new());
    while next(&mut file, &mut line).map_err(failed)? {
        report.checkpoints += 1;
        let seq = report.checkpoints;
        number += 1;
        let found = |report: &mut VerifyReport, kind| {
            report.add(AuditFinding { shard: None, lane: 0, seq, kind, row: None });
        };
        match parse(&line, public) {
            Some((body, heads)) => {
                if body.previous != previous || body.number != number {
                    found(report, AuditFindingKind::CheckpointGap);
                }
                // What follows a gap continues from there: one finding a gap.
                number = body.number;
                if let Some(back) = &body.back {
                    report.restored(restore_of(&body, back));
                }
                if let Some(loss) = &body.loss {
                    report.lost(loss_of(&body, loss));
                }
                signed.take(seq, &body, heads);
            }
            None => found(report, AuditFindingKind::Forged),
        }
        previous = digest(&line);
    }
    for seq in signed.set_back.keys() {
        report.add(AuditFinding { shard: None, lane: 0, seq: *seq, kind: AuditFindingKind::SetBack, row: None });
    }
    Ok(signed)
}

fn loss_of(body: &Body, loss: &Loss) -> AuditLoss {
    AuditLoss {
        checkpoint: body.number,
        at: Timestamp::from_micros(body.at),
        shard: loss.place(),
        user: loss.user.clone(),
        reason: loss.reason.clone(),
        lines: loss.lines.clone(),
    }
}

fn restore_of(body: &Body, back: &Back) -> AuditRestore {
    AuditRestore {
        checkpoint: body.number,
        at: Timestamp::from_micros(body.at),
        to: back.to.map(Timestamp::from_micros),
        kept: back.kept,
        given_up: (body.number - 1).saturating_sub(back.kept),
    }
}

/// Reads the next whole line, without its end. What is longer than any line of ours comes in pieces, none of them signed.
pub(super) fn next(file: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, Error> {
    line.clear();
    let read = file.take(LINE_BYTES_MAX).read_until(b'\n', line)?;
    Ok(line.pop_if(|byte| *byte == b'\n').is_some() || read as u64 == LINE_BYTES_MAX)
}

/// Finds the last whole line from the end, whatever is before it.
pub(super) fn tail(file: &mut (impl Read + Seek)) -> Result<Tail, Error> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut bytes = Vec::new();
    let mut span = TAIL_BYTES;
    // Ends: the span doubles until it has the whole file, or two lines at their longest.
    loop {
        span = span.min(len);
        file.seek(SeekFrom::Start(len - span))?;
        bytes.clear();
        file.take(span).read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n');
        let begin = end.and_then(|end| bytes[..end].iter().rposition(|byte| *byte == b'\n'));
        match (begin, end) {
            (Some(begin), Some(end)) => {
                let last = Some(bytes[begin + 1..end].to_vec());
                return Ok(Tail { last, end: len - span + end as u64 + 1 });
            }
            (None, Some(end)) if span == len => {
                return Ok(Tail { last: Some(bytes[..end].to_vec()), end: end as u64 + 1 });
            }
            (None, None) if span == len => return Ok(Tail { last: None, end: 0 }),
            _ if span > 2 * LINE_BYTES_MAX => {
                return Err(Error::new(ErrorKind::InvalidData, "its last lines are longer than any checkpoint"));
            }
            _ => span *= 2,
        }
    }
}

/// How many whole lines there are.
fn count(file: &mut File) -> Result<u64, Error> {
    file.seek(SeekFrom::Start(0))?;
    let (mut file, mut line, mut count) = (BufReader::new(file), Vec::new(), 0);
    while next(&mut file, &mut line)? {
        count += 1;
    }
    Ok(count)
}

pub(super) fn parse(line: &[u8], public: &[u8]) -> Option<(Body, Heads)> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let signature = URL_SAFE_NO_PAD.decode(&line.signature).ok()?;
    UnparsedPublicKey::new(&ED25519, public).verify(line.body.as_bytes(), &signature).ok()?;
    let body: Body = serde_json::from_str(&line.body).ok()?;
    let heads = body.heads.iter().map(|text| head_of(text)).collect::<Option<_>>()?;
    Some((body, heads))
}

pub(super) fn head_of(text: &str) -> Option<((Option<u16>, u64), Head)> {
    let (shard, rest) = text.split_once('/')?;
    let mut parts = rest.split(':');
    let (lane, seq, hash) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.to_owned());
    let shard: u16 = shard.parse().ok()?;
    Some((((shard != CONTROL.0).then_some(shard), lane), (seq, hash)))
}

/// How a chain's end is written.
pub(super) fn text(shard: Option<u16>, lane: u64, seq: u64, hash: &str) -> String {
    format!("{}/{lane}:{seq}:{hash}", shard.unwrap_or(CONTROL.0))
}

pub(super) fn digest(line: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(line))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Counts the bytes that are read through it.
    struct Counted<R>(R, u64);

    impl<R: Read> Read for Counted<R> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
            let read = self.0.read(buffer)?;
            self.1 += read as u64;
            Ok(read)
        }
    }

    impl<R: Seek> Seek for Counted<R> {
        fn seek(&mut self, to: SeekFrom) -> Result<u64, Error> {
            self.0.seek(to)
        }
    }

    fn tail_of(text: &str) -> (Option<String>, u64) {
        let tail = tail(&mut Cursor::new(text)).unwrap();
        (tail.last.map(|line| String::from_utf8(line).unwrap()), tail.end)
    }

    #[test]
    fn the_last_whole_line_is_found_whatever_follows_it() {
        assert_eq!(tail_of(""), (None, 0));
        assert_eq!(tail_of("torn"), (None, 0));
        assert_eq!(tail_of("one\n"), (Some("one".to_owned()), 4));
        assert_eq!(tail_of("one\ntorn"), (Some("one".to_owned()), 4));
        assert_eq!(tail_of("one\ntwo\n"), (Some("two".to_owned()), 8));
        assert_eq!(tail_of("one\ntwo\ntorn"), (Some("two".to_owned()), 8));
        let long = "x".repeat(100_000);
        assert_eq!(tail_of(&format!("one\n{long}\n")), (Some(long.clone()), 100_005));
        assert_eq!(tail_of(&format!("{long}\n{long}")), (Some(long.clone()), 100_001));
    }

    /// Guard: `tail` begins at the end. However long the file is, an append reads as much as the last line needs.
    #[test]
    fn an_append_reads_no_more_than_the_end() {
        let line = format!("{}\n", "x".repeat(1000));
        let mut file = Counted(Cursor::new(line.repeat(5_000)), 0);
        assert_eq!(tail(&mut file).unwrap().end, 5_000 * 1001);
        assert!(file.1 <= 2 * TAIL_BYTES, "{} bytes were read", file.1);
    }
}
