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

/// Whether a text holds nine digits in the form of an SSN or ITIN, or ten that are a valid NPI.
#[must_use]
pub fn could_be_real(text: &str) -> bool {
    let mut chain: Vec<String> = Vec::new();
    let mut group = String::new();
    let mut joined = false;
    // One more character at the end closes the last group.
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_digit() {
            if group.is_empty() && !joined {
                chain.clear();
            }
            group.push(c);
            continue;
        }
        let closed = !group.is_empty();
        if closed {
            chain.push(std::mem::take(&mut group));
            if ends_in_identifier(&chain) {
                return true;
            }
        }
        joined = closed && matches!(c, '-' | ' ');
    }
    false
}

fn ends_in_identifier(chain: &[String]) -> bool {
    if let [.., last] = chain
        && (last.len() == 9 || is_npi(last))
    {
        return true;
    }
    matches!(chain, [.., a, b, c] if (a.len(), b.len(), c.len()) == (3, 2, 4))
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
    }

    #[test]
    fn other_numbers_are_not_taken_for_them() {
        for text in ["", "202-555-0142", "2026-01-15 12:30", "120/80", "SYN-00000042", "1234567890", "1234567890123"] {
            assert!(!could_be_real(text), "{text}");
        }
    }
}
