//! What has been verified already: a table of fixed size, by SHA-256 of the token.

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::VerifiedToken;

const SLOTS: usize = 4096;

struct Entry {
    digest: [u8; 32],
    generation: u64,
    token: Arc<VerifiedToken>,
}

/// One entry a slot; a newcomer replaces what was there. It only ever saves work, so losing an entry is harmless.
pub(super) struct Cache {
    slots: Box<[Mutex<Option<Entry>>]>,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Mutex::new(None)).collect() }
    }

    pub(super) fn digest(token: &str) -> [u8; 32] {
        Sha256::digest(token.as_bytes()).into()
    }

    pub(super) fn get(&self, digest: &[u8; 32], generation: u64) -> Option<Arc<VerifiedToken>> {
        let slot = self.slot(digest).lock().unwrap_or_else(PoisonError::into_inner);
        let entry = slot.as_ref().filter(|entry| entry.digest == *digest && entry.generation == generation)?;
        Some(Arc::clone(&entry.token))
    }

    pub(super) fn put(&self, digest: [u8; 32], generation: u64, token: Arc<VerifiedToken>) {
        let mut slot = self.slot(&digest).lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Entry { digest, generation, token });
    }

    fn slot(&self, digest: &[u8; 32]) -> &Mutex<Option<Entry>> {
        &self.slots[(usize::from(digest[0]) << 8 | usize::from(digest[1])) % SLOTS]
    }
}
