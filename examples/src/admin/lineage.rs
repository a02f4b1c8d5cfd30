//! How an entity came to be what it is: its state as of a time, who changed it, and whether audit and history agree.
//!
//! It is told to operators, who have no business with what is personal: of a row it shows the columns that its table declares as
//! shown, which are ids, states, times and codes, and of the trail who, when and for which request. Names, dates of birth, numbers,
//! addresses and notes are not in it, for whomever.

use axum::extract::{Path, State};
use pim_core::clock::Timestamp;
use pim_core::problem::{self, IntoProblem as _, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::cluster::Cluster;
use pim_data::entity::{Audited, Entity};
use pim_data::fan_out::FanOut;
use pim_data::repository::{Page, Period};
use pim_data::retention::Retained;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::IntoParams;

use crate::billing::Claim;
use crate::encounter::{Appointment, Encounter};
use crate::operations::Trail;
use crate::patient::Patient;
use crate::policy::LabResource;
use crate::rig::{Answer, Asked, Caller, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

/// Most pages of the trail that one answer goes through.
const PAGES_MAX: usize = 10;
const LINEAGE: FanOut = FanOut::because("lineage");

pub(super) fn endpoints() -> Endpoints<Stores> {
    let told = Operation::tell("/v1/admin/lineage/{entity}/{id}", "Tells how an entity came to be what it is");
    Endpoints::new().serve(told, lineage)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct LineageQuery {
    /// Until when, as an RFC 3339 time
    #[param(value_type = Option<String>, format = DateTime)]
    as_of: Option<Timestamp>,
    /// Whether trail and history are compared: true or false
    #[serde(default)]
    verify: bool,
}

async fn lineage(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    Path((entity, id)): Path<(String, String)>,
    Asked(query): Asked<LineageQuery>,
) -> Result<Answer, Failure> {
    let asked = Question { cluster: &cluster, permit: &permit, caller: &caller, id: &id, query: &query };
    match entity.as_str() {
        "patient" => asked.of::<Patient>(LabResource::Patient).await,
        "appointment" => asked.of::<Appointment>(LabResource::Appointment).await,
        "encounter" => asked.of::<Encounter>(LabResource::Encounter).await,
        "claim" => asked.of::<Claim>(LabResource::Claim).await,
        _ => {
            Err(Problem::of(problem::NOT_FOUND).detail("lineage is of patient, appointment, encounter or claim").into())
        }
    }
}

struct Question<'a> {
    cluster: &'a Cluster,
    permit: &'a Permit<Read>,
    caller: &'a Caller,
    id: &'a str,
    query: &'a LineageQuery,
}

impl Question<'_> {
    async fn of<E: Entity>(&self, resource: LabResource) -> Result<Answer, Failure> {
        let id = self.id.parse::<pim_core::id::Id<E::Kind>>();
        let id = id.map_err(|error| Problem::of(problem::INVALID_ID).detail(error.to_string()))?;
        let cx = &self.caller.cx;
        let permit = self.permit.for_resource(resource);
        let periods = self.cluster.history::<E>(cx, &permit, id, Page::FIRST).await?.periods;
        if periods.is_empty() {
            return Err(Problem::of(problem::NOT_FOUND).into());
        }
        let filter = AuditFilter::Entity(id.uuid());
        let mut trail = Trail::gather((self.cluster, cx, self.permit), LINEAGE, &filter, PAGES_MAX).await?.entries;
        // Of a home key there are also records of events alone.
        trail.retain(|entry| entry.body["entity"] == E::TABLE.name);
        let retained = self.cluster.retained().await.map_err(|_| Problem::of(problem::UNAVAILABLE))?;
        let within = |at: Timestamp| self.query.as_of.is_none_or(|until| at <= until);
        let state = periods.iter().rev().find(|period| within(period.valid_from));
        let changes: Vec<Value> = trail.iter().filter(|entry| within(entry.at)).map(change).collect();
        let mut found = json!({
            "entity": E::TABLE.name,
            "id": self.id,
            "as_of": self.query.as_of,
            "state": state.map(|period| shown::<E>(&period.row)),
            "valid_from": state.map(|period| period.valid_from),
            "changes": changes,
            // What is missing from before is not lost: its time was over.
            "retained": retained,
        });
        if self.query.verify {
            // Of this key's lane alone: the whole trail of a large system takes longer than a request may.
            let chain = self.cluster.verify_audit_lane(id.bucket().lane()).await;
            let chain = chain.map_err(|error| error.into_problem())?;
            let deviations = deviations::<E>(&periods, &trail, &retained);
            let agrees = deviations.is_empty();
            found["verify"] = json!({ "audit_verified": chain.verified, "agrees": agrees, "deviations": deviations });
        }
        Answer::ok(&found)
    }
}

/// One change as it may be shown: who, when, for which request, and the columns that may stand in the trail.
fn change(entry: &AuditEntry) -> Value {
    let pick = |name: &str| entry.body.get(name).cloned().unwrap_or(Value::Null);
    json!({
        "at": entry.at, "version": pick("version"), "action": pick("action"), "user": pick("user"),
        "role": pick("role"), "behalf": pick("behalf"), "request_id": pick("request"), "cause": pick("cause"),
        "n": pick("n"), "before": pick("before"), "after": pick("after"),
    })
}

/// The columns of a row that are not personal.
fn shown<E: Entity>(row: &E) -> Value {
    let all = serde_json::to_value(row).unwrap_or_default();
    let columns = E::TABLE.columns.iter().filter(|column| column.audited() == Audited::Shown);
    let mut shown: Map<String, Value> =
        columns.map(|column| (column.name().to_owned(), all.get(column.name()).cloned().unwrap_or_default())).collect();
    shown.insert("version".to_owned(), json!(row.version()));
    Value::Object(shown)
}

/// Replays the trail against the history: each version once in both, with the same columns. What is past its time may be
/// missing from either.
fn deviations<E: Entity>(periods: &[Period<E>], trail: &[AuditEntry], retained: &Retained) -> Vec<Value> {
    let mut found = Vec::new();
    let is_past = |at: Timestamp, since: Option<Timestamp>| since.is_some_and(|since| at < since);
    let version_of = |entry: &AuditEntry| entry.body["version"].as_u64();
    for period in periods {
        let version = period.row.version();
        let mut recorded = trail.iter().filter(|entry| version_of(entry) == Some(version));
        let Some(entry) = recorded.next() else {
            if is_past(period.valid_from, retained.audit_since) {
                continue;
            }
            found.push(json!({ "version": version, "what": "in the history but not in the trail" }));
            continue;
        };
        let mut row = shown(&period.row);
        if let Some(members) = row.as_object_mut() {
            members.remove("version");
        }
        if recorded.next().is_some() || row != entry.body["after"] || period.valid_from != entry.at {
            found.push(json!({ "version": version, "what": "history and trail differ" }));
        }
    }
    let known = |version: Option<u64>| periods.iter().any(|period| Some(period.row.version()) == version);
    for (number, entry) in trail.iter().enumerate().filter(|(_, entry)| !known(version_of(entry))) {
        // A period ends when the next change begins one.
        if trail.get(number + 1).is_some_and(|next| is_past(next.at, retained.history_since)) {
            continue;
        }
        found.push(json!({ "version": version_of(entry), "what": "in the trail but not in the history" }));
    }
    found
}
