//! Identifiers that could belong to real people: what the lab refuses to take in, whatever the field.

mod digit;

use pim_core::problem::ProblemType;
use serde::{Deserialize, Deserializer};

use digit::with_ascii_digits;

/// A value could be the identifier of a real person.
pub const REAL_IDENTIFIER: ProblemType =
    ProblemType::new("real-identifier", 422, "A value could belong to a real person; only synthetic ones are taken");

/// The rule that free text must keep.
pub const RULE: &str = "must not hold a social security, taxpayer or provider number; those of real people are refused";

/// Ends every rule whose breach is a [`REAL_IDENTIFIER`].
pub const MARK: &str = "of real people are refused";

/// The check digit's prefix of a national provider identifier.
const NPI_PREFIX: &str = "80840";

/// A text whose rule is for what comes in. A row may be older than the rule of today: it stays readable, and can be corrected.
pub(crate) trait Kept: Sized {
    /// The text of a row, as it is.
    fn kept(text: String) -> Self;
}

/// Reads a column of a row, or what stands in one.
pub(crate) fn kept<'de, D: Deserializer<'de>, T: Kept>(row: D) -> Result<T, D::Error> {
    String::deserialize(row).map(T::kept)
}

/// The same of a column that may be empty.
pub(crate) fn kept_if_any<'de, D: Deserializer<'de>, T: Kept>(row: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<String>::deserialize(row)?.map(T::kept))
}

/// Most characters between two groups of one number: ` - `.
const GAP_MAX: usize = 3;

/// Digits, with what stands before them since those before, and all that follows.
struct Group<'a> {
    gap: &'a str,
    digits: &'a str,
    rest: &'a str,
}

/// Whether a text holds nine digits in the form of an SSN or ITIN, or ten that are a valid NPI.
#[must_use]
pub fn could_be_real(text: &str) -> bool {
    has_one(text, |_, _| true)
}

/// The same of a name that a program made: digits within a word of it are as they came.
#[must_use]
pub fn names_a_real_one(text: &str) -> bool {
    has_one(text, |first, last| {
        !first.gap.ends_with(char::is_alphanumeric) && !last.rest.starts_with(char::is_alphanumeric)
    })
}

/// Whether there is one whose first and last groups fit.
fn has_one(text: &str, fits: impl Fn(&Group<'_>, &Group<'_>) -> bool) -> bool {
    let text = with_ascii_digits(text);
    let groups = groups(&text);
    let is_whole = |group: &Group<'_>| group.digits.len() == 9 || is_npi(group.digits);
    groups.iter().any(|group| is_whole(group) && fits(group, group))
        || groups.windows(3).any(|three| is_in_three(three) && fits(&three[0], &three[2]))
}

fn groups(mut text: &str) -> Vec<Group<'_>> {
    let mut groups = Vec::new();
    while let Some(place) = text.find(|c: char| c.is_ascii_digit()) {
        let (gap, rest) = text.split_at(place);
        let (digits, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        groups.push(Group { gap, digits, rest });
        text = rest;
    }
    groups
}

/// Three, two and four digits that what stands between them makes one number. The values of a list are none, nor are a measure
/// and its year or its time of day.
fn is_in_three(groups: &[Group<'_>]) -> bool {
    let [a, b, c] = groups else { return false };
    let lengths = (a.digits.len(), b.digits.len(), c.digits.len());
    let is_close = join_without_spaces(b.gap, c.gap) || join_by_one(b.gap, c.gap) || are_bracketed(b.gap, c.gap);
    lengths == (3, 2, 4) && (join(b.gap, c.gap) || (is_close && !is_dated(b, c)))
}

/// `120/80/2026`, and `120/80(1430)` or `120/80-1430`.
fn is_dated(second: &Group<'_>, third: &Group<'_>) -> bool {
    let is_year = third.digits.starts_with("19") || third.digits.starts_with("20");
    let is_time = third.digits.split_at_checked(2).is_some_and(|(hour, minute)| hour < "24" && minute < "60");
    is_year || (is_time && second.gap == "/" && third.gap != "/")
}

/// Spaces and dashes make one number, dashes, dots and underscores do, and all of these that are twice the same.
fn join(first: &str, second: &str) -> bool {
    let both = |fits: fn(char) -> bool| is_of(first, fits) && is_of(second, fits);
    both(|c| is_space(c) || is_dash(c)) || both(is_mark) || (first == second && both(|c| is_space(c) || is_mark(c)))
}

/// So do slashes and brackets.
fn join_without_spaces(first: &str, second: &str) -> bool {
    let fits = |c| is_mark(c) || matches!(c, '/' | '\\' | '(' | ')' | '[' | ']' | '{' | '}');
    is_of(first, fits) && is_of(second, fits)
}

/// A sign that is no mark makes one number alone, and where it is twice the same.
fn join_by_one(first: &str, second: &str) -> bool {
    first == second && matches!(first, ":" | "*" | "|" | "+")
}

/// Brackets around each group do too: `) (`.
fn are_bracketed(first: &str, second: &str) -> bool {
    let between = |gap: &str| {
        let inner = gap.strip_prefix([')', ']', '}']).and_then(|rest| rest.strip_suffix(['(', '[', '{']));
        inner.is_some_and(|inner| is_of(inner, is_space))
    };
    between(first) && between(second)
}

fn is_of(gap: &str, fits: impl Fn(char) -> bool) -> bool {
    gap.chars().count() <= GAP_MAX && gap.chars().all(fits)
}

/// Of those within a line, also such as nobody sees.
fn is_space(c: char) -> bool {
    (c.is_whitespace() && !matches!(c, '\n' | '\r')) || matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}')
}

fn is_dash(c: char) -> bool {
    matches!(
        c,
        '-' | '\u{ad}' | '\u{2010}'..='\u{2015}' | '\u{2043}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}'
    )
}

fn is_mark(c: char) -> bool {
    is_dash(c) || matches!(c, '.' | '_' | '\u{ff0e}' | '\u{ff3f}')
}

fn is_npi(digits: &str) -> bool {
    digits.len() == 10 && digits.starts_with(['1', '2']) && luhn(NPI_PREFIX.chars().chain(digits.chars()))
}

fn luhn(digits: impl DoubleEndedIterator<Item = char>) -> bool {
    let value = |(place, digit): (usize, char)| {
        let digit = digit.to_digit(10).unwrap_or(0);
        if place % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
    };
    digits.rev().enumerate().map(value).sum::<u32>() % 10 == 0
}

#[cfg(test)]
mod tests {
    use super::{could_be_real, names_a_real_one};

    #[test]
    fn forms_of_real_identifiers_are_found_anywhere() {
        for text in ["123-45-6789", "ssn 123456789.", "x 912 78 1234", "7 123-45-6789", "npi:1234567893"] {
            assert!(could_be_real(text), "{text}");
        }
        for text in [
            "123.45.6789",
            "123\u{2013}45\u{2013}6789",
            "123 - 45 - 6789",
            "123-45 6789",
            "(123)/45)/6789",
            "a123_45_6789b",
            "123.45-6789",
            "123_45-6789",
            "123-45.6789",
            "123/45/6789",
            "123/45-6789",
            "[123][45][6789]",
            "123 . 45 . 6789",
            "123\u{ad}45\u{200b}6789",
            "123-45-2026",
            "123:45:6789",
            "123*45*6789",
            "123|45|6789",
            "123+45+6789",
            "(123) (45) (6789)",
            "[123] [45] [1430]",
            "123/45/1430",
            "123-45-1430",
            "\u{ff11}\u{ff12}\u{ff13}\u{ff0d}\u{ff14}\u{ff15}\u{ff0d}\u{ff16}\u{ff17}\u{ff18}\u{ff19}",
            "\u{ff11}\u{ff12}\u{ff13}\u{ff0e}\u{ff14}\u{ff15}\u{ff0f}\u{ff16}\u{ff17}\u{ff18}\u{ff19}",
            "\u{661}\u{662}\u{663}-\u{664}\u{665}-\u{666}\u{667}\u{668}\u{669}",
            "ssn \u{967}23\u{ff14}5678\u{1d7d7}.",
            "npi \u{ff11}234567893",
            "123\u{ff1a}45\u{ff1a}6789",
            "\u{ff3b}123\u{ff3d} \u{ff3b}45\u{ff3d} \u{ff3b}6789\u{ff3d}",
            "\u{16d71}\u{16132}3-45-6789",
        ] {
            assert!(could_be_real(text), "{text}");
        }
    }

    #[test]
    fn other_numbers_are_not_taken_for_them() {
        for text in ["", "202-555-0142", "2026-01-15 12:30", "120/80", "SYN-00000042", "1234567890", "1234567890123"] {
            assert!(!could_be_real(text), "{text}");
        }
        for text in [
            "120/80 2026-01-15",
            "120/80, 2026",
            "paid 120.50 2026-01-15",
            "15.01.2026",
            "Suite 120, 14 1234 Street",
            "120\n80\n2026",
            "glucose 110, 98, 1200",
            "ferritin 140; 45; 1200",
            "dose 500, 10, 1000 mg",
            "BP/HR/steps 120, 80, 4500",
            "120/80/2026",
            "120 / 80 / 2026",
            "120 / 80 / 4500",
            "110,98,1200",
            "120/80 4500",
            "BP 120/80(1430)",
            "BP 120\u{ff0f}80(1430)",
            "120/80-1345",
            "120:80:2026",
            "120 (80) 4500",
            "120 | 80 | 4500",
            "120 + 80 + 4500",
            "500 * 10 * 1000",
            "\u{661}\u{662}\u{660}/\u{668}\u{660} \u{662}\u{660}\u{662}\u{666}",
            "\u{ff11}\u{ff12}\u{ff10}\u{ff0f}\u{ff18}\u{ff10}",
        ] {
            assert!(!could_be_real(text), "{text}");
        }
    }

    #[test]
    fn a_program_s_name_has_digits_as_they_came() {
        for text in ["123-45-6789", "npi:1234567893", "u_123456789", "kc:123.45.6789", "912781234"] {
            assert!(names_a_real_one(text), "{text}");
        }
        for text in [
            "3f2a1bcd-0000-4000-8000-a123456789bc",
            "kc:3f2a1bcd-0000-4000-8000-a123456789bc",
            "auth0.5f7ca123456789c004bbafe8",
            "a123-45-6789",
            "u-77",
        ] {
            assert!(!names_a_real_one(text), "{text}");
        }
    }
}
