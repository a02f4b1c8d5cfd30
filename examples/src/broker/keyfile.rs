//! Keys and secrets in the data directory: made once, readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pim_core::token::Signer;

/// A key or secret that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file system refuses.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it must be.
    #[error("key file {} is damaged: remove it, and every session signs in again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// The machine gives no randomness.
    #[error("no randomness to make a key of")]
    Random,
}

/// What the files of signing keys are called, with the second in which the key was made between them.
const SIGNER_FILES: (&str, &str) = ("broker-es256-", ".pk8");
/// The file of the one key of earlier versions, which never took turns.
const FIRST_SIGNER_FILE: &str = "broker-es256.pk8";

/// The broker's signing keys, each with the second in which it was made.
pub(super) fn signers(data_dir: &Path) -> Result<Vec<(i64, Signer)>, KeyFileError> {
    let folder = data_dir.join("keys");
    let failed = |source| KeyFileError::Io { doing: "list", path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(made_at) = path.file_name().and_then(|name| made_at(name.to_str()?)) {
            found.push((made_at, signer_in(&path)?));
        }
    }
    Ok(found)
}

fn made_at(name: &str) -> Option<i64> {
    if name == FIRST_SIGNER_FILE {
        return Some(0);
    }
    name.strip_prefix(SIGNER_FILES.0)?.strip_suffix(SIGNER_FILES.1)?.parse().ok()
}

fn signer_file(data_dir: &Path, made_at: i64) -> PathBuf {
    let name = if made_at == 0 {
        FIRST_SIGNER_FILE.to_owned()
    } else {
        format!("{}{made_at}{}", SIGNER_FILES.0, SIGNER_FILES.1)
    };
    data_dir.join("keys").join(name)
}

/// Makes a signing key.
pub(super) fn make_signer(data_dir: &Path, made_at: i64) -> Result<Signer, KeyFileError> {
    let path = signer_file(data_dir, made_at);
    read_or_make(&path, || {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        made.map(|document| document.as_ref().to_vec()).map_err(|_| KeyFileError::Random)
    })?;
    signer_in(&path)
}

/// Removes a signing key whose tokens are over; one that stays is listed again after a restart, which does no harm.
pub(super) fn remove_signer(data_dir: &Path, made_at: i64) {
    let _stays = fs::remove_file(signer_file(data_dir, made_at));
}

fn signer_in(path: &Path) -> Result<Signer, KeyFileError> {
    let pkcs8 =
        fs::read(path).map_err(|source| KeyFileError::Io { doing: "read", path: path.to_path_buf(), source })?;
    let damaged = || KeyFileError::Damaged { path: path.to_path_buf() };
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).map_err(|_| damaged())?;
    Signer::es256(&pkcs8, pair.public_key().as_ref()).map_err(|_| damaged())
}

/// The secret by which the gateway authenticates to the broker, made when it is not there.
///
/// # Errors
/// [`KeyFileError`].
pub fn gateway_secret(data_dir: &Path) -> Result<String, KeyFileError> {
    let path = data_dir.join("keys").join("gateway.secret");
    let bytes = read_or_make(&path, || random_token().map(String::into_bytes))?;
    String::from_utf8(bytes).map_err(|_| KeyFileError::Damaged { path })
}

/// 256 bits of randomness as text.
pub(super) fn random_token() -> Result<String, KeyFileError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyFileError::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Result<Vec<u8>, KeyFileError>) -> Result<Vec<u8>, KeyFileError> {
    let failed = |doing, source| KeyFileError::Io { doing, path: path.to_path_buf(), source };
    match fs::read(path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", error)),
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| failed("make the folder of", error))?;
    let bytes = make()?;
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
    let mut file = opened.map_err(|error| failed("make", error))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|error| failed("write", error))?;
    // A link fails when another program was faster; then theirs is the one.
    let linked = fs::hard_link(&fresh, path);
    let _removed = fs::remove_file(&fresh);
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("make", error)),
    }
    // Names as well as contents: after a power cut, sessions would be signed by a key that nobody has any more.
    for folder in [Some(folder), folder.parent()].into_iter().flatten() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed("sync the folder of", error))?;
    }
    fs::read(path).map_err(|error| failed("read", error))
}
