//! Behind the layers there is an actor, a context and a permit, or there is no request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestContextLayer, RequestId, SessionError};
use pim_core::deadline::Deadline;
use pim_core::identity::{Actor, ActorVerifier};
use pim_core::problem::ProblemLayer;
use pim_core::rbac::{Permit, Policy, RbacLayer, Reach, Read, Required, Scope, Write};
use pim_core::shard::ShardId;
use pim_core::token::{KeyRing, TokenVerifier, VerifierSettings};
use serde_json::{Value, json};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use uuid::Uuid;

use crate::issuer::{AUDIENCE, ISSUER, Issuer, NOW, Source, clock, verifier, with};

pim_core::roles! { enum R { Reader = "reader", Keeper = "keeper", Guest = "guest" } }
pim_core::actions! { enum A { Look = "look": Read, Lend = "lend": Write } }
pim_core::resources! { enum T { Book = "book" } }

const FACILITY: Uuid = Uuid::from_u128(7);

type Inner = (Option<Actor>, Option<RequestContext>, Option<Permit<Read>>, Option<Permit<Write>>);

/// A service that takes everything.
type Inside = tower::util::ServiceFn<fn(Request<()>) -> std::future::Ready<Result<Response<Full<Bytes>>, Infallible>>>;

fn policy() -> Arc<Policy> {
    let builder = Policy::builder(9).permit(R::Keeper, A::Lend, T::Book, Reach::SameFacility);
    Arc::new(builder.permit(R::Reader, A::Look, T::Book, Reach::All).build().unwrap())
}

fn claims(role: &str, facilities: &[Uuid]) -> Value {
    let tctx = json!({"role": role, "facilities": facilities, "sid": Uuid::nil(), "policy_version": 9});
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "txn": "t", "iat": NOW, "exp": NOW + 60, "tctx": tctx})
}

fn txn(issuer: &Issuer, claims: &Value) -> String {
    issuer.token(&with(issuer.header(), "typ", json!("txntoken+jwt")), claims)
}

fn txn_verifier(source: &Source, clock: &Clock) -> TokenVerifier {
    let settings = VerifierSettings::transaction_token(ISSUER, AUDIENCE);
    TokenVerifier::new(settings, KeyRing::new(source.clone(), clock.clone()), clock.clone())
}

/// Status, slug and reason, or what the service saw.
async fn through(layer: RequestContextLayer, action: A, request: Request<()>) -> Result<Inner, (u16, String, String)> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Inner>(1);
    let seen = service_fn(move |request: Request<()>| {
        let extensions = request.extensions();
        let inner = (
            extensions.get().cloned(),
            extensions.get().cloned(),
            extensions.get().cloned(),
            extensions.get().cloned(),
        );
        sender.try_send(inner).unwrap();
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    });
    let app = ServiceBuilder::new()
        .layer(ProblemLayer)
        .layer(layer)
        .layer(RbacLayer::new(policy()).require(action, T::Book))
        .service(seen);
    let response = app.oneshot(request).await.unwrap();
    if let Ok(inner) = receiver.try_recv() {
        return Ok(inner);
    }
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let document: Value = serde_json::from_slice(&body).unwrap();
    let slug = document["type"].as_str().unwrap().trim_start_matches("urn:pim:problem:").to_owned();
    Err((status, slug, document["reason"].as_str().unwrap_or_default().to_owned()))
}

fn with_token(token: &str) -> Request<()> {
    Request::builder().uri("/books").header("txn-token", token).body(()).unwrap()
}

fn refused(status: u16, slug: &str, reason: &str) -> (u16, String, String) {
    (status, slug.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn refusals_by_cause_and_their_twins() {
    let (issuer, clock) = (Issuer::new(), clock());
    let source = Source::of(issuer.jwks());
    let layer = RequestContextLayer::new(ActorVerifier::new::<R>(txn_verifier(&source, &clock)));
    let at = |action, request| through(layer.clone(), action, request);
    let none = Request::builder().uri("/books").body(()).unwrap();
    assert_eq!(at(A::Look, none).await.unwrap_err(), refused(401, "unauthenticated", ""));
    assert_eq!(at(A::Look, with_token("x")).await.unwrap_err(), refused(401, "token-malformed", ""));
    let good = txn(&issuer, &claims("reader", &[]));
    let twice =
        Request::builder().uri("/books").header("txn-token", &good).header("txn-token", &good).body(()).unwrap();
    assert_eq!(at(A::Look, twice).await.unwrap_err(), refused(400, "bad-request", ""));
    let unknown = txn(&issuer, &claims("emperor", &[]));
    assert_eq!(at(A::Look, with_token(&unknown)).await.unwrap_err(), refused(401, "token-claims", ""));
    let bare = txn(&issuer, &with(claims("reader", &[]), "tctx", Value::Null));
    assert_eq!(at(A::Look, with_token(&bare)).await.unwrap_err(), refused(401, "token-claims", ""));
    let guest = txn(&issuer, &claims("guest", &[]));
    assert_eq!(at(A::Look, with_token(&guest)).await.unwrap_err(), refused(403, "forbidden", "no-grant"));
    assert_eq!(at(A::Lend, with_token(&good)).await.unwrap_err(), refused(403, "forbidden", "no-grant"));
    let idle = txn(&issuer, &claims("keeper", &[]));
    assert_eq!(at(A::Lend, with_token(&idle)).await.unwrap_err(), refused(403, "forbidden", "no-facility"));
    assert!(at(A::Look, with_token(&good)).await.is_ok());
    source.set(None);
    clock.advance(Duration::from_secs(3601));
    assert_eq!(at(A::Look, with_token(&good)).await.unwrap_err(), refused(503, "unavailable", ""));
}

#[tokio::test]
async fn what_the_service_finds() {
    let (issuer, clock) = (Issuer::new(), clock());
    let layer = RequestContextLayer::new(ActorVerifier::new::<R>(txn_verifier(&Source::of(issuer.jwks()), &clock)));
    let id = RequestId::mint();
    let mut request = with_token(&txn(&issuer, &claims("keeper", &[FACILITY])));
    request.extensions_mut().insert(id);
    let sooner = Deadline::after(Duration::from_secs(1));
    request.extensions_mut().insert(sooner);
    let (actor, cx, read, write) = through(layer.clone(), A::Lend, request).await.unwrap();
    let (actor, cx, write) = (actor.unwrap(), cx.unwrap(), write.unwrap());
    assert_eq!((cx.request_id(), cx.actor(), cx.deadline()), (id, &actor, sooner));
    assert_eq!((actor.subject().as_str(), actor.role().name()), ("u-1", "keeper"));
    assert_eq!(write.scope(), &Scope::Facilities([FACILITY].into()));
    assert_eq!((write.policy_version(), write.action().name(), write.covers(T::Book)), (9, "lend", true));
    assert_eq!(read.unwrap().scope(), write.scope(), "who may write may look");
    let reader = with_token(&txn(&issuer, &claims("reader", &[])));
    let (_, _, read, write) = through(layer, A::Look, reader).await.unwrap();
    assert!(read.is_some() && write.is_none(), "who may look may not write");
}

#[tokio::test]
async fn a_bearer_token_read_in_the_programs_own_way() {
    let issuer = Issuer::new();
    let verifier = ActorVerifier::reading(verifier(&Source::of(issuer.jwks()), &clock()), |token| {
        if token.text("scope") == Some("books") {
            Ok(Actor::new(token.subject.parse()?, R::Reader))
        } else {
            Err(SessionError::UnknownRole)
        }
    });
    let layer = RequestContextLayer::new(verifier).bearer();
    let bearer = |value: String| Request::builder().uri("/").header("authorization", value).body(()).unwrap();
    let scoped = issuer.token(&issuer.header(), &with(crate::issuer::claims(), "scope", json!("books")));
    assert!(through(layer.clone(), A::Look, bearer(format!("bearer {scoped}"))).await.is_ok());
    let plain = through(layer.clone(), A::Look, bearer(format!("Bearer {}", issuer.good()))).await;
    assert_eq!(plain.unwrap_err().1, "token-claims");
    let basic = through(layer.clone(), A::Look, bearer(format!("Basic {scoped}"))).await;
    assert_eq!(basic.unwrap_err().1, "unauthenticated");
    let header = through(layer, A::Look, with_token(&scoped)).await;
    assert_eq!(header.unwrap_err().1, "unauthenticated", "only where it belongs");
}

/// Guard: the details of a 401. Layers that are put together wrongly would refuse everybody without a word.
#[tokio::test]
async fn nobody_is_told_where_a_token_was_looked_for() {
    async fn detail<L>(layer: L) -> String
    where
        L: tower::Layer<
                Inside,
                Service: tower::Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible>,
            >,
        <L::Service as tower::Service<Request<()>>>::Future: Send + 'static,
    {
        let inner: Inside = service_fn(|_| std::future::ready(Ok(Response::new(Full::default()))));
        let app = ServiceBuilder::new().layer(ProblemLayer).layer(layer).service(inner);
        let response = app.oneshot(Request::builder().uri("/books").body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 401);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap();
        document["detail"].as_str().unwrap_or_default().to_owned()
    }
    let issuer = Issuer::new();
    let layer = RequestContextLayer::new(ActorVerifier::new::<R>(txn_verifier(&Source::of(issuer.jwks()), &clock())));
    assert_eq!(detail(layer.clone()).await, "there is no token in the header Txn-Token");
    assert_eq!(detail(layer.bearer()).await, "there is no Bearer token in the header Authorization");
    let rbac = RbacLayer::new(policy()).require(A::Look, T::Book);
    assert_eq!(detail(rbac).await, "nobody has verified a token before the policy was asked");
}

#[tokio::test]
async fn the_policy_alone_trusts_nobody() {
    let app = RbacLayer::new(policy()).require(A::Look, T::Book);
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let app = tower::Layer::layer(&app, inner);
    assert_eq!(app.clone().oneshot(with_token("x")).await.unwrap().status(), 401);
    let mut request = with_token("x");
    request.extensions_mut().insert(Actor::new("u-1".parse().unwrap(), R::Reader));
    assert_eq!(app.oneshot(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_nobody_decided_nobody_may() {
    let table = |head: &Parts| match (&head.method, head.uri.path()) {
        (&Method::GET, "/books") => Some(Required::new(A::Look, T::Book)),
        (&Method::POST, "/books") => Some(Required::new(A::Lend, T::Book)),
        _ => None,
    };
    let permits = service_fn(|request: Request<()>| async move {
        let (read, write) = (request.extensions().get::<Permit<Read>>(), request.extensions().get::<Permit<Write>>());
        let granted = write.map(Permit::action).or(read.map(Permit::action)).map_or("", |action| action.name());
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(granted)))
    });
    let app = ServiceBuilder::new().layer(ProblemLayer).layer(RbacLayer::new(policy()).require_by(table));
    let app = app.service(permits);
    let keeper = Actor::new("u-1".parse().unwrap(), R::Keeper).with_facilities(&[FACILITY]).unwrap();
    let reader = Actor::new("u-2".parse().unwrap(), R::Reader);
    let asked = async |actor: Option<&Actor>, method: Method, path: &str| {
        let mut request = Request::builder().method(method).uri(path).body(()).unwrap();
        if let Some(actor) = actor {
            request.extensions_mut().insert(actor.clone());
        }
        let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        (head.status.as_u16(), document["reason"].as_str().map_or(text, str::to_owned))
    };
    let is = |status: u16, said: &str| (status, said.to_owned());
    assert_eq!(asked(Some(&reader), Method::GET, "/books").await, is(200, "look"));
    assert_eq!(asked(Some(&keeper), Method::POST, "/books").await, is(200, "lend"));
    assert_eq!(asked(Some(&reader), Method::POST, "/books").await, is(403, "no-grant"));
    for actor in [&reader, &keeper] {
        assert_eq!(asked(Some(actor), Method::DELETE, "/books").await, is(403, "no-policy"));
        assert_eq!(asked(Some(actor), Method::GET, "/books/7").await, is(403, "no-policy"));
    }
    assert_eq!(asked(None, Method::GET, "/books/7").await.0, 401, "who it is comes first");
}

#[tokio::test]
async fn the_answer_says_for_whom_it_was_and_where() {
    let (issuer, clock) = (Issuer::new(), clock());
    let layer = RequestContextLayer::new(ActorVerifier::new::<R>(txn_verifier(&Source::of(issuer.jwks()), &clock)));
    // Whoever routes notes where the work went, on a context that has been changed since.
    let inner = service_fn(|request: Request<()>| async move {
        let cx = request.extensions().get::<RequestContext>().expect("the layer puts it there").clone();
        cx.with_causation(Uuid::nil()).went_to(ShardId(3));
        Ok::<_, Infallible>(Response::new(()))
    });
    let app = ServiceBuilder::new().layer(layer).layer(RbacLayer::new(policy()).require(A::Lend, T::Book));
    let app = app.service(inner);
    let whose = async |token: &str| {
        let answer = app.clone().oneshot(with_token(token)).await.unwrap();
        let extensions = answer.extensions();
        let subject = extensions.get::<Actor>().map(|actor| actor.subject().to_string());
        (subject, extensions.get::<ShardId>().copied())
    };
    let is = |subject: Option<&str>, shard| (subject.map(str::to_owned), shard);
    assert_eq!(whose(&txn(&issuer, &claims("keeper", &[FACILITY]))).await, is(Some("u-1"), Some(ShardId(3))));
    assert_eq!(whose(&txn(&issuer, &claims("reader", &[]))).await, is(Some("u-1"), None), "refusals too");
    assert_eq!(whose("x").await, is(None, None));
}
