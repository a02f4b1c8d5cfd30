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
    #[schema(value_type = String, example = "12.50")]
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
        let decimal: Decimal = text.parse().map_err(|_| RULE)?;
        let cents = decimal.checked_mul(Decimal::ONE_HUNDRED).filter(Decimal::is_integer).ok_or(RULE)?;
        i64::try_from(cents).ok().filter(|cents| (0..=CENTS_MAX).contains(cents)).map(Self).ok_or(RULE)
    }
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
