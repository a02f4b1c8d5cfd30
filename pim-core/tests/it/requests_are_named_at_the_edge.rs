//! The edge mints the id of a request, the inside takes it over, and every answer names it.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use pim_core::context::{RequestId, TraceContext};
use pim_core::deadline::Deadline;
use pim_core::request_id::{REQUEST_ID_HEADER, RequestIdLayer, TRACEPARENT_HEADER, Trust};
use tower::{Layer as _, ServiceExt as _, service_fn};

const GIVEN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What the service saw, and what the answer said.
async fn seen(trust: Trust, id: &str, trace: &str) -> (RequestId, TraceContext, String) {
    let inner = service_fn(|request: Request<()>| async move {
        let id = *request.extensions().get::<RequestId>().unwrap();
        let trace = *request.extensions().get::<TraceContext>().unwrap();
        Ok::<_, Infallible>(Response::new((id, trace)))
    });
    let request = Request::builder().header(REQUEST_ID_HEADER, id).header(TRACEPARENT_HEADER, trace).body(()).unwrap();
    let response = RequestIdLayer::new(trust).layer(inner).oneshot(request).await.unwrap();
    let said = response.headers()[&REQUEST_ID_HEADER].to_str().unwrap().to_owned();
    let (id, trace) = response.into_body();
    (id, trace, said)
}

#[tokio::test]
async fn a_client_cannot_choose_its_id_or_trace() {
    let (id, trace, said) = seen(Trust::Edge, GIVEN, TRACE).await;
    assert_ne!(id.to_string(), GIVEN);
    assert_eq!((id.uuid().get_version_num(), said), (7, id.to_string()));
    assert_ne!(trace.trace_id(), TRACE.parse::<TraceContext>().unwrap().trace_id());
}

#[tokio::test]
async fn the_inside_takes_over_what_the_edge_said() {
    let (id, trace, said) = seen(Trust::Inside, GIVEN, TRACE).await;
    assert_eq!((id.to_string().as_str(), said.as_str()), (GIVEN, GIVEN));
    let parent: TraceContext = TRACE.parse().unwrap();
    assert_eq!(trace.trace_id(), parent.trace_id());
    assert_ne!(trace.span_id(), parent.span_id(), "a hop is a span of its own");
}

#[tokio::test]
async fn nonsense_is_replaced_inside() {
    let (id, _, _) = seen(Trust::Inside, "x", "x").await;
    assert_eq!(id.uuid().get_version_num(), 7);
}

#[test]
fn traces_are_read_strictly() {
    let bad = [
        "",
        "00",
        "00-0-0-0",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ];
    for text in bad {
        assert!(text.parse::<TraceContext>().is_err(), "{text}");
    }
    assert!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-later".parse::<TraceContext>().is_ok());
}

#[test]
fn no_budget_is_too_long_to_be_counted() {
    let day = Duration::from_secs(24 * 60 * 60);
    assert!(Deadline::after(Duration::MAX).remaining().unwrap() <= day);
    assert!(Deadline::after(day).capped(Duration::ZERO).remaining().is_none());
}
