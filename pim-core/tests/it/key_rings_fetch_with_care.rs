//! Keys: one fetch for a new id, none for a guess made again, a bad set refused whole, an hour at most without the issuer.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use pim_core::token::{KeyRing, KeySet, KeySource, KeySourceError, TokenError, TokenVerifier, VerifierSettings};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep, timeout};

use crate::issuer::{AUDIENCE, ISSUER, Issuer, NOW, Source, claims, clock, verifier, with};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A token of `issuer` issued so many seconds after the start.
fn later(issuer: &Issuer, seconds: i64) -> String {
    let claims = with(claims(), "iat", json!(NOW + seconds));
    issuer.token(&issuer.header(), &with(claims, "exp", json!(NOW + seconds + 60)))
}

#[tokio::test]
async fn many_callers_cause_one_fetch() {
    let issuer = Issuer::new();
    let source = Source::of(issuer.jwks());
    let verifier = Arc::new(verifier(&source, &clock()));
    let token = issuer.good();
    let answers = join_all((0..50).map(|_| verifier.verify(&token))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_asked_for_once() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let source = Source::of(issuer.jwks());
    let clock = clock();
    let verifier = verifier(&source, &clock);
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    clock.advance(3 * SECOND);
    for _ in 0..20 {
        assert_eq!(verifier.verify(&stranger.good()).await.unwrap_err(), TokenError::UnknownKey);
        clock.advance(3 * SECOND);
    }
    assert_eq!(source.fetches(), 3, "one for the first key, one for the unknown id each half minute");
    // Other guesses are paced: one fetch in two seconds, however many ids.
    for _ in 0..20 {
        assert_eq!(verifier.verify(&Issuer::new().good()).await.unwrap_err(), TokenError::UnknownKey);
    }
    assert_eq!(source.fetches(), 4);
    // And the first guess is still remembered after another one was fetched for.
    assert_eq!(verifier.verify(&stranger.good()).await.unwrap_err(), TokenError::UnknownKey);
    assert_eq!(source.fetches(), 4);
}

/// Guard: `UNKNOWN_FOR`. A set may be behind a cache, and who guesses an id beforehand must not keep it out.
#[tokio::test]
async fn an_id_that_was_asked_for_too_early_is_known_soon_after_it_is_published() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let source = Source::of(old.jwks());
    let clock = clock();
    let verifier = verifier(&source, &clock);
    assert!(verifier.verify(&old.good()).await.is_ok());
    clock.advance(3 * SECOND);
    assert_eq!(verifier.verify(&new.good()).await.unwrap_err(), TokenError::UnknownKey);
    source.set(Some(json!({"keys": [old.signer.jwk(), new.signer.jwk()]}).to_string()));
    clock.advance(3 * SECOND);
    assert_eq!(verifier.verify(&new.good()).await.unwrap_err(), TokenError::UnknownKey, "the issuer is spared");
    clock.advance(28 * SECOND);
    assert!(verifier.verify(&new.good()).await.is_ok());
}

#[tokio::test]
async fn a_source_that_does_not_answer_proves_nothing_about_an_id() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let source = Source::of(old.jwks());
    let clock = clock();
    let verifier = verifier(&source, &clock);
    assert!(verifier.verify(&old.good()).await.is_ok());
    source.set(None);
    clock.advance(3 * SECOND);
    assert_eq!(verifier.verify(&new.good()).await.unwrap_err(), TokenError::UnknownKey);
    source.set(Some(new.jwks()));
    clock.advance(3 * SECOND);
    assert!(verifier.verify(&new.good()).await.is_ok());
}

#[tokio::test]
async fn a_bad_set_is_refused_whole_and_the_old_one_kept() {
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let source = Source::of(issuer.jwks());
    let clock = clock();
    let verifier = verifier(&source, &clock);
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    let half_bad = json!({"keys": [other.signer.jwk(), {"kty": "oct", "kid": "x", "k": "c2VjcmV0"}]});
    source.set(Some(half_bad.to_string()));
    clock.advance(6 * MINUTE);
    assert!(verifier.verify(&later(&issuer, 360)).await.is_ok(), "the old set stays");
    assert_eq!(verifier.verify(&later(&other, 360)).await.unwrap_err(), TokenError::UnknownKey);
    assert!(source.fetches() >= 2);
}

#[tokio::test]
async fn stale_keys_end_after_an_hour() {
    let issuer = Issuer::new();
    let source = Source::of(issuer.jwks());
    let clock = clock();
    let verifier = verifier(&source, &clock);
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    source.set(None);
    clock.advance(60 * MINUTE - SECOND);
    let token = later(&issuer, 3599);
    assert!(verifier.verify(&token).await.is_ok());
    clock.advance(SECOND);
    assert_eq!(verifier.verify(&token).await.unwrap_err(), TokenError::KeysUnavailable, "cached or not");
    source.set(Some(issuer.jwks()));
    clock.advance(3 * SECOND);
    assert!(verifier.verify(&token).await.is_ok());
}

#[tokio::test]
async fn a_withdrawn_key_takes_its_cached_tokens_along() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let source = Source::of(json!({"keys": [old.signer.jwk(), new.signer.jwk()]}).to_string());
    let clock = clock();
    let verifier = verifier(&source, &clock);
    let token = old.token(&old.header(), &with(claims(), "exp", json!(NOW + 900)));
    assert!(verifier.verify(&token).await.is_ok());
    source.set(Some(new.jwks()));
    assert!(verifier.verify(&token).await.is_ok(), "nobody has looked yet");
    // Nobody comes with an unknown id; the refresh alone must notice.
    clock.advance(6 * MINUTE);
    assert_eq!(verifier.verify(&token).await.unwrap_err(), TokenError::UnknownKey);
}

#[tokio::test]
async fn nobody_waits_for_a_refresh_while_keys_are_good() {
    let issuer = Issuer::new();
    let source = Source::of(issuer.jwks());
    let clock = clock();
    let verifier = Arc::new(verifier(&source, &clock));
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    clock.advance(6 * MINUTE);
    let token = later(&issuer, 360);
    // The first begins to fetch and is held there; the second must be done at its first poll.
    let (mut first, mut second) = (pin!(verifier.verify(&token)), pin!(verifier.verify(&token)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut cx).is_pending());
    assert!(second.as_mut().poll(&mut cx).is_ready());
    assert!(first.await.is_ok());
    assert_eq!(source.fetches(), 2);
}

/// The wall clock stands still here, as one does for an hour that is set back by one.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_keeps_no_key() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let source = Source::of(json!({"keys": [old.signer.jwk(), new.signer.jwk()]}).to_string());
    let verifier = verifier(&source, &clock());
    assert!(verifier.verify(&old.good()).await.is_ok());
    source.set(Some(new.jwks()));
    advance(5 * MINUTE).await;
    assert_eq!(verifier.verify(&old.good()).await.unwrap_err(), TokenError::UnknownKey, "withdrawn");
    source.set(None);
    advance(60 * MINUTE).await;
    assert_eq!(verifier.verify(&new.good()).await.unwrap_err(), TokenError::KeysUnavailable);
    source.set(Some(new.jwks()));
    advance(2 * SECOND).await;
    assert!(verifier.verify(&new.good()).await.is_ok(), "nor is the pause any longer");
}

/// Hangs when it is told to; says whether it does, and how often it was asked.
#[derive(Clone)]
struct Hanging(Source, Arc<(AtomicBool, AtomicU32)>);

impl Hanging {
    fn hang(&self, hangs: bool) {
        self.1.0.store(hangs, Ordering::SeqCst);
    }

    fn asked(&self) -> u32 {
        self.1.1.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl KeySource for Hanging {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        self.1.1.fetch_add(1, Ordering::SeqCst);
        if self.1.0.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.0.fetch().await
    }
}

/// A verifier whose keys are good and not fresh, and their issuer, which hangs from now on.
async fn beside_a_hanging_issuer(issuer: &Issuer) -> (TokenVerifier, Hanging) {
    let source = Hanging(Source::of(issuer.jwks()), Arc::default());
    let settings = VerifierSettings::access_token(ISSUER, AUDIENCE);
    let verifier = TokenVerifier::new(settings, KeyRing::new(source.clone(), clock()), clock());
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    advance(5 * MINUTE).await;
    source.hang(true);
    (verifier, source)
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_hangs_costs_nobody_more_than_a_second_while_keys_are_good() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let (verifier, source) = beside_a_hanging_issuer(&old).await;
    let (token, began) = (old.good(), Instant::now());
    let mut waited = 0;
    while began.elapsed() < 10 * MINUTE {
        let asked = Instant::now();
        assert!(timeout(MINUTE, verifier.verify(&token)).await.expect("does not hang").is_ok(), "keys are good");
        assert!(asked.elapsed() <= SECOND + Duration::from_millis(1), "{:?}", asked.elapsed());
        waited += u32::from(!asked.elapsed().is_zero());
        sleep(SECOND).await;
    }
    // After 4, 8, 16 and 32 seconds, and then each minute.
    assert!((5..=15).contains(&waited) && source.asked() == waited + 1, "{waited} of {}", source.asked());
    source.hang(false);
    source.0.set(Some(new.jwks()));
    advance(MINUTE).await;
    assert_eq!(verifier.verify(&token).await.unwrap_err(), TokenError::UnknownKey, "it is asked again within a minute");
}

#[tokio::test(start_paused = true)]
async fn callers_who_go_away_are_not_followed_by_one_every_two_seconds() {
    let issuer = Issuer::new();
    let (verifier, source) = beside_a_hanging_issuer(&issuer).await;
    let (token, mut lost) = (issuer.good(), 0);
    for _ in 0..600 {
        // Less time than a refresh may take.
        match timeout(Duration::from_millis(500), verifier.verify(&token)).await {
            Ok(answer) => assert!(answer.is_ok()),
            Err(_elapsed) => lost += 1,
        }
        sleep(SECOND).await;
    }
    assert!((5..=15).contains(&lost) && source.asked() == lost + 1, "{lost} of {}", source.asked());
}

/// Guard: whoever asks with ids that nobody knows, and does not wait, keeps no refresh from callers with good keys.
#[tokio::test(start_paused = true)]
async fn guesses_put_off_no_refresh() {
    let (old, new, stranger) = (Issuer::new(), Issuer::new(), Issuer::new());
    let (verifier, source) = beside_a_hanging_issuer(&old).await;
    let (known, guess) = (old.good(), stranger.good());
    assert!(timeout(MINUTE, verifier.verify(&known)).await.expect("does not hang").is_ok());
    for _ in 0..30 {
        advance(2 * SECOND).await;
        assert!(timeout(SECOND, verifier.verify(&guess)).await.is_err(), "it waits for its answer");
    }
    source.hang(false);
    source.0.set(Some(new.jwks()));
    advance(2 * SECOND).await;
    assert_eq!(verifier.verify(&old.good()).await.unwrap_err(), TokenError::UnknownKey, "it has been refreshed");
}

#[tokio::test]
async fn a_key_of_a_type_that_nobody_knows_does_not_take_the_others_along() {
    let issuer = Issuer::new();
    let newer = json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA", "use": "sig"});
    let curve = json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "big"});
    let nameless = json!({"kty": "AKP"});
    // Of types that are known, for algorithms that are not, or without an id that a token could name.
    let longer = json!({"kty": "RSA", "alg": "RS512", "kid": "rs512", "n": "_".repeat(344), "e": "AQAB"});
    let wraps = json!({"kty": "RSA", "alg": "RSA-OAEP", "kid": "wraps", "n": "_".repeat(344), "e": "AQAB"});
    let agrees = with(with(issuer.signer.jwk().clone(), "alg", json!("ECDH-ES")), "kid", json!("agrees"));
    let unheard_of = with(with(issuer.signer.jwk().clone(), "alg", json!("XS257")), "kid", json!("later"));
    let unnamed = with(issuer.signer.jwk().clone(), "kid", Value::Null);
    let set = [newer, issuer.signer.jwk().clone(), curve, nameless, longer, wraps, agrees, unheard_of, unnamed];
    let set = json!({"keys": set}).to_string();
    assert_eq!(KeySet::from_jwks(&set).map(|keys| keys.skipped()), Ok(8));
    let verifier = verifier(&Source::of(set), &clock());
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    let claimed = issuer.token(&with(issuer.header(), "kid", json!("pq")), &claims());
    assert_eq!(verifier.verify(&claimed).await.unwrap_err(), TokenError::UnknownKey);
    // What is of a known type and bad, or a secret, still refuses the set.
    let secret = json!({"keys": [issuer.signer.jwk(), {"kty": "AKP", "kid": "s", "d": "AA"}]});
    assert!(KeySet::from_jwks(&secret.to_string()).is_err());
    let short = json!({"keys": [issuer.signer.jwk(), {"kty": "EC", "crv": "P-256", "kid": "s", "x": "A", "y": "A"}]});
    assert!(KeySet::from_jwks(&short.to_string()).is_err());
}

/// RFC 9864 gives EdDSA with this curve a name of its own, beside the old one.
#[tokio::test]
async fn ed25519_has_two_names() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let point = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    for (published, named) in [("EdDSA", "EdDSA"), ("Ed25519", "Ed25519"), ("Ed25519", "EdDSA")] {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": point, "alg": published, "kid": "ed", "use": "sig"});
        let source = Source::of(json!({"keys": [key, Issuer::new().signer.jwk()]}).to_string());
        let header = json!({"alg": named, "typ": "at+jwt", "kid": "ed"}).to_string();
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims().to_string()));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
        assert!(verifier(&source, &clock()).verify(&format!("{message}.{signature}")).await.is_ok(), "{published}");
    }
}

#[test]
fn key_sets_are_refused_by_cause() {
    let good = Issuer::new().signer.jwk().clone();
    let with_member = |member: &str, value: Value| json!({"keys": [with(good.clone(), member, value)]});
    let rsa = |bytes: usize| json!({"kty": "RSA", "kid": "r", "n": "_".repeat(bytes * 4 / 3), "e": "AQAB"});
    let bad = [
        ("no JSON", json!("x")),
        ("no list", json!({"keys": {}})),
        ("no key", json!({"keys": []})),
        ("only for encryption", with_member("use", json!("enc"))),
        ("no kid", with_member("kid", Value::Null)),
        ("one kid twice", json!({"keys": [good, good]})),
        ("private part", with_member("d", json!("AA"))),
        ("another alg", with_member("alg", json!("RS256"))),
        ("another curve", with_member("crv", json!("P-521"))),
        ("an RSA key of 1024 bits", json!({"keys": [rsa(129)]})),
        ("too many", json!({"keys": vec![good.clone(); 65]})),
    ];
    for (name, set) in bad {
        assert!(KeySet::from_jwks(&set.to_string()).is_err(), "{name}");
    }
    assert!(KeySet::from_jwks(&json!({"keys": [good]}).to_string()).is_ok());
    assert!(KeySet::from_jwks(&json!({"keys": [rsa(258)]}).to_string()).is_ok());
}
