//! Keys: one fetch for a new id, none for a guess made again, a bad set refused whole, an hour at most without the issuer.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::token::{KeySet, TokenError};
use serde_json::{Value, json};

use crate::issuer::{Issuer, NOW, Source, claims, clock, verifier, with};

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

#[tokio::test]
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
    assert_eq!(source.fetches(), 2, "one for the first key, one for the unknown id");
    // Other guesses are paced: one fetch in two seconds, however many ids.
    for _ in 0..20 {
        assert_eq!(verifier.verify(&Issuer::new().good()).await.unwrap_err(), TokenError::UnknownKey);
    }
    assert_eq!(source.fetches(), 3);
    // And the first guess is still remembered after another one was fetched for.
    clock.advance(3 * SECOND);
    assert_eq!(verifier.verify(&stranger.good()).await.unwrap_err(), TokenError::UnknownKey);
    assert_eq!(source.fetches(), 3);
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

#[tokio::test]
async fn a_key_of_a_type_that_nobody_knows_does_not_take_the_others_along() {
    let issuer = Issuer::new();
    let newer = json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA", "use": "sig"});
    let curve = json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "big"});
    let nameless = json!({"kty": "AKP"});
    let set = json!({"keys": [newer, issuer.signer.jwk(), curve, nameless]}).to_string();
    assert_eq!(KeySet::from_jwks(&set).map(|keys| keys.skipped()), Ok(3));
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
