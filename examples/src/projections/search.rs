//! Finding patients: by the beginning of a name, date of birth and facility.

use async_trait::async_trait;
use jiff::civil::Date;
use pim_data::backend::{SqlPair, Statement};
use pim_data::scope::ScopedTable;
use pim_events::{ApplyError, DomainEvent as _, Event, Projection, ReadTable, ReadTx};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::sight::{QueryError, Sight};
use crate::patient::{PatientCorrected, PatientRegistered};

/// Folds names and dates of birth. Names are kept as written, and folded to lower case for the index.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search;

/// Most words of a name; each is two ranges more.
const WORDS_MAX: usize = 4;

const COLUMNS: &[&str] = &[
    "patient_id",
    "facility_id",
    "given_name",
    "family_name",
    "given_fold",
    "family_fold",
    "birth_date",
    "syn_number",
];

#[async_trait]
impl Projection for Search {
    fn name(&self) -> &'static str {
        "patient_search"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE patient_search (
                patient_id uuid PRIMARY KEY, facility_id uuid NOT NULL, given_name text NOT NULL, family_name text NOT NULL,
                given_fold text COLLATE \"C\" NOT NULL, family_fold text COLLATE \"C\" NOT NULL,
                birth_date text COLLATE \"C\" NOT NULL, syn_number text NOT NULL
            );
            CREATE INDEX patient_search_family ON patient_search (family_fold, patient_id);
            CREATE INDEX patient_search_given ON patient_search (given_fold, patient_id);
            CREATE INDEX patient_search_birth ON patient_search (birth_date, patient_id);
            CREATE INDEX patient_search_facility ON patient_search (facility_id, patient_id);",
            "CREATE TABLE patient_search (
                patient_id BLOB PRIMARY KEY, facility_id BLOB NOT NULL, given_name TEXT NOT NULL, family_name TEXT NOT NULL,
                given_fold TEXT NOT NULL, family_fold TEXT NOT NULL, birth_date TEXT NOT NULL, syn_number TEXT NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX patient_search_family ON patient_search (family_fold, patient_id);
            CREATE INDEX patient_search_given ON patient_search (given_fold, patient_id);
            CREATE INDEX patient_search_birth ON patient_search (birth_date, patient_id);
            CREATE INDEX patient_search_facility ON patient_search (facility_id, patient_id);",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "patient_search", columns: COLUMNS }]
    }

    fn scopes(&self) -> &'static [ScopedTable] {
        &[ScopedTable { name: "patient_search", home: Some("patient_id"), facility: Some("facility_id") }]
    }

    fn handles(&self, event_type: &str) -> bool {
        [PatientRegistered::TYPE, PatientCorrected::TYPE].contains(&event_type)
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let mut statements = Vec::with_capacity(batch.len());
        for event in batch {
            statements.extend(statement_of(event)?);
        }
        tx.hop(&statements).await?;
        Ok(())
    }
}

fn statement_of(event: &Event) -> Result<Option<Statement>, ApplyError> {
    if event.is::<PatientRegistered>() {
        let told: PatientRegistered = event.decode()?;
        let (given, family) = (told.given_name.as_str(), told.family_name.as_str());
        let insert = Statement::same("INSERT INTO patient_search VALUES (?, ?, ?, ?, ?, ?, ?, ?)").bind(event.home);
        let insert = insert.bind(told.facility_id.uuid()).bind(given).bind(family);
        let insert = insert.bind(given.to_lowercase()).bind(family.to_lowercase());
        return Ok(Some(insert.bind(told.birth_date.as_str()).bind(told.syn_number.as_str())));
    }
    if event.is::<PatientCorrected>() {
        let told: PatientCorrected = event.decode()?;
        let (given, family) = (told.given_name.as_str(), told.family_name.as_str());
        let update = "UPDATE patient_search SET facility_id = ?, given_name = ?, family_name = ?, given_fold = ?, \
                      family_fold = ?, birth_date = ? WHERE patient_id = ?";
        let update = Statement::same(update).bind(told.facility_id.uuid()).bind(given).bind(family);
        let update = update.bind(given.to_lowercase()).bind(family.to_lowercase());
        return Ok(Some(update.bind(told.birth_date.as_str()).bind(event.home)));
    }
    Ok(None)
}

/// What is looked for; all that is given must fit.
#[derive(Clone, Debug, Default)]
pub struct SearchQuery {
    /// Words, each the beginning of a given or family name.
    pub words: Vec<String>,
    /// Date of birth.
    pub birth_date: Option<Date>,
    /// Facility.
    pub facility: Option<Uuid>,
    /// Begin behind this patient.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: u32,
}

/// The words of a name; none when nothing can be looked for by it: without a word everybody fits, and no name has a control
/// character, which a server would refuse.
#[must_use]
pub(super) fn words_of(name: &str) -> Option<Vec<String>> {
    let words: Vec<String> = name.split_whitespace().map(str::to_owned).collect();
    let is_usable = (1..=WORDS_MAX).contains(&words.len()) && !name.contains(char::is_control);
    is_usable.then_some(words)
}

/// A patient who was found.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Found {
    /// Who.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// Where.
    #[schema(value_type = String, format = "uuid")]
    pub facility_id: Uuid,
    /// Given name.
    pub given_name: String,
    /// Family name.
    pub family_name: String,
    /// Date of birth.
    pub birth_date: String,
    /// Synthetic number.
    pub syn_number: String,
}

/// Patients who fit, within the scope, by id.
///
/// # Errors
/// [`QueryError`].
pub async fn search(sight: &Sight<'_>, query: &SearchQuery) -> Result<Vec<Found>, QueryError> {
    let mut text = String::from(
        "SELECT patient_id, facility_id, given_name, family_name, birth_date, syn_number FROM patient_search \
         WHERE patient_id > ?",
    );
    let mut binds = vec![query.after.unwrap_or(Uuid::nil()).into()];
    for word in &query.words {
        let (from, to) = (word.to_lowercase(), format!("{}\u{10ffff}", word.to_lowercase()));
        text.push_str(" AND ((family_fold >= ? AND family_fold < ?) OR (given_fold >= ? AND given_fold < ?))");
        binds.extend([from.clone().into(), to.clone().into(), from.into(), to.into()]);
    }
    if let Some(date) = query.birth_date {
        text.push_str(" AND birth_date = ?");
        binds.push(date.to_string().into());
    }
    if let Some(facility) = query.facility {
        text.push_str(" AND facility_id = ?");
        binds.push(facility.into());
    }
    text.push_str(&format!(" ORDER BY patient_id LIMIT {}", query.limit));
    let select = Statement::of(SqlPair::generated(text)).bind_all(binds);
    let found = |row: &pim_data::backend::Row| {
        Ok(Found {
            id: row.uuid(0)?,
            facility_id: row.uuid(1)?,
            given_name: row.text(2)?.to_owned(),
            family_name: row.text(3)?.to_owned(),
            birth_date: row.text(4)?.to_owned(),
            syn_number: row.text(5)?.to_owned(),
        })
    };
    sight.query(&Search, select).await?.iter().map(found).collect()
}
