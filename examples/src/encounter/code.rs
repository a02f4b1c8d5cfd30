//! Codes of public-domain lists, by their form.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A diagnosis by ICD-10-CM, such as `E11.9`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(example = "E11.9")]
pub struct DiagnosisCode(String);

impl TryFrom<String> for DiagnosisCode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (category, rest) = text.split_once('.').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
        let category_fits = category.len() == 3
            && category.bytes().next().is_some_and(|b| b.is_ascii_uppercase())
            && category.bytes().skip(1).all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        let upper = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase();
        let rest_fits = rest.is_none_or(|rest| (1..=4).contains(&rest.len()) && rest.bytes().all(upper));
        if category_fits && rest_fits { Ok(Self(text)) } else { Err("must be an ICD-10-CM code such as E11.9") }
    }
}

/// A procedure or supply by HCPCS level II, such as `G0402`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(example = "G0402")]
pub struct ProcedureCode(String);

impl TryFrom<String> for ProcedureCode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = text.bytes();
        let letter = bytes.next().is_some_and(|b| b.is_ascii_uppercase());
        if letter && text.len() == 5 && bytes.all(|b| b.is_ascii_digit()) {
            Ok(Self(text))
        } else {
            Err("must be an HCPCS level II code such as G0402")
        }
    }
}

macro_rules! text_form {
    ($($name:ident),+) => {$(
        impl From<$name> for String {
            fn from(code: $name) -> Self {
                code.0
            }
        }

        impl $name {
            /// The code.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    )+};
}

text_form!(DiagnosisCode, ProcedureCode);
