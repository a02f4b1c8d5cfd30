//! Money: a decimal and its currency, never a float.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Currency {
    /// United States dollar.
    #[serde(rename = "USD")]
    Usd,
}

/// An amount of money, from zero to ten million, in whole cents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// The amount, as decimal text.
    #[schema(value_type = String, example = "12.50", pattern = "^[0-9]{1,8}(\\.[0-9]{1,2})?$")]
    value: Amount,
    /// Its currency.
    currency: Currency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
struct Amount(i64);

const CENTS_MAX: i64 = 1_000_000_000;

impl TryFrom<String> for Amount {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const RULE: &str = "must be an amount such as \"12.50\", from 0 to 10000000, with at most two decimals";
        if !is_plain(&text) {
            return Err(RULE);
        }
        let decimal: Decimal = text.parse().map_err(|_| RULE)?;
        let cents = decimal.checked_mul(Decimal::ONE_HUNDRED).filter(Decimal::is_integer).ok_or(RULE)?;
        i64::try_from(cents).ok().filter(|cents| (0..=CENTS_MAX).contains(cents)).map(Self).ok_or(RULE)
    }
}

/// One to eight digits, and one or two behind a point. A decimal takes other forms too, and rounds what it has no room for.
fn is_plain(text: &str) -> bool {
    let (whole, part) = text.split_once('.').map_or((text, None), |(whole, part)| (whole, Some(part)));
    let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits(whole, 8) && part.is_none_or(|part| digits(part, 2))
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        Decimal::new(amount.0, 2).to_string()
    }
}

impl Money {
    /// An amount in cents of the dollar.
    #[must_use]
    pub const fn usd_cents(cents: i64) -> Self {
        Self { value: Amount(cents), currency: Currency::Usd }
    }

    /// In hundredths of the currency.
    #[must_use]
    pub const fn cents(self) -> i64 {
        self.value.0
    }

    /// The currency.
    #[must_use]
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// The sum; `None` for another currency or above the bound.
    #[must_use]
    pub fn plus(self, other: Self) -> Option<Self> {
        let cents = self.value.0.checked_add(other.value.0).filter(|cents| *cents <= CENTS_MAX)?;
        (self.currency == other.currency).then_some(Self { value: Amount(cents), currency: self.currency })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_the_rule_says() {
        for (text, cents) in
            [("0", 0), ("0.0", 0), ("12.5", 1250), ("12.50", 1250), ("00000007.01", 701), ("10000000.00", CENTS_MAX)]
        {
            assert_eq!(Amount::try_from(text.to_owned()), Ok(Amount(cents)), "{text}");
        }
    }

    #[test]
    fn and_in_no_other_form() {
        for text in [
            "0.0099999999999999999999999999999",
            "1e2",
            "1_000",
            "1_0.00",
            "+1",
            "-1",
            "-0",
            ".5",
            "1.",
            "1.005",
            "1.000",
            "000000001",
            "10000000.01",
            "99999999",
            " 1",
            "1,00",
            "\u{ff11}",
            "",
            ".",
        ] {
            assert!(Amount::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for cents in [0, 1, 10, 12_000, CENTS_MAX - 1, CENTS_MAX] {
            let text = String::from(Amount(cents));
            assert_eq!(Amount::try_from(text.clone()), Ok(Amount(cents)), "{text}");
        }
    }
}
