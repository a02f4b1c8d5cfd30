//! Answers of handlers: JSON, with the version as `ETag` and the consistency token in a header.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ETAG, HeaderName};
use http::{HeaderValue, StatusCode};
use pim_core::problem::{self, Problem};
use pim_data::consistency::ConsistencyToken;
use pim_data::idempotency::StoredAnswer;
use pim_data::unit::{self, Written};
use serde::Serialize;
use serde_json::Value;

use super::Failure;

/// Carries the consistency token, both ways.
pub const CONSISTENCY_HEADER: HeaderName = HeaderName::from_static("x-pim-token");

/// What a handler answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    token: Option<ConsistencyToken>,
}

impl Answer {
    /// 200 with a body.
    ///
    /// # Errors
    /// [`Failure`] when the body is no JSON, which is a defect of ours.
    pub fn ok(body: &impl Serialize) -> Result<Self, Failure> {
        Self::of(StatusCode::OK, body)
    }

    /// 201 with a body.
    ///
    /// # Errors
    /// [`Failure`] when the body is no JSON, which is a defect of ours.
    pub fn created(body: &impl Serialize) -> Result<Self, Failure> {
        Self::of(StatusCode::CREATED, body)
    }

    fn of(status: StatusCode, body: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_value(body).map_err(|_| Problem::of(problem::INTERNAL))?;
        Ok(Self { status: status.as_u16(), body, token: None })
    }

    /// The answer to an equal submission, as it was kept.
    pub(crate) fn replayed(stored: StoredAnswer) -> Self {
        Self { status: stored.status, body: stored.body, token: Some(stored.token) }
    }
}

impl From<Answer> for unit::Answer {
    fn from(answer: Answer) -> Self {
        Self::new(answer.status, answer.body)
    }
}

impl From<Written> for Answer {
    fn from(written: Written) -> Self {
        Self { status: written.status, body: written.body, token: Some(written.token) }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let version = self.body.get("version").and_then(Value::as_u64);
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.body)).into_response();
        let tag = version.and_then(|version| HeaderValue::from_str(&format!("\"{version}\"")).ok());
        if let Some(tag) = tag {
            response.headers_mut().insert(ETAG, tag);
        }
        if let Some(token) = self.token.and_then(|token| HeaderValue::from_str(&token.to_string()).ok()) {
            response.headers_mut().insert(CONSISTENCY_HEADER, token);
        }
        response
    }
}
