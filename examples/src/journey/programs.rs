//! The other programs of the lab, and what they remember of a request: asked at once, for a short while, and named when silent.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_core::context::{RequestContext, RequestId, TXN_TOKEN_HEADER, TraceId};
use pim_core::request_id::{REQUEST_ID_HEADER, TRACEPARENT_HEADER};
use pim_telemetry::trace::SpanLine;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::rig::{SPANS_PATH, SPANS_PER_ANSWER_MAX};

/// How long a program may take to answer.
const PATIENCE: Duration = Duration::from_millis(800);

/// Whose spans.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sought {
    Request(RequestId),
    Trace(TraceId),
}

impl fmt::Display for Sought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(request) => write!(f, "request_id={request}"),
            Self::Trace(trace) => write!(f, "trace_id={trace}"),
        }
    }
}

/// Base URLs of the programs that keep spans of their own; one that is empty is not asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Programs {
    /// The gateway's internal listener.
    pub gateway: String,
    /// The session broker.
    pub session_broker: String,
    /// The patient service.
    pub patient_service: String,
    /// The encounter service.
    pub encounter_service: String,
    /// The billing service.
    pub billing_service: String,
    /// The outbox processor.
    pub outbox_processor: String,
    /// The projection worker.
    pub projection_worker: String,
    /// The persona simulator, when one runs.
    pub persona_simulator: String,
}

impl Default for Programs {
    fn default() -> Self {
        let local = |port: u16| format!("http://127.0.0.1:{port}");
        Self {
            gateway: local(crate::gateway::INTERNAL_PORT),
            session_broker: local(8081),
            patient_service: local(8082),
            encounter_service: local(8083),
            billing_service: local(8084),
            outbox_processor: local(8086),
            projection_worker: local(8087),
            persona_simulator: String::new(),
        }
    }
}

impl Programs {
    /// None: every part is in this process.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            gateway: String::new(),
            session_broker: String::new(),
            patient_service: String::new(),
            encounter_service: String::new(),
            billing_service: String::new(),
            outbox_processor: String::new(),
            projection_worker: String::new(),
            persona_simulator: String::new(),
        }
    }

    fn known(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("gateway", &self.gateway),
            ("session-broker", &self.session_broker),
            ("patient-service", &self.patient_service),
            ("encounter-service", &self.encounter_service),
            ("billing-service", &self.billing_service),
            ("outbox-processor", &self.outbox_processor),
            ("projection-worker", &self.projection_worker),
            ("persona-simulator", &self.persona_simulator),
        ];
        all.into_iter().filter(|(_, url)| !url.is_empty()).map(|(name, url)| (name, url.as_str()))
    }

    /// The spans that they remember, and the names of those that do not say.
    ///
    /// `session` is the session context of who asks: each program decides by its own policy whether to tell.
    pub(super) async fn spans_of(
        &self,
        client: &Client,
        cx: &RequestContext,
        session: &HeaderValue,
        sought: Sought,
    ) -> (Vec<SpanLine>, Vec<&'static str>) {
        let headers = headers(cx, session);
        let patience = cx.deadline().remaining().map_or(Duration::ZERO, |left| left.min(PATIENCE));
        let asked = self.known().map(|(name, url)| {
            let (url, headers) = (format!("{url}{SPANS_PATH}?{sought}"), headers.clone());
            async move {
                let answer = client.exchange(Method::GET, &url, headers, None, patience).await;
                let spans = answer.ok().filter(|(status, ..)| *status == StatusCode::OK);
                (name, spans.and_then(|(_, _, body)| serde_json::from_slice::<Vec<SpanLine>>(&body).ok()))
            }
        });
        let (mut spans, mut silent) = (Vec::new(), Vec::new());
        for (name, told) in join_all(asked).await {
            match told {
                Some(told) => spans.extend(told.into_iter().take(SPANS_PER_ANSWER_MAX)),
                None => silent.push(name),
            }
        }
        (spans, silent)
    }
}

fn headers(cx: &RequestContext, session: &HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([(TXN_TOKEN_HEADER, session.clone())]);
    let said = [(REQUEST_ID_HEADER, cx.request_id().to_string()), (TRACEPARENT_HEADER, cx.trace().to_string())];
    for (name, value) in said {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers
}
