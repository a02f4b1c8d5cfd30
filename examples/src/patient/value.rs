//! The values of a patient's record. Each takes only what cannot be a real person's.
//!
//! No text of these is ever repeated in an error: the messages state the rule alone.
//! Telephone, mail and address of a row are read as they are: their rules are for what comes in.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! checked_text {
    ($(#[$meta:meta])* $name:ident, $rule:literal, $check:expr $(, unless $guard:path)?) => {
        #[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        $(#[$meta])*
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = &'static str;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                let check: fn(&str) -> bool = $check;
                $(if $guard(&text) {
                    return Err(crate::identifier::RULE);
                })?
                if check(&text) { Ok(Self(text)) } else { Err($rule) }
            }
        }

        impl crate::identifier::Kept for $name {
            fn kept(text: String) -> Self {
                Self(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[redacted]")
            }
        }

        impl $name {
            /// The text; personal, so it belongs in a row, an answer or an event's payload and nowhere else.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_text!(
    /// A given or family name.
    #[schema(example = "Ada")]
    PersonName,
    "must be a name of 1 to 80 letters, spaces, hyphens or apostrophes",
    |text| {
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        let fits = |c: char| c.is_alphabetic() || matches!(c, ' ' | '-' | '\'' | '.');
        letters > 0 && text.chars().count() <= 80 && text.trim() == text && text.chars().all(fits)
    }
);

checked_text!(
    /// A synthetic patient number: `SYN-` and eight digits. Nothing that could be a real identifier is taken.
    #[schema(example = "SYN-99000042")]
    SynNumber,
    "must be a synthetic number such as SYN-00000042; identifiers of real people are refused",
    |text| text.strip_prefix("SYN-").is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()))
);

/// Ten digits, and whatever is usual between them.
const TELEPHONE_LENGTH_MAX: usize = 32;

checked_text!(
    /// A telephone number of the range that is kept free for fiction: 555-0100 to 555-0199.
    #[schema(example = "202-555-0142")]
    Telephone,
    "must be a fictional number such as 202-555-0142; numbers of real people are refused",
    |text| {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        let punctuation = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ' ' | '(' | ')' | '+'));
        let digits = digits.strip_prefix('1').filter(|rest| rest.len() == 10).unwrap_or(&digits);
        text.len() <= TELEPHONE_LENGTH_MAX && punctuation && digits.len() == 10 && digits[3..].starts_with("55501")
    }
);

checked_text!(
    /// A mail address in a domain that is kept for examples (RFC 2606).
    #[schema(example = "ada@example.org")]
    Mail,
    "must be an address at example.org; addresses of real people are refused",
    |text| {
        let local = text.strip_suffix("@example.org").unwrap_or_default();
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
        (1..=64).contains(&local.len()) && local.bytes().all(fits)
    },
    unless crate::identifier::could_be_real
);

checked_text!(
    /// A date of birth, `YYYY-MM-DD`, from 1900 on.
    #[schema(example = "1980-02-29")]
    BirthDate,
    "must be a date such as 1980-02-29, from 1900 on",
    |text| text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok_and(|date| (1900..=2100).contains(&date.year()))
);

checked_text!(
    /// A street address in one line.
    #[schema(example = "12 Sample Street, Springfield")]
    Address,
    "must be an address of 1 to 200 printable characters",
    |text| !text.trim().is_empty() && text.chars().count() <= 200 && !text.chars().any(char::is_control),
    unless crate::identifier::could_be_real
);

/// Administrative sex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sex {
    /// Female.
    Female,
    /// Male.
    Male,
    /// Neither.
    Other,
    /// Not known.
    Unknown,
}
