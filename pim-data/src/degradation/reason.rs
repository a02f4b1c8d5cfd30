//! Why an operator does something, as one word.

use std::fmt;
use std::str::FromStr;

/// Longest reason.
const LENGTH_MAX: usize = 64;

/// Why somebody degrades a shard: one word, such as `standby-lost` or the number of a ticket. It is told and kept where no
/// free text may be.
///
/// ```
/// use pim_data::degradation::Reason;
///
/// let reason: Reason = "OPS-4711".parse()?;
/// assert_eq!(reason.as_str(), "OPS-4711");
/// assert!("Mr Quillfeather asked for it".parse::<Reason>().is_err());
/// # Ok::<(), pim_data::degradation::ReasonError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

/// A text that is no reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a reason is one word of at most {LENGTH_MAX} of `A-Z a-z 0-9 . _ -`, such as standby-lost or a ticket's number"
)]
pub struct ReasonError;

impl Reason {
    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reason {
    type Err = ReasonError;

    fn from_str(text: &str) -> Result<Self, ReasonError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_word = !text.is_empty() && text.len() <= LENGTH_MAX && text.bytes().all(is_plain);
        if is_word { Ok(Self(text.to_owned())) } else { Err(ReasonError) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
