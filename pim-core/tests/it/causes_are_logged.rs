//! What a failed answer came of stands in the log, once, and nowhere else.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use pim_core::context::RequestId;
use pim_core::log::Admitted;
use pim_core::log::tracing::field::{Field, Visit};
use pim_core::log::tracing::span::{Attributes, Id, Record};
use pim_core::log::tracing::subscriber::set_default;
use pim_core::log::tracing::{Event, Level, Metadata, Subscriber};
use pim_core::problem::{INTERNAL, Problem, ProblemLayer, response_of};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// Keeps the lines that our macros make.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if let Some(shown) = Admitted::behind(value) {
            self.0.push_str(&format!(" {}={shown}", field.name()));
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What the caller gets, and what is logged.
async fn told(problem: Problem) -> (RequestId, String, Vec<String>) {
    let (id, lines) = (RequestId::mint(), Lines::default());
    let _here = set_default(lines.clone());
    let mut request = Request::new(());
    request.extensions_mut().insert(id);
    let service = service_fn(move |_: Request<()>| {
        let response: Response<Full<Bytes>> = response_of(problem.clone());
        async { Ok::<_, Infallible>(response) }
    });
    // One around the other, as where a router stands in front of another.
    let answer = ProblemLayer.layer(ProblemLayer.layer(service)).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 500);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let lines = lines.0.lock().unwrap().clone();
    (id, String::from_utf8(body.to_vec()).unwrap(), lines)
}

/// Guard: the line in `rendered`. Without it nobody learns what a 500 came of.
#[tokio::test]
async fn the_cause_is_logged_with_the_request_and_not_told() {
    let (id, body, lines) = told(Problem::of(INTERNAL).because("unit.no_event")).await;
    assert_eq!(lines, [format!(" event=handler.failed request_id={id} code=unit.no_event")]);
    assert!(!body.contains("no_event"), "{body}");
    let (_, _, lines) = told(Problem::of(INTERNAL)).await;
    assert_eq!(lines, [""; 0]);
}
