//! The key by which a client says that a write is a retry.

use std::str::FromStr;

use http::{HeaderMap, HeaderName};

use crate::problem::{IDEMPOTENCY_KEY_INVALID, IDEMPOTENCY_KEY_MISSING, IntoProblem, Problem};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
const LENGTH_MAX: usize = 128;

/// The `Idempotency-Key` of a write: 1 to 128 visible ASCII characters. One that is empty names no write, and two different ones
/// would be taken for the same.
///
/// ```
/// use http::HeaderMap;
/// use pim_core::context::IdempotencyKey;
///
/// let mut headers = HeaderMap::new();
/// assert_eq!(IdempotencyKey::of(&headers).unwrap_err().kind().slug, "idempotency-key-missing");
/// headers.insert("idempotency-key", "".parse()?);
/// assert_eq!(IdempotencyKey::of(&headers).unwrap_err().kind().slug, "idempotency-key-invalid");
/// headers.insert("idempotency-key", "7f2c".parse()?);
/// assert_eq!(IdempotencyKey::of(&headers).unwrap().as_str(), "7f2c");
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// A text that is no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to {LENGTH_MAX} visible ASCII characters")]
pub struct ParseKeyError;

impl IdempotencyKey {
    /// That of a request, which stands there once.
    ///
    /// # Errors
    /// An `idempotency-key-missing` problem without one, an `idempotency-key-invalid` one when it does not fit or stands twice.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = headers.get_all(HEADER).iter();
        let value = values.next().ok_or_else(|| Problem::of(IDEMPOTENCY_KEY_MISSING))?;
        let text = value.to_str().map_err(|_| ParseKeyError.into_problem())?;
        if values.next().is_some() {
            return Err(ParseKeyError.into_problem());
        }
        text.parse().map_err(ParseKeyError::into_problem)
    }

    /// As it was sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=LENGTH_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseKeyError) }
    }
}

impl IntoProblem for ParseKeyError {
    fn into_problem(self) -> Problem {
        Problem::of(IDEMPOTENCY_KEY_INVALID).detail("1 to 128 visible ASCII characters")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug(values: &[&str]) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, value.parse().unwrap());
        }
        IdempotencyKey::of(&headers).map(|key| key.0).map_err(|problem| problem.kind().slug)
    }

    #[test]
    fn a_key_names_one_write() {
        let longest = "k".repeat(128);
        assert_eq!(slug(&["7f2c"]), Ok("7f2c".to_owned()));
        assert_eq!(slug(&[&longest]), Ok(longest.clone()));
        assert_eq!(slug(&[]), Err("idempotency-key-missing"));
        let too_long = format!("{longest}k");
        for wrong in [&[""][..], &["a b"], &["\t"], &["\u{e9}"], &[&too_long], &["a", "a"]] {
            assert_eq!(slug(wrong), Err("idempotency-key-invalid"), "{wrong:?}");
        }
    }
}
