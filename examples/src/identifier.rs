//! Identifiers that could belong to real people: what the lab refuses to take in, whatever the field.

use pim_core::problem::ProblemType;

/// A value could be the identifier of a real person.
pub const REAL_IDENTIFIER: ProblemType =
    ProblemType::new("real-identifier", 422, "A value could belong to a real person; only synthetic ones are taken");

/// The rule that free text must keep.
pub const RULE: &str = "must not hold a social security, taxpayer or provider number; those of real people are refused";

/// Ends every rule whose breach is a [`REAL_IDENTIFIER`].
pub const MARK: &str = "of real people are refused";

/// The check digit's prefix of a national provider identifier.
const NPI_PREFIX: &str = "80840";

/// Most characters between two groups of one number: ` - `.
const GAP_MAX: usize = 3;

/// Digits, and what stands between them and those before.
struct Group<'a> {
    gap: &'a str,
    digits: &'a str,
}

/// Whether a text holds nine digits in the form of an SSN or ITIN, or ten that are a valid NPI.
#[must_use]
pub fn could_be_real(text: &str) -> bool {
    let groups = groups(text);
    groups.iter().any(|group| group.digits.len() == 9 || is_npi(group.digits)) || groups.windows(3).any(is_in_three)
}

fn groups(mut text: &str) -> Vec<Group<'_>> {
    let mut groups = Vec::new();
    while let Some(place) = text.find(|c: char| c.is_ascii_digit()) {
        let (gap, rest) = text.split_at(place);
        let (digits, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        groups.push(Group { gap, digits });
        text = rest;
    }
    groups
}

/// Three, two and four digits that whatever stands between them makes one number. It does where it is twice the same; of a
/// measure, a date and a sum that stand side by side it is not.
fn is_in_three(groups: &[Group<'_>]) -> bool {
    let [a, b, c] = groups else { return false };
    let lengths = (a.digits.len(), b.digits.len(), c.digits.len());
    let is_alike = b.gap == c.gap || (is_plain(b.gap) && is_plain(c.gap));
    lengths == (3, 2, 4) && is_alike && joins(b.gap) && joins(c.gap)
}

fn joins(gap: &str) -> bool {
    gap.chars().count() <= GAP_MAX && !gap.chars().any(|c| c.is_alphanumeric() || matches!(c, '\n' | '\r'))
}

/// Spaces and dashes of any kind.
fn is_plain(gap: &str) -> bool {
    gap.chars().all(|c| c.is_whitespace() || matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}'))
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
    use super::could_be_real;

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
        ] {
            assert!(!could_be_real(text), "{text}");
        }
    }
}
