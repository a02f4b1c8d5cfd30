//! Connection strings by name: a map names secrets, and whoever runs the program keeps them.

use std::fmt;
use std::path::{Path, PathBuf};

/// A connection string that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// What should be a name is a connection string.
    #[error("a connection string stands where the name of a secret belongs: keep it as a secret and name that")]
    Inline,
    /// There is no such secret.
    #[error("secret {name} is not there: set {place}")]
    Absent {
        /// Its name.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// It cannot be read.
    #[error("secret {name} cannot be read from {place}")]
    Unreadable {
        /// Its name.
        name: String,
        /// Where.
        place: String,
    },
    /// It is no connection string.
    #[error("secret {name} is not a connection string of the form postgres://user:password@host:port/database")]
    Malformed {
        /// Its name.
        name: String,
    },
}

/// Where connection strings come from. Asked again for each new connection, so a changed one is picked up.
pub trait Secrets: Send + Sync + fmt::Debug {
    /// The secret of this name.
    ///
    /// # Errors
    /// [`SecretError`].
    fn secret(&self, name: &str) -> Result<String, SecretError>;
}

/// Secrets in environment variables: `shard-0` under the prefix `PIM_DSN_` is `PIM_DSN_SHARD_0`.
#[derive(Clone, Debug)]
pub struct EnvSecrets {
    prefix: String,
}

impl EnvSecrets {
    /// With this prefix.
    #[must_use]
    pub fn with_prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }
}

impl Secrets for EnvSecrets {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        check_name(name)?;
        let tail: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        let place = format!("{}{tail}", self.prefix);
        std::env::var(&place).map_err(|_| SecretError::Absent { name: name.to_owned(), place })
    }
}

/// Secrets in the files of a folder, one a file, as Kubernetes and Docker mount them.
#[derive(Clone, Debug)]
pub struct FileSecrets {
    folder: PathBuf,
}

impl FileSecrets {
    /// In this folder.
    #[must_use]
    pub fn in_folder(folder: impl AsRef<Path>) -> Self {
        Self { folder: folder.as_ref().to_path_buf() }
    }
}

impl Secrets for FileSecrets {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        check_name(name)?;
        let file = self.folder.join(name);
        let place = file.display().to_string();
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(SecretError::Absent { name: name.to_owned(), place })
            }
            Err(_) => Err(SecretError::Unreadable { name: name.to_owned(), place }),
        }
    }
}

/// Refuses what is no name, without repeating it: it may hold a password.
pub(super) fn check_name(name: &str) -> Result<(), SecretError> {
    let is_name = !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if is_name { Ok(()) } else { Err(SecretError::Inline) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_in_place_of_a_name_is_refused_and_not_repeated() {
        for inline in ["postgres://u:secret@h/db", "../shadow", "", "host=h password=secret"] {
            let refused = EnvSecrets::with_prefix("X_").secret(inline).unwrap_err();
            assert_eq!(refused, SecretError::Inline);
            assert!(!format!("{refused} {refused:?}").contains("secret@"));
        }
    }

    #[test]
    fn a_missing_secret_names_the_place_to_set() {
        let refused = EnvSecrets::with_prefix("PIM_NOWHERE_").secret("shard-0").unwrap_err();
        assert!(refused.to_string().contains("PIM_NOWHERE_SHARD_0"));
    }
}
