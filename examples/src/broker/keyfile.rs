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

/// The broker's signing key, made when it is not there.
pub(super) fn signer(data_dir: &Path) -> Result<Signer, KeyFileError> {
    let path = data_dir.join("keys").join("broker-es256.pk8");
    let pkcs8 = read_or_make(&path, || {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        made.map(|document| document.as_ref().to_vec()).map_err(|_| KeyFileError::Random)
    })?;
    let damaged = || KeyFileError::Damaged { path: path.clone() };
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
