//! Decimal digits of any script, as those of ASCII: whoever reads a number does not ask which it was typed in.

use std::borrow::Cow;

/// The zeros of Unicode 16 (general category Nd) beyond ASCII, in order; nine others follow each.
#[rustfmt::skip]
const ZEROS: [char; 75] = [
    '\u{660}', '\u{6f0}', '\u{7c0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}', '\u{be6}', '\u{c66}',
    '\u{ce6}', '\u{d66}', '\u{de6}', '\u{e50}', '\u{ed0}', '\u{f20}', '\u{1040}', '\u{1090}', '\u{17e0}', '\u{1810}',
    '\u{1946}', '\u{19d0}', '\u{1a80}', '\u{1a90}', '\u{1b50}', '\u{1bb0}', '\u{1c40}', '\u{1c50}', '\u{a620}',
    '\u{a8d0}', '\u{a900}', '\u{a9d0}', '\u{a9f0}', '\u{aa50}', '\u{abf0}', '\u{ff10}', '\u{104a0}', '\u{10d30}',
    '\u{10d40}', '\u{11066}', '\u{110f0}', '\u{11136}', '\u{111d0}', '\u{112f0}', '\u{11450}', '\u{114d0}', '\u{11650}',
    '\u{116c0}', '\u{116d0}', '\u{116da}', '\u{11730}', '\u{118e0}', '\u{11950}', '\u{11bf0}', '\u{11c50}', '\u{11d50}',
    '\u{11da0}', '\u{11f50}', '\u{16130}', '\u{16a60}', '\u{16ac0}', '\u{16b50}', '\u{16d70}', '\u{1ccf0}', '\u{1d7ce}', '\u{1d7d8}', '\u{1d7e2}',
    '\u{1d7ec}', '\u{1d7f6}', '\u{1e140}', '\u{1e2f0}', '\u{1e4f0}', '\u{1e5f1}', '\u{1e950}', '\u{1fbf0}',
];

/// What is as ASCII, only wider: U+FF01 to U+FF5E stand for U+0021 to U+007E.
const WIDE: std::ops::RangeInclusive<char> = '\u{ff01}'..='\u{ff5e}';

/// The text, its decimal digits those of ASCII, and the signs between them as well where they are wide.
pub(super) fn with_ascii_digits(text: &str) -> Cow<'_, str> {
    if text.is_ascii() { Cow::Borrowed(text) } else { text.chars().map(as_ascii).collect() }
}

/// The digit of the same value, or what it is.
fn as_ascii(c: char) -> char {
    if WIDE.contains(&c) {
        return char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c);
    }
    let up_to = ZEROS.partition_point(|zero| *zero <= c);
    let zero = up_to.checked_sub(1).map(|at| ZEROS[at]);
    let value = zero.map(|zero| u32::from(c) - u32::from(zero));
    value.and_then(|value| char::from_digit(value, 10)).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_each_script_have_their_value() {
        assert!(ZEROS.is_sorted());
        for zero in ZEROS {
            let ten: String = (0..10).filter_map(|value| char::from_u32(u32::from(zero) + value)).collect();
            assert!(ten.chars().all(char::is_numeric), "{ten}");
            assert_eq!(with_ascii_digits(&ten), "0123456789", "{ten}");
        }
    }

    #[test]
    fn everything_else_stays() {
        for text in ["", "12 a", "\u{e9}t\u{e9} \u{66a}\u{65f}", "\u{b2}\u{2460}\u{bd}", "\u{1fbef}\u{1fbfa}\u{10ffff}"]
        {
            assert_eq!(with_ascii_digits(text), text);
        }
    }
}
