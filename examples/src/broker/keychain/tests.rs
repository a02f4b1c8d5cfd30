use std::path::Path;

use pim_core::clock::Timestamp;
use pim_core::token::{KeyRing, TokenVerifier, VerifierSettings};
use serde_json::json;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("pim-keychain-{}", uuid::Uuid::new_v4())))
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.0.join("keys")).expect("reads").count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.0);
    }
}

fn open(folder: &Path, clock: &Clock) -> Keychain {
    Keychain::open(folder.to_owned(), DAY, clock.clone()).expect("opens")
}

fn clock() -> Clock {
    Clock::manual(Timestamp::from_micros(1_800_000_000_000_000))
}

fn listed(chain: &Keychain) -> Vec<String> {
    let jwks = chain.jwks();
    jwks["keys"].as_array().expect("a list").iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

/// A token of the key that signs now, good for as long as any.
fn token(chain: &Keychain, clock: &Clock) -> String {
    let now = seconds(clock);
    let claims =
        json!({"iss": "urn:broker", "aud": "urn:test", "sub": "u-1", "jti": "t", "iat": now, "exp": now + 900});
    chain.signer().sign("at+jwt", &claims).expect("signs")
}

fn verifier(chain: &Keychain, clock: &Clock) -> TokenVerifier {
    let ring = KeyRing::new(chain.clone(), clock.clone());
    TokenVerifier::new(VerifierSettings::access_token("urn:broker", "urn:test"), ring, clock.clone())
}

#[tokio::test]
async fn a_new_key_is_published_before_it_signs_and_the_old_one_until_its_tokens_are_over() {
    let (folder, clock) = (Folder::new(), clock());
    let chain = open(&folder.0, &clock);
    let verifier = verifier(&chain, &clock);
    let old = chain.signer().key_id().to_owned();
    assert_eq!(listed(&chain), std::slice::from_ref(&old));
    clock.advance(DAY);
    assert_eq!(chain.signer().key_id(), old, "a key that nobody knows yet does not sign");
    let both = listed(&chain);
    assert_eq!((both.len(), &both[0]), (2, &old));
    clock.advance(PUBLISHED_AHEAD - Duration::from_secs(1));
    let last = token(&chain, &clock);
    assert!(verifier.verify(&last).await.is_ok());
    clock.advance(Duration::from_secs(1));
    assert_eq!(chain.signer().key_id(), both[1], "now the new one signs");
    assert!(verifier.verify(&token(&chain, &clock)).await.is_ok());
    clock.advance(14 * MINUTE);
    assert_eq!(listed(&chain), both, "its last token is not over");
    assert!(verifier.verify(&last).await.is_ok());
    clock.advance(2 * MINUTE);
    assert_eq!(listed(&chain), both[1..], "retired");
    assert_eq!(folder.files(), 1, "and removed");
    assert!(verifier.verify(&last).await.is_err());
}

#[tokio::test]
async fn a_verifier_that_has_slept_learns_the_new_key() {
    let (folder, clock) = (Folder::new(), clock());
    let chain = open(&folder.0, &clock);
    let verifier = verifier(&chain, &clock);
    assert!(verifier.verify(&token(&chain, &clock)).await.is_ok());
    clock.advance(DAY);
    let _made = chain.signer();
    clock.advance(PUBLISHED_AHEAD);
    for _ in 0..3 {
        assert!(verifier.verify(&token(&chain, &clock)).await.is_ok());
    }
}

#[test]
fn a_restart_goes_on_with_the_same_keys() {
    let (folder, clock) = (Folder::new(), clock());
    let first = open(&folder.0, &clock);
    clock.advance(DAY);
    let (signing, all) = (first.signer().key_id().to_owned(), listed(&first));
    drop(first);
    let again = open(&folder.0, &clock);
    assert_eq!((again.signer().key_id(), listed(&again)), (signing.as_str(), all.clone()));
    clock.advance(PUBLISHED_AHEAD);
    assert_eq!(again.signer().key_id(), all[1]);
}

#[test]
fn keys_at_once_are_bounded_and_so_is_the_setting() {
    let (folder, clock) = (Folder::new(), clock());
    let chain = Keychain::open(folder.0.clone(), ROTATION_MIN, clock.clone()).expect("opens");
    let mut most = 0;
    for _ in 0..200 {
        clock.advance(ROTATION_MIN);
        most = most.max(listed(&chain).len());
    }
    assert!((20..=30).contains(&most), "{most}");
    let refused = Keychain::open(folder.0.clone(), Duration::from_secs(59), clock);
    assert!(matches!(refused, Err(KeychainError::Rotation(59))));
}

#[test]
fn a_key_that_cannot_be_made_leaves_the_one_that_signs() {
    let (folder, clock) = (Folder::new(), clock());
    let chain = open(&folder.0, &clock);
    let old = chain.signer().key_id().to_owned();
    std::fs::remove_dir_all(&folder.0).expect("removes");
    // A file where the folder was: nothing can be made below it.
    std::fs::write(&folder.0, b"").expect("writes");
    clock.advance(DAY);
    assert_eq!(chain.signer().key_id(), old);
    std::fs::remove_file(&folder.0).expect("removes");
    clock.advance(RETRY);
    assert_eq!(listed(&chain).len(), 2, "made when it can be");
}
