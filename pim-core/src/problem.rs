//! RFC 9457 answers: one named type per cause, the request id as instance.

mod layer;

pub use layer::{ProblemLayer, WithProblems, response_of};

use std::borrow::Cow;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::context::RequestId;

/// One cause of failure that a caller can meet: slug, title and status. Declare each once, as a `const`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProblemType {
    /// Last part of the type URI, in kebab case; stable.
    pub slug: &'static str,
    /// One short sentence for people, the same each time.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
}

impl ProblemType {
    /// Declares a type.
    #[must_use]
    pub const fn new(slug: &'static str, status: u16, title: &'static str) -> Self {
        Self { slug, title, status }
    }

    /// The type URI.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("urn:pim:problem:{}", self.slug)
    }
}

/// What a caller may do at most: so many calls in each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Plain calls in a window.
    pub calls: u32,
    /// The window, in seconds, at least 1.
    pub window_secs: u64,
}

/// What few problems have.
#[derive(Clone, Copy, Debug, Default)]
struct Rare {
    quota: Option<Quota>,
    cause: Option<&'static str>,
}

/// A problem document under construction. It carries no personal data and no free text from a request.
///
/// ```
/// use pim_core::problem::{Problem, STALE_VERSION};
/// let problem = Problem::of(STALE_VERSION).with("current_version", 7);
/// assert_eq!(problem.status().as_u16(), 412);
/// ```
#[derive(Clone, Debug)]
pub struct Problem {
    kind: ProblemType,
    detail: Option<Cow<'static, str>>,
    retry_after_secs: Option<u32>,
    // Rare, and an error is moved often.
    rare: Option<Box<Rare>>,
    allow: Option<&'static str>,
    members: Map<String, Value>,
}

impl Problem {
    /// A problem of the given type.
    #[must_use]
    pub fn of(kind: ProblemType) -> Self {
        Self { kind, detail: None, retry_after_secs: None, rare: None, allow: None, members: Map::new() }
    }

    /// Adds a sentence about this occurrence: what was wrong and where, never the offending value.
    #[must_use]
    pub fn detail(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(text.into());
        self
    }

    /// Adds an extension member.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Tells the caller when to come back, in seconds.
    #[must_use]
    pub fn retry_after_secs(mut self, seconds: u64) -> Self {
        self.retry_after_secs = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        self
    }

    /// Tells the caller what it may do at most, in the `RateLimit` fields.
    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.rare.get_or_insert_default().quota = Some(quota);
        self
    }

    /// Says for those who operate what it came of, by a code of the program's own. The caller is not told: [`ProblemLayer`] logs it as
    /// `handler.failed`, once, with the request's id.
    #[must_use]
    pub fn because(mut self, code: &'static str) -> Self {
        self.rare.get_or_insert_default().cause = Some(code);
        self
    }

    /// What it came of, for the log alone.
    #[must_use]
    pub fn cause(&self) -> Option<&'static str> {
        self.rare.as_deref().and_then(|rare| rare.cause)
    }

    /// What the caller may do at most, when it has done more.
    #[must_use]
    pub fn exceeded(&self) -> Option<Quota> {
        self.rare.as_deref().and_then(|rare| rare.quota)
    }

    /// Names the methods that the resource does support.
    #[must_use]
    pub const fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// The methods that the resource does support, when that is the problem.
    #[must_use]
    pub const fn allowed(&self) -> Option<&'static str> {
        self.allow
    }

    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> ProblemType {
        self.kind
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The document, with `instance` naming the request.
    #[must_use]
    pub fn document(&self, request_id: RequestId) -> Value {
        let mut document = json!({
            "type": self.kind.uri(),
            "title": self.kind.title,
            "status": self.kind.status,
            "instance": format!("urn:uuid:{request_id}"),
            "request_id": request_id.to_string(),
        });
        if let Some(members) = document.as_object_mut() {
            if let Some(detail) = &self.detail {
                members.insert("detail".to_owned(), Value::from(detail.as_ref()));
            }
            for (name, value) in &self.members {
                members.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        document
    }

    /// Seconds after which a retry makes sense, if any.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after_secs.map(u64::from)
    }
}

/// An error that knows how it is answered at the edge.
pub trait IntoProblem {
    /// The public side of the error.
    fn into_problem(self) -> Problem;
}

impl IntoProblem for Problem {
    fn into_problem(self) -> Problem {
        self
    }
}

macro_rules! problem_types {
    ($($(#[$meta:meta])* $name:ident = $slug:literal, $status:literal, $title:literal;)+) => {
        $($(#[$meta])* pub const $name: ProblemType = ProblemType::new($slug, $status, $title);)+

        /// Every type that this crate declares.
        pub const PROBLEM_TYPES: &[ProblemType] = &[$($name),+];
    };
}

problem_types! {
    /// No or unusable credentials.
    UNAUTHENTICATED = "unauthenticated", 401, "Credentials are missing or not usable";
    /// The token is malformed.
    TOKEN_MALFORMED = "token-malformed", 401, "The token is malformed";
    /// The token's signature or key does not hold.
    TOKEN_UNTRUSTED = "token-untrusted", 401, "The token is not signed by a trusted key";
    /// The token is expired or not yet valid.
    TOKEN_EXPIRED = "token-expired", 401, "The token is outside its time of validity";
    /// The token is for another audience or issuer, or lacks a claim.
    TOKEN_CLAIMS = "token-claims", 401, "The token's claims do not fit this service";
    /// The policy has no grant.
    FORBIDDEN = "forbidden", 403, "The policy does not grant this action";
    /// Nothing is there, or nothing that the caller may know of.
    NOT_FOUND = "not-found", 404, "There is no such resource";
    /// The path knows other methods.
    METHOD_NOT_ALLOWED = "method-not-allowed", 405, "The resource does not support this method";
    /// The request is ambiguous or malformed at the protocol level.
    BAD_REQUEST = "bad-request", 400, "The request is malformed";
    /// The path has forbidden or non-canonical parts.
    BAD_PATH = "bad-path", 400, "The path is not in canonical form";
    /// The body is no JSON.
    MALFORMED_JSON = "malformed-json", 400, "The body is not well-formed JSON";
    /// The body is JSON but does not fit.
    INVALID_BODY = "invalid-body", 422, "The body does not fit what this operation takes";
    /// A query parameter does not fit.
    INVALID_QUERY = "invalid-query", 400, "A query parameter is not valid";
    /// The id is no id of this kind.
    INVALID_ID = "invalid-id", 400, "The id is not valid";
    /// The id names a bucket in which its record does not live.
    WRONG_BUCKET = "wrong-bucket", 404, "The id names a bucket in which it does not live";
    /// The page cursor was not issued here.
    INVALID_CURSOR = "invalid-cursor", 400, "The page cursor is not valid";
    /// The content type is not taken.
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type", 415, "The content type is not supported";
    /// The body is too large.
    BODY_TOO_LARGE = "body-too-large", 413, "The body is larger than allowed";
    /// Too many or too large headers.
    HEADERS_TOO_LARGE = "headers-too-large", 431, "The header fields are larger than allowed";
    /// A write came without its key.
    IDEMPOTENCY_KEY_MISSING = "idempotency-key-missing", 400, "A write needs an Idempotency-Key header";
    /// The key does not fit the form.
    IDEMPOTENCY_KEY_INVALID = "idempotency-key-invalid", 400, "The Idempotency-Key header is not valid";
    /// The first submission is still running.
    IDEMPOTENCY_CONFLICT = "idempotency-conflict", 409, "The same request is still being processed";
    /// The key was used with another body.
    IDEMPOTENCY_MISMATCH = "idempotency-mismatch", 422, "The Idempotency-Key was used with another body";
    /// The state machine does not allow it.
    ILLEGAL_TRANSITION = "illegal-transition", 409, "The record's state does not allow this transition";
    /// The record is there already.
    ALREADY_EXISTS = "already-exists", 409, "The record exists already";
    /// Somebody else was faster.
    CONFLICT = "conflict", 409, "The record was changed by somebody else at the same time";
    /// `If-Match` names an old version.
    STALE_VERSION = "stale-version", 412, "The record has a newer version";
    /// Over the rate.
    RATE_LIMITED = "rate-limited", 429, "Too many requests";
    /// Over capacity.
    OVERLOADED = "overloaded", 503, "The service is at capacity";
    /// A part that is needed does not answer.
    UNAVAILABLE = "unavailable", 503, "A part of the system is not available";
    /// No time is left.
    DEADLINE_EXCEEDED = "deadline-exceeded", 504, "The deadline has passed";
    /// The upstream answered with nonsense or not at all.
    BAD_GATEWAY = "bad-gateway", 502, "The upstream did not give a usable answer";
    /// A defect of ours.
    INTERNAL = "internal", 500, "Something went wrong on our side";
}
