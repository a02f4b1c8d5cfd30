//! The routes that are answered from read models.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use pim_core::problem::{self, Problem};
use pim_core::rbac::Read;
use pim_events::ReadStore;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::revenue::{RevenueLine, revenue};
use super::search::{Found, SearchQuery, search, words_of};
use super::sight::Sight;
use super::summary::{Summary, summary};
use super::timeline::{TimelineEntry, timeline};
use crate::ids::{FacilityId, PatientId};
use crate::rig::{Answer, Asked, Caller, Endpoints, Failure, May, Operation, PageQuery, PathId, page_of};
use crate::workers::Stores;

/// Search and summary, for the patient service.
pub fn patient_endpoints() -> Endpoints<Stores> {
    Endpoints::new().serve(Operation::list::<Found>("/v1/patients", "Searches patients"), find).serve(
        Operation::get::<Summary>("/v1/patients/{patient_id}/summary", "Sums up what is known of a patient"),
        show_summary,
    )
}

/// The timeline, for the encounter service.
pub fn encounter_endpoints() -> Endpoints<Stores> {
    let what = "Tells what happened to a patient, in order";
    let timeline = Operation::list::<TimelineEntry>("/v1/patients/{patient_id}/timeline", what);
    Endpoints::new().serve(timeline, show_timeline)
}

/// Revenue, for the billing service.
pub fn billing_endpoints() -> Endpoints<Stores> {
    let revenue = Operation::get::<RevenueOf>("/v1/revenue", "Sums up revenue by facility and day");
    Endpoints::new().serve(revenue, show_revenue)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Find {
    /// One to four words, each the beginning of a given or family name
    name: Option<String>,
    /// A date such as 1980-02-29
    birth_date: Option<String>,
    /// The id of a facility
    #[param(value_type = Option<String>, format = "uuid")]
    facility: Option<FacilityId>,
    /// How many items, 1 to 200
    limit: Option<u32>,
    /// The next_cursor of the page before
    cursor: Option<String>,
}

async fn find(
    State(store): State<ReadStore>,
    May(permit): May<Read>,
    caller: Caller,
    Asked(asked): Asked<Find>,
) -> Result<Answer, Failure> {
    let page = PageQuery::new(asked.limit, asked.cursor).by_id()?;
    let bad = |rule: &'static str| Problem::of(problem::INVALID_QUERY).detail(rule);
    if asked.name.is_none() && asked.birth_date.is_none() && asked.facility.is_none() {
        return Err(bad("give a name, a birth_date or a facility").into());
    }
    let birth_date = asked.birth_date.map(|text| text.parse::<jiff::civil::Date>()).transpose();
    let birth_date = birth_date.map_err(|_| bad("birth_date must be a date such as 1980-02-29"))?;
    let words = asked.name.map_or(Some(Vec::new()), |name| words_of(&name));
    let words = words.ok_or_else(|| bad("name must be one to four words without control characters"))?;
    let facility = asked.facility.map(FacilityId::uuid);
    let query = SearchQuery { words, birth_date, facility, after: page.after, limit: page.limit };
    let found = search(&Sight::of(&store, &permit).by(&caller), &query).await?;
    Answer::ok(&page_of(&found, page.limit, |patient| patient.id.to_string()))
}

async fn show_summary(
    State(store): State<ReadStore>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(id): PathId<PatientId>,
) -> Result<Answer, Failure> {
    let found = summary(&Sight::of(&store, &permit).by(&caller), id).await?;
    Answer::ok(&found.ok_or_else(|| Problem::of(problem::NOT_FOUND))?)
}

async fn show_timeline(
    State(store): State<ReadStore>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(id): PathId<PatientId>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer, Failure> {
    let after = match query.cursor()? {
        None => 0,
        Some(cursor) => cursor.key().parse().map_err(|_| Problem::of(problem::INVALID_CURSOR))?,
    };
    let limit = query.limit()?;
    let entries = timeline(&Sight::of(&store, &permit).by(&caller), id, after, limit).await?;
    Answer::ok(&page_of(&entries, limit, |entry| entry.n.to_string()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Span {
    /// The first day, such as 2026-01-01
    from: String,
    /// The last day, such as 2026-01-31
    to: String,
    /// The id of a facility
    #[param(value_type = Option<String>, format = "uuid")]
    facility: Option<FacilityId>,
}

/// Revenue of some days.
#[derive(Debug, Serialize, ToSchema)]
struct RevenueOf {
    /// The first day.
    from: String,
    /// The last day.
    to: String,
    /// A line for each facility and day that has any.
    items: Vec<RevenueLine>,
}

async fn show_revenue(
    State(store): State<ReadStore>,
    May(permit): May<Read>,
    caller: Caller,
    headers: HeaderMap,
    Asked(span): Asked<Span>,
) -> Result<Response, Failure> {
    let bad = || Problem::of(problem::INVALID_QUERY).detail("give from and to as dates such as 2026-01-31");
    let date = |text: &str| text.parse::<jiff::civil::Date>().map(|date| date.to_string()).map_err(|_| bad());
    let (from, to) = (date(&span.from)?, date(&span.to)?);
    let sight = Sight::of(&store, &permit).by(&caller);
    let lines = revenue(&sight, &from, &to, span.facility.map(FacilityId::uuid)).await?;
    let wants_csv =
        headers.get(ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|kind| kind.contains("text/csv"));
    if wants_csv {
        return Ok(([(CONTENT_TYPE, "text/csv; charset=utf-8")], csv(&lines)).into_response());
    }
    Ok(Answer::ok(&RevenueOf { from, to, items: lines })?.into_response())
}

fn csv(lines: &[RevenueLine]) -> String {
    let amount = |money: crate::billing::Money| rust_decimal::Decimal::new(money.cents(), 2);
    let mut text = String::from("facility_id,day,claims,billed,payments,paid,currency\r\n");
    for line in lines {
        let RevenueLine { facility_id, day, claims, billed, payments, paid } = line;
        let (billed, paid) = (amount(*billed), amount(*paid));
        text.push_str(&format!("{facility_id},{day},{claims},{billed},{payments},{paid},USD\r\n"));
    }
    text
}
