//! A request whose time is over, or whose caller has gone, is counted where it went and told with whom it was for.

use std::convert::Infallible;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestContextLayer, TXN_TOKEN_HEADER};
use pim_core::deadline::DeadlineLayer;
use pim_core::identity::ActorVerifier;
use pim_core::shard::ShardId;
use pim_core::token::{KeyRing, Signer, TokenVerifier, VerifierSettings};
use serde_json::json;
use tokio::time::timeout;
use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};

use crate::requests_are_observed_once::{World, world};

pim_core::roles! { enum R { Clerk = "clerk" } }

const SOON: Duration = Duration::from_millis(50);
const NEVER: Duration = Duration::from_secs(60);

/// A layer that knows one clerk, and the clerk's request.
fn door() -> (RequestContextLayer, Request<()>) {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
    let signer = Signer::es256(pkcs8.as_ref(), pair.public_key().as_ref()).unwrap();
    let keys = KeyRing::new(json!({"keys": [signer.jwk()]}).to_string(), Clock::system());
    let settings = VerifierSettings::transaction_token("urn:broker", "urn:shop");
    let layer = RequestContextLayer::new(ActorVerifier::new::<R>(TokenVerifier::new(settings, keys, Clock::system())));
    let now = Clock::system().now().as_micros() / 1_000_000;
    let session = json!({"role": "clerk", "sid": uuid::Uuid::nil(), "policy_version": 1});
    let claims = json!({"iss": "urn:broker", "aud": "urn:shop", "sub": "u-7", "txn": "t",
                        "iat": now, "exp": now + 60, "tctx": session});
    let token = signer.sign("txntoken+jwt", &claims).unwrap();
    (layer, Request::get("/stock").header(TXN_TOKEN_HEADER, token).body(()).unwrap())
}

/// Goes to shard 3 and stays there.
async fn stays(request: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    request.extensions().get::<RequestContext>().unwrap().went_to(ShardId(3));
    std::future::pending().await
}

fn assert_told(world: &World, outcome: &str) {
    let line = &world.told()[0];
    assert_eq!((&line["outcome"], &line["shard_id"]), (&outcome.into(), &3.into()), "{line}");
    assert_eq!((&line["user_id"], &line["role"]), (&"u-7".into(), &"clerk".into()), "{line}");
    let text = world.registry.encode();
    let counted = format!("shop_shard_requests_total{{shard=\"3\",outcome=\"{outcome}\"}} 1");
    assert!(text.contains(&counted), "no {counted} in {text}");
    assert!(text.contains("shop_shard_request_seconds_count{shard=\"3\"} 1"), "{text}");
}

#[tokio::test]
async fn when_time_is_over() {
    let (world, (door, request)) = (world(), door());
    let builder = ServiceBuilder::new().layer(world.layer.clone()).layer(DeadlineLayer::new(SOON)).layer(door);
    let response = builder.service(service_fn(stays)).oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 504);
    response.into_body().collect().await.unwrap();
    assert_told(&world, "failed");
}

#[tokio::test]
async fn when_the_caller_goes_away() {
    let (world, (door, request)) = (world(), door());
    let builder = ServiceBuilder::new().layer(world.layer.clone()).layer(DeadlineLayer::new(NEVER)).layer(door);
    let mut app = builder.service(service_fn(stays));
    let answer = app.ready().await.unwrap().call(request);
    assert!(timeout(SOON, answer).await.is_err());
    assert_told(&world, "cancelled");
}
