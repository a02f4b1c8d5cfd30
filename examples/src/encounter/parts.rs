//! The bounded parts of an encounter.

use pim_core::clock::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::code::{DiagnosisCode, ProcedureCode};
use crate::identifier::{Kept, kept};

/// Most entries of each kind in one encounter.
pub const PARTS_MAX: usize = 100;
/// Longest note, in characters.
pub const NOTE_LENGTH_MAX: usize = 4000;
/// Most text in one encounter, in bytes: each change of the row is kept with all of it, and answered.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Diagnosis {
    /// ICD-10-CM.
    pub code: DiagnosisCode,
    /// When it was entered; ours, whatever a caller says.
    #[serde(default = "epoch")]
    #[schema(value_type = String, format = DateTime, read_only)]
    pub at: Timestamp,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Procedure {
    /// HCPCS level II.
    pub code: ProcedureCode,
    /// When it was entered.
    #[serde(default = "epoch")]
    #[schema(value_type = String, format = DateTime, read_only)]
    pub at: Timestamp,
}

/// What was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What kind.
    pub kind: OrderKind,
    /// HCPCS level II.
    pub code: ProcedureCode,
    /// When it was entered.
    #[serde(default = "epoch")]
    #[schema(value_type = String, format = DateTime, read_only)]
    pub at: Timestamp,
}

/// Kinds of orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// A laboratory test.
    Laboratory,
    /// An image.
    Imaging,
    /// A medication.
    Medication,
    /// A referral.
    Referral,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// What.
    pub kind: ObservationKind,
    /// The value, in the unit of its kind.
    pub value: i64,
    /// When it was entered.
    #[serde(default = "epoch")]
    #[schema(value_type = String, format = DateTime, read_only)]
    pub at: Timestamp,
}

/// Kinds of observations, each with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservationKind {
    /// Systolic blood pressure, mmHg.
    SystolicMmhg,
    /// Diastolic blood pressure, mmHg.
    DiastolicMmhg,
    /// Heart rate, beats a minute.
    HeartRatePerMinute,
    /// Body temperature, tenths of a degree Celsius.
    TemperatureDeciCelsius,
    /// Body weight, grams.
    WeightGrams,
    /// Blood glucose, mg/dL.
    GlucoseMgPerDl,
}

/// What was written down. Personal: it stays in the row.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The text.
    pub text: NoteText,
    /// When it was entered.
    #[serde(default = "epoch")]
    #[schema(value_type = String, format = DateTime, read_only)]
    pub at: Timestamp,
}

impl std::fmt::Debug for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Note").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Reads the notes of a row, whatever has become of the rule for their texts since.
pub(super) fn kept_notes<'de, D: Deserializer<'de>>(row: D) -> Result<Vec<Note>, D::Error> {
    #[derive(Deserialize)]
    struct KeptNote {
        #[serde(deserialize_with = "kept")]
        text: NoteText,
        #[serde(default = "epoch")]
        at: Timestamp,
    }
    let notes = Vec::<KeptNote>::deserialize(row)?;
    Ok(notes.into_iter().map(|KeptNote { text, at }| Note { text, at }).collect())
}

/// Text of a note.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(example = "Reports no pain.")]
pub struct NoteText(String);

impl std::fmt::Debug for NoteText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NoteText").finish_non_exhaustive()
    }
}

impl TryFrom<String> for NoteText {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if crate::identifier::could_be_real(&text) {
            return Err(crate::identifier::RULE);
        }
        // A server stores no U+0000, and nobody reads the others.
        let is_text = |c: char| !c.is_control() || matches!(c, '\r' | '\n' | '\t');
        if (1..=NOTE_LENGTH_MAX).contains(&text.chars().count()) && text.chars().all(is_text) {
            Ok(Self(text))
        } else {
            Err(
                "must be a text of 1 to 4000 characters, of which none but tabs and ends of lines are control characters",
            )
        }
    }
}

impl NoteText {
    /// The text; personal, so it belongs in a row or an answer and nowhere else.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Kept for NoteText {
    fn kept(text: String) -> Self {
        Self(text)
    }
}

impl From<NoteText> for String {
    fn from(text: NoteText) -> Self {
        text.0
    }
}

const fn epoch() -> Timestamp {
    Timestamp::from_micros(0)
}
