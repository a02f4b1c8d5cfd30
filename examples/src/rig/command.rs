//! The body of a write: bounded, typed, with what makes a retry the same request.

use std::ops::Deref;

use axum::extract::{FromRequest, Request};
use http::header::{CONTENT_TYPE, HeaderMap, IF_MATCH};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pim_core::context::{IdempotencyKey, IdempotencyScope, RequestContext};
use pim_core::id::Id;
use pim_core::problem::{self, Problem};
use pim_core::rbac::{Permit, Write};
use pim_data::consistency::ConsistencyToken;
use pim_data::entity::Entity;
use pim_data::unit::Unit;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::caller::seen_by;
use super::{Caller, Failure};
use crate::identifier::{MARK, REAL_IDENTIFIER};

/// Largest body of a write, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The body of an operation that needs no more than its path; it may be left out.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// A write: who asks, what for, and under which idempotency key.
#[derive(Debug)]
pub struct Command<T> {
    /// The context, with the idempotency scope inside.
    pub cx: RequestContext,
    /// The body.
    pub body: T,
    /// What the caller has seen already, from `x-pim-token`.
    pub seen: ConsistencyToken,
}

/// A write about something that has a version, which may be conditional on it (RFC 9110, 13.1.1). Every other write refuses
/// `If-Match`: whoever sends it relies on it.
#[derive(Debug)]
pub struct Conditional<T> {
    command: Command<T>,
    /// The version that the caller has seen, from `If-Match`.
    if_match: Option<u64>,
}

impl<T> Deref for Conditional<T> {
    type Target = Command<T>;

    fn deref(&self) -> &Command<T> {
        &self.command
    }
}

impl<T> Conditional<T> {
    /// Loads what the write is about, in the version that the caller has seen.
    ///
    /// # Errors
    /// A `not-found` or `stale-version` problem, or what the unit fails with.
    pub async fn load<E: Entity>(
        &self,
        unit: &mut Unit,
        permit: &Permit<Write>,
        id: Id<E::Kind>,
    ) -> Result<E, Failure> {
        let found = unit.load::<E>(permit, id).await?;
        let row = found.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
        self.check_version(row.version())?;
        Ok(row)
    }

    /// Refuses the write when the caller has seen another version; of what is not there yet it is 0.
    ///
    /// # Errors
    /// A `stale-version` problem.
    pub fn check_version(&self, current: u64) -> Result<(), Failure> {
        match self.if_match {
            Some(seen) if seen != current => {
                Err(Problem::of(problem::STALE_VERSION).with("current_version", current).into())
            }
            _ => Ok(()),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Command<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Failure> {
        let refused = |headers: &HeaderMap| {
            let unused = || {
                Problem::of(problem::BAD_REQUEST)
                    .detail("If-Match is not taken here: nothing is changed that has a version")
            };
            if headers.contains_key(IF_MATCH) { Err(unused().into()) } else { Ok(()) }
        };
        Ok(read(request, refused).await?.0)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Conditional<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Failure> {
        let (command, if_match) = read(request, version_of).await?;
        Ok(Self { command, if_match })
    }
}

/// Reads a write, and what its headers say of a version.
async fn read<T: DeserializeOwned, V>(
    request: Request,
    version: impl FnOnce(&HeaderMap) -> Result<V, Failure>,
) -> Result<(Command<T>, V), Failure> {
    let caller = Caller::of(request.extensions())?;
    let (head, body) = request.into_parts();
    let key = IdempotencyKey::of(&head.headers)?;
    let version = version(&head.headers)?;
    let seen = seen_by(&head.headers)?.unwrap_or_default();
    let collected = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let bytes = collected.map_err(|error| {
        let is_too_large = error.downcast_ref::<LengthLimitError>().is_some();
        let kind = if is_too_large { problem::BODY_TOO_LARGE } else { problem::BAD_REQUEST };
        Problem::of(kind).with("bytes_max", BODY_BYTES_MAX)
    })?;
    let bytes = bytes.to_bytes();
    // No body at all is an empty one; what fields are missing is then said by name.
    let is_left_out = bytes.is_empty() && !head.headers.contains_key(CONTENT_TYPE);
    if !is_left_out {
        check_content_type(&head.headers)?;
    }
    let text: &[u8] = if is_left_out { b"{}" } else { &bytes };
    let value: Value = serde_json::from_slice(text).map_err(|error| {
        Problem::of(problem::MALFORMED_JSON).with("line", error.line()).with("column", error.column())
    })?;
    // Members sorted: two texts of one value are one submission.
    let canonical = value.to_string();
    let body = serde_json::from_value(value).map_err(|error| explained(&error))?;
    let principal = caller.cx.actor().subject().as_str();
    let scope =
        IdempotencyScope::new(principal, head.method.as_str(), head.uri.path(), key.as_str(), canonical.as_bytes());
    Ok((Command { cx: caller.cx.with_idempotency(scope), body, seen }, version))
}

fn version_of(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let version = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|text| text.parse().ok());
    match version {
        Some(version) => Ok(Some(version)),
        None => Err(Problem::of(problem::BAD_REQUEST).detail("If-Match takes one ETag such as \"3\"").into()),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Failure> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::of(problem::UNSUPPORTED_MEDIA_TYPE).detail("send application/json").into())
}

/// Says what does not fit, without repeating anything of the body: only names and rules that are ours.
fn explained(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    if text.starts_with("must ") && text.ends_with(MARK) {
        return Problem::of(REAL_IDENTIFIER).detail(text);
    }
    match rule_of(&text) {
        Some(rule) => Problem::of(problem::INVALID_BODY).detail(rule),
        None => Problem::of(problem::INVALID_BODY),
    }
}

/// The rule in a message of serde's, whose forms are those of `serde::de::Error`; nothing for another.
fn rule_of(text: &str) -> Option<String> {
    const QUOTING: [&str; 5] =
        ["invalid type: ", "invalid value: ", "invalid length ", "unknown field `", "unknown variant `"];
    if text.starts_with("missing field `") || text.starts_with("must ") {
        return Some(text.to_owned());
    }
    // Where nothing is expected, what is quoted is the last that is said.
    let expects_nothing = text.ends_with("`, there are no fields") || text.ends_with("`, there are no variants");
    if expects_nothing || !QUOTING.iter().any(|beginning| text.starts_with(beginning)) {
        return None;
    }
    // The last one: what stands before it quotes the body, which may hold the words too.
    text.rsplit_once(", expected ").map(|(_, expected)| format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pim_core::context::RequestId;
    use serde_json::json;

    use super::*;

    const SECRET: &str = "x`, expected 123-45-6789";

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct Members {
        name: Option<u8>,
        kind: Option<Kind>,
        three: Option<[u8; 3]>,
    }

    #[derive(Debug, Deserialize)]
    enum Kind {
        Known,
    }

    #[derive(Debug, Deserialize)]
    enum NoKind {}

    fn told<T: DeserializeOwned + std::fmt::Debug>(body: Value) -> String {
        serde_json::to_string(&explained(&serde_json::from_value::<T>(body).unwrap_err()).document(RequestId::mint()))
            .unwrap()
    }

    /// Guard: whatever the body, it is not repeated.
    #[test]
    fn nothing_of_a_body_is_repeated() {
        let member = BTreeMap::from([(SECRET, 1)]);
        for (told, rule) in [
            (told::<Nothing>(json!(member)), ""),
            (told::<NoKind>(json!(SECRET)), ""),
            (told::<Members>(json!(member)), "expected one of `name`, `kind`, `three`"),
            (told::<Members>(json!({"kind": SECRET})), "expected `Known`"),
            (told::<Members>(json!({"name": SECRET})), "expected u8"),
            (told::<Members>(json!({"name": 300})), "expected u8"),
            (told::<Members>(json!({"three": [1]})), "expected an array of length 3"),
            (told::<Members>(json!(SECRET)), "expected struct Members"),
        ] {
            assert!(told.contains(rule) && !told.contains("6789"), "{told}");
        }
    }
}
