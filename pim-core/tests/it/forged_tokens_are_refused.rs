//! Each way to forge or bend a token has its refusal, and what differs only in being right passes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use pim_core::problem::IntoProblem;
use pim_core::token::{TOKEN_BYTES_MAX, TokenError};
use serde_json::{Value, json};

use crate::issuer::{AUDIENCE, Issuer, NOW, Source, claims, clock, verifier, with};

const MALFORMED: &str = "token-malformed";
const UNTRUSTED: &str = "token-untrusted";
const EXPIRED: &str = "token-expired";
const CLAIMS: &str = "token-claims";

/// Checks each of `cases`: its name, its token, its error, and the slug of its problem.
async fn all_refused(issuer: &Issuer, cases: Vec<(&str, String, TokenError, &str)>) {
    let verifier = verifier(&Source::of(issuer.jwks()), &clock());
    assert!(verifier.verify(&issuer.good()).await.is_ok());
    for (name, token, error, slug) in cases {
        let found = verifier.verify(&token).await.expect_err(name);
        assert_eq!(found, error, "{name}");
        let problem = found.into_problem();
        assert_eq!(problem.kind().slug, slug, "{name}");
        assert_eq!(problem.status().as_u16(), 401, "{name}");
    }
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn by_algorithm_key_and_signature() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let kid = issuer.signer.key_id();
    let none = with(issuer.header(), "alg", json!("none"));
    let hmac = format!("{}.{}", encoded(&with(issuer.header(), "alg", json!("HS256"))), encoded(&claims()));
    let secret = EncodingKey::from_secret(&issuer.public);
    let mac = jsonwebtoken::crypto::sign(hmac.as_bytes(), &secret, Algorithm::HS256).unwrap();
    let other_claims = encoded(&with(claims(), "sub", json!("admin")));
    let good = issuer.good();
    let (head, rest) = good.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let foreign_kid = with(issuer.header(), "kid", json!(stranger.signer.key_id()));
    all_refused(
        &issuer,
        vec![
            (
                "none, unsigned",
                format!("{}.{}.", encoded(&none), encoded(&claims())),
                TokenError::Malformed("no canonical signature"),
                MALFORMED,
            ),
            ("none, signed", issuer.token(&none, &claims()), TokenError::UnknownKey, UNTRUSTED),
            ("HS256 with the public key as secret", format!("{hmac}.{mac}"), TokenError::UnknownKey, UNTRUSTED),
            (
                "RS256 over an EC key",
                issuer.token(&with(issuer.header(), "alg", json!("RS256")), &claims()),
                TokenError::UnknownKey,
                UNTRUSTED,
            ),
            (
                "a foreign key under our kid",
                stranger.token(&issuer.header(), &claims()),
                TokenError::Signature,
                UNTRUSTED,
            ),
            ("a foreign key under its own kid", stranger.good(), TokenError::UnknownKey, UNTRUSTED),
            ("our key under a foreign kid", issuer.token(&foreign_kid, &claims()), TokenError::UnknownKey, UNTRUSTED),
            ("changed claims", format!("{head}.{other_claims}.{signature}"), TokenError::Signature, UNTRUSTED),
            (
                "half a signature",
                format!("{head}.{}.{}", encoded(&claims()), URL_SAFE_NO_PAD.encode([7; 32])),
                TokenError::Signature,
                UNTRUSTED,
            ),
            (
                "a kid that is a path",
                issuer.token(&with(issuer.header(), "kid", json!("../../dev/null")), &claims()),
                TokenError::Header("a kid outside its form"),
                MALFORMED,
            ),
            (
                "a kid that is no text",
                issuer.token(&with(issuer.header(), "kid", json!([kid])), &claims()),
                TokenError::Header("no kid"),
                MALFORMED,
            ),
            (
                "no kid",
                issuer.token(&with(issuer.header(), "kid", Value::Null), &claims()),
                TokenError::Header("no kid"),
                MALFORMED,
            ),
            (
                "no alg",
                issuer.token(&with(issuer.header(), "alg", Value::Null), &claims()),
                TokenError::Header("no alg"),
                MALFORMED,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn by_form() {
    let issuer = Issuer::new();
    let good = issuer.good();
    let parts: Vec<_> = good.split('.').collect();
    let [header, body, signature] = parts[..] else { panic!("three parts") };
    let plain_header = issuer.header().to_string();
    let plain_claims = claims().to_string();
    let twice = plain_claims.replacen('{', r#"{"sub":"admin","#, 1);
    let twice_inside = plain_claims.replacen('{', r#"{"tctx":{"role":"patient","role":"admin"},"#, 1);
    let deep = (0..9).fold(json!(1), |inner, _| json!([inner]));
    let long = with(claims(), "pad", json!("x".repeat(TOKEN_BYTES_MAX)));
    // The last letter of 64 bytes carries four unused bits: another letter decodes to the same bytes in a lax decoder.
    let last = signature.chars().last().unwrap();
    let stray = char::from(u8::try_from(u32::from(last)).unwrap() + 1);
    let stray_bits = format!("{header}.{body}.{}{stray}", &signature[..signature.len() - 1]);
    let strict = TokenError::Malformed("no strict JSON object");
    let encoding = TokenError::Malformed("no canonical base64url");
    let signature_form = TokenError::Malformed("no canonical signature");
    let parts_form = TokenError::Malformed("not three parts");
    let cases = [
        ("empty", String::new(), parts_form),
        ("two parts", format!("{header}.{body}"), parts_form),
        ("four parts", format!("{good}.x"), parts_form),
        ("padding", format!("{header}=.{body}.{signature}"), encoding),
        ("the other alphabet", format!("{header}.{body}+/.{signature}"), encoding),
        ("white space", format!("{header}.{body}\n.{signature}"), encoding),
        ("stray bits in the signature", stray_bits, signature_form),
        ("a padded signature", format!("{good}="), signature_form),
        ("longer than 8 KiB", issuer.token(&issuer.header(), &long), TokenError::Malformed("longer than 8 KiB")),
        ("a member twice", issuer.raw(&plain_header, &twice), strict),
        ("a member twice, further inside", issuer.raw(&plain_header, &twice_inside), strict),
        (
            "a header member twice",
            issuer.raw(&plain_header.replacen('{', r#"{"alg":"none","#, 1), &plain_claims),
            strict,
        ),
        ("nesting", issuer.token(&issuer.header(), &with(claims(), "deep", deep)), strict),
        ("claims that are a list", issuer.raw(&plain_header, "[]"), strict),
        ("something after the claims", issuer.raw(&plain_header, &format!("{plain_claims} {{}}")), strict),
        ("no JSON", issuer.raw("{", &plain_claims), strict),
    ];
    all_refused(&issuer, cases.map(|(name, token, error)| (name, token, error, MALFORMED)).into()).await;
    // The twin of the nesting case.
    let shallow = (0..7).fold(json!(1), |inner, _| json!([inner]));
    let verifier = verifier(&Source::of(issuer.jwks()), &clock());
    let nested = issuer.token(&issuer.header(), &with(claims(), "deep", shallow));
    assert!(verifier.verify(&nested).await.is_ok());
}

#[tokio::test]
async fn by_header_members() {
    let issuer = Issuer::new();
    let key = issuer.signer.jwk().clone();
    let members = [
        ("crit", json!(["exp"])),
        ("jku", json!("https://evil.test/keys")),
        ("x5u", json!("https://evil.test/cert")),
        ("jwk", key),
        ("x5c", json!(["MII"])),
        ("x5t", json!("x")),
        ("x5t#S256", json!("x")),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
    ];
    let refused = members.map(|(member, value)| {
        let token = issuer.token(&with(issuer.header(), member, value), &claims());
        (member, token, TokenError::Header("a member that may not be there"), MALFORMED)
    });
    all_refused(&issuer, refused.into()).await;
    let types = [json!("JWT"), json!("txntoken+jwt"), json!(7), Value::Null].map(|typ| {
        let token = issuer.token(&with(issuer.header(), "typ", typ), &claims());
        ("typ", token, TokenError::Header("another typ"), MALFORMED)
    });
    all_refused(&issuer, types.into()).await;
    // A member that nobody gives a meaning is harmless.
    let verifier = verifier(&Source::of(issuer.jwks()), &clock());
    let token = issuer.token(&with(issuer.header(), "note", json!("x")), &claims());
    assert!(verifier.verify(&token).await.is_ok());
}

#[tokio::test]
async fn by_claims() {
    let issuer = Issuer::new();
    let wrong = [
        ("iss", json!("https://other.test")),
        ("iss", Value::Null),
        ("iss", json!([AUDIENCE])),
        ("aud", json!("urn:other")),
        ("aud", json!(["urn:other"])),
        ("aud", json!([])),
        ("aud", Value::Null),
        ("sub", Value::Null),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("jti", Value::Null),
        ("exp", Value::Null),
        ("exp", json!("tomorrow")),
        ("exp", json!(1.8e9)),
        ("iat", Value::Null),
        ("nbf", json!("now")),
    ];
    let cases = wrong.map(|(claim, value)| {
        let token = issuer.token(&issuer.header(), &with(claims(), claim, value));
        (claim, token, TokenError::Claim(claim), CLAIMS)
    });
    all_refused(&issuer, cases.into()).await;
    let verifier = verifier(&Source::of(issuer.jwks()), &clock());
    let several = with(claims(), "aud", json!(["urn:other", AUDIENCE]));
    assert!(verifier.verify(&issuer.token(&issuer.header(), &several)).await.is_ok());
}

#[tokio::test]
async fn by_time() {
    let issuer = Issuer::new();
    let lived = |from: i64, to: i64| with(with(claims(), "iat", json!(from)), "exp", json!(to));
    let not_before = |at: i64| with(claims(), "nbf", json!(at));
    let cases = [
        ("expired beyond the skew", lived(NOW - 300, NOW - 30), "expired"),
        ("issued beyond the skew", lived(NOW + 31, NOW + 60), "issued in the future"),
        ("longer than 15 minutes", lived(NOW, NOW + 901), "valid for too long"),
        ("ends before it begins", lived(NOW + 10, NOW + 5), "valid for too long"),
        ("far beyond any number", lived(i64::MIN, i64::MAX), "valid for too long"),
        ("not valid yet", not_before(NOW + 31), "not valid yet"),
    ];
    let refused = cases
        .map(|(name, claims, why)| (name, issuer.token(&issuer.header(), &claims), TokenError::Time(why), EXPIRED));
    all_refused(&issuer, refused.into()).await;
    let verifier = verifier(&Source::of(issuer.jwks()), &clock());
    for twin in [lived(NOW - 300, NOW - 29), lived(NOW + 30, NOW + 60), lived(NOW, NOW + 900), not_before(NOW + 30)] {
        assert!(verifier.verify(&issuer.token(&issuer.header(), &twin)).await.is_ok(), "{twin}");
    }
}

#[tokio::test]
async fn a_cached_token_still_ends() {
    let issuer = Issuer::new();
    let clock = clock();
    let verifier = verifier(&Source::of(issuer.jwks()), &clock);
    let token = issuer.good();
    assert!(verifier.verify(&token).await.is_ok());
    clock.advance(Duration::from_secs(329));
    assert!(verifier.verify(&token).await.is_ok());
    clock.advance(Duration::from_secs(1));
    assert_eq!(verifier.verify(&token).await.unwrap_err(), TokenError::Time("expired"));
}
