//! Limit, deadline and sanitation as layers, each usable alone around any service.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response};
use pim_core::deadline::{DEADLINE_HEADER, Deadline, DeadlineLayer};
use pim_core::edge::HeaderSanitizeLayer;
use pim_core::problem::{Problem, Quota};
use pim_core::rate::{Charge, Limit, RateLimitLayer, RateTable};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

type Answer = Response<String>;

fn problem_of(answer: &Answer) -> (&'static str, Option<u64>) {
    let problem = answer.extensions().get::<Problem>().expect("a problem");
    (problem.kind().slug, problem.retry_after())
}

fn asking(caller: &str) -> Request<()> {
    Request::builder().header("from", caller).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn over_the_limit_is_refused_by_key_and_never_reaches_the_service() {
    let reached = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&reached);
    let service = service_fn(move |_: Request<()>| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Infallible>(Answer::default()) }
    });
    let by_sender = |head: &Parts| Some(Charge { key: head.headers.get("from")?.clone(), cost: 2 });
    let limit = Limit::new(1, Duration::from_secs(1), 4).unwrap();
    let mut limited = RateLimitLayer::new(RateTable::new(64), limit, by_sender).layer(service);
    for _ in 0..2 {
        assert!(limited.ready().await.unwrap().call(asking("a")).await.unwrap().status().is_success());
    }
    let refused = limited.ready().await.unwrap().call(asking("a")).await.unwrap();
    assert_eq!(problem_of(&refused), ("rate-limited", Some(2)), "two calls' worth at one a second");
    let told = refused.extensions().get::<Problem>().and_then(Problem::exceeded);
    assert_eq!(told, Some(Quota { calls: 4, window_secs: 4 }));
    assert!(limited.ready().await.unwrap().call(asking("b")).await.unwrap().status().is_success());
    // Without a key there is nobody to charge.
    let anonymous = Request::new(());
    assert!(limited.ready().await.unwrap().call(anonymous).await.unwrap().status().is_success());
    assert_eq!(reached.load(Ordering::SeqCst), 4);
}

/// Takes `work`, and answers with the milliseconds that it was given.
async fn timed(layer: DeadlineLayer, left: Option<&str>, work: Duration) -> Answer {
    let service = service_fn(move |request: Request<()>| async move {
        let given = *request.extensions().get::<Deadline>().expect("the layer puts it there");
        let millis = given.remaining().map_or(0, |left| left.as_millis());
        tokio::time::sleep(work).await;
        Ok::<_, Infallible>(Answer::new(millis.to_string()))
    });
    let mut request = Request::new(());
    if let Some(left) = left {
        request.headers_mut().insert(DEADLINE_HEADER, left.parse().unwrap());
    }
    layer.layer(service).oneshot(request).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_earlier_hop_may_shorten_the_time_and_never_lengthen_it() {
    let inside = DeadlineLayer::new(Duration::from_secs(5)).inside();
    assert_eq!(timed(inside, Some("700"), Duration::ZERO).await.into_body(), "700");
    assert_eq!(timed(inside, Some("900000"), Duration::ZERO).await.into_body(), "5000");
    for nothing in [None, Some("-1"), Some("soon")] {
        assert_eq!(timed(inside, nothing, Duration::ZERO).await.into_body(), "5000");
    }
    // Some requests have less than the others, and none has more.
    let budget_of = |head: &Parts| Some(Duration::from_secs(if head.headers.is_empty() { 2 } else { 900 }));
    assert_eq!(timed(inside.budget_of(budget_of), None, Duration::ZERO).await.into_body(), "2000");
    assert_eq!(timed(inside.budget_of(budget_of), Some("900000"), Duration::ZERO).await.into_body(), "5000");
    // At the edge nobody is an earlier hop.
    assert_eq!(timed(DeadlineLayer::new(Duration::from_secs(5)), Some("1"), Duration::ZERO).await.into_body(), "5000");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_answered_in_time_is_refused_by_name() {
    let inside = DeadlineLayer::new(Duration::from_secs(5)).inside().floor(Duration::from_millis(20));
    assert_eq!(problem_of(&timed(inside, Some("19"), Duration::ZERO).await).0, "deadline-exceeded");
    assert_eq!(problem_of(&timed(inside, Some("300"), Duration::from_millis(301)).await).0, "deadline-exceeded");
    assert_eq!(timed(inside, Some("300"), Duration::from_millis(299)).await.into_body(), "300");
}

#[tokio::test]
async fn only_listed_headers_reach_the_service() {
    let names = service_fn(|request: Request<()>| async move {
        let mut names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
        names.sort();
        Ok::<_, Infallible>(names.join(" "))
    });
    let request = || {
        let builder =
            Request::builder().header("accept", "*/*").header("authorization", "Bearer t").header("x-own", "1");
        builder.header("x-pim-n", "9").header("connection", "x-own").header("txn-token", "t").body(()).unwrap()
    };
    assert_eq!(HeaderSanitizeLayer::default().layer(names).oneshot(request()).await.unwrap(), "accept");
    let own = HeaderSanitizeLayer::allowing(&["x-own"]).unwrap();
    assert_eq!(own.layer(names).oneshot(request()).await.unwrap(), "x-own");
}
