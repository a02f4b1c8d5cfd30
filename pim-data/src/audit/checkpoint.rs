//! Signed statements of where every chain stood, kept outside the databases.

mod lines;
mod restored;
mod signed;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pim_core::problem::{self, IntoProblem, Problem};

use self::lines::{Lines, read};
pub(crate) use self::lines::{Loss, Purge, Reason};
pub(crate) use self::restored::Later;
pub use self::restored::LaterCheckpoints;
pub(crate) use self::signed::Signed;
use super::verify::{VerifyReport, heads};
use crate::backend::DbError;
use crate::cluster::Cluster;

const KEY_FILE: &str = "audit-checkpoint.pk8";
const LINES_FILE: &str = "audit-checkpoints.jsonl";

/// The last record of one chain: its number and the hexadecimal text of its hash.
pub(super) type Head = (u64, String);

/// Heads by shard and lane.
pub(crate) type Heads = BTreeMap<(Option<u16>, u64), Head>;

/// Signs checkpoints. The secret key lies in a file that only its owner may read, beside but outside the databases.
#[derive(Debug)]
pub struct CheckpointKey {
    pair: Ed25519KeyPair,
}

/// A checkpoint that cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key file holds no key.
    #[error("{} does not hold an Ed25519 key", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
    },
    /// A database does not answer.
    #[error("the heads of the audit chains cannot be read")]
    Read(#[from] DbError),
    /// A file that was named does not begin with what the backup has, or is not signed by the same key.
    #[error("{} does not go on from the checkpoints of the backup", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// The worker that reads the files was stopped.
    #[error("the checkpoint was interrupted")]
    Interrupted,
}

impl IntoProblem for CheckpointError {
    fn into_problem(self) -> Problem {
        Problem::of(problem::UNAVAILABLE)
    }
}

impl CheckpointKey {
    /// Reads the key at `path`; makes one, for its owner's eyes only, when there is none.
    ///
    /// # Errors
    /// [`CheckpointError::File`] and [`CheckpointError::Key`].
    pub fn open_or_create(path: &Path) -> Result<Self, CheckpointError> {
        let file = |source| CheckpointError::File { path: path.to_path_buf(), source };
        let key = |_| CheckpointError::Key { path: path.to_path_buf() };
        if !path.exists() {
            let pair = Ed25519KeyPair::generate().map_err(key)?;
            let secret = pair.to_pkcs8().map_err(key)?;
            write_secret(path, secret.as_ref()).map_err(file)?;
        }
        // Read back even when just made: of two processes that race, one key wins for both.
        let secret = std::fs::read(path).map_err(file)?;
        let pair = Ed25519KeyPair::from_pkcs8(&secret);
        Ok(Self { pair: pair.map_err(|_| CheckpointError::Key { path: path.to_path_buf() })? })
    }

    /// The public half, to verify with elsewhere.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    fn sign(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes()))
    }
}

/// Makes the name of a file outlast a power cut; its contents are synced apart.
fn sync_name(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    for folder in [Some(folder), folder.parent()].into_iter().flatten().filter(|folder| folder.is_dir()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn write_secret(path: &Path, secret: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Of its own: whoever else makes one, in this process or another, would take it away.
    let part = path.with_extension(format!("{}.part", uuid::Uuid::new_v4().simple()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    file.write_all(secret)?;
    file.sync_all()?;
    // A link fails when the name is taken, where a rename would replace another process's key.
    let linked = std::fs::hard_link(&part, path);
    std::fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_name(path),
    }
}

impl Cluster {
    /// Signs where every chain stands and appends that to a file beside the databases; the checkpoint's number.
    ///
    /// Whoever rewrites or cuts a chain after this also needs the key. Keep a copy of the file elsewhere: against somebody
    /// who can remove its last lines too, nothing inside the data directory helps.
    ///
    /// # Errors
    /// [`CheckpointError`]; nothing was appended then.
    pub async fn checkpoint_audit(&self) -> Result<u64, CheckpointError> {
        self.sign_audit(None).await
    }

    /// As [`Cluster::checkpoint_audit`], with a tombstone, or the record of a restore or a loss.
    pub(crate) async fn sign_audit(&self, reason: Option<Reason>) -> Result<u64, CheckpointError> {
        let folder = self.data_dir().to_path_buf();
        let open = move || {
            let key = CheckpointKey::open_or_create(&folder.join("keys").join(KEY_FILE))?;
            Ok((key, Lines::open(&folder.join(LINES_FILE))?))
        };
        // First of all: whoever signs next must have seen at least as much as whoever signed before.
        let (key, lines) = blocking(open).await?;
        let (heads, at) = (heads(self).await?, self.clock().now());
        blocking(move || lines.append(&key, at, heads, reason)).await
    }

    /// What was signed; findings about the file itself go to the report.
    pub(crate) async fn checkpointed(&self, report: &mut VerifyReport) -> Result<Signed, CheckpointError> {
        let folder = self.data_dir().to_path_buf();
        let mut part = VerifyReport::default();
        let work = move || -> Result<(Signed, VerifyReport), CheckpointError> {
            let lines = folder.join(LINES_FILE);
            if !lines.exists() {
                return Ok((Signed::default(), part));
            }
            let key = CheckpointKey::open_or_create(&folder.join("keys").join(KEY_FILE))?;
            let signed = read(&lines, &key.public(), &mut part)?;
            Ok((signed, part))
        };
        let (signed, part) = blocking(work).await?;
        report.checkpoints = part.checkpoints;
        (report.restores, report.losses) = (part.restores, part.losses);
        part.findings.into_iter().for_each(|finding| report.add(finding));
        Ok(signed)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| CheckpointError::Interrupted)?
}
