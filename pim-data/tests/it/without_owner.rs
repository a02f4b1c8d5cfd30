//! What services are given where another program migrates.

use std::sync::Arc;

use pim_data::backend::{SecretError, Secrets};

/// What services are given: no owner's connection string.
#[derive(Debug)]
pub(crate) struct WithoutOwner(pub(crate) Arc<dyn Secrets>);

impl Secrets for WithoutOwner {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        if name.ends_with("-owner") {
            return Err(SecretError::Absent { name: name.to_owned(), place: "nowhere".to_owned() });
        }
        self.0.secret(name)
    }
}
