//! How an entity came to be what it is: its state as of a time, who changed it, and whether audit and history agree.
//!
//! It is told to operators, who have no business with what is personal: of a row it shows the columns that its table declares as
//! shown, which are ids, states, times and codes, and of the trail who, when and for which request. Names, dates of birth, numbers,
//! addresses and notes are not in it, for whomever.
//!
//! Of a row with more changes than [`PAGES_MAX`] pages the newest are neither shown nor compared, and `complete_before` says from
//! when on; its state is told as of any time.

mod comparison;

use axum::extract::{Path, State};
use pim_core::clock::Timestamp;
use pim_core::problem::{self, IntoProblem as _, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::cluster::Cluster;
use pim_data::entity::{Audited, Entity};
use pim_data::fan_out::FanOut;
use pim_data::repository::{PAGE_MAX, Page, Period};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::IntoParams;

use self::comparison::Sides;
use crate::billing::Claim;
use crate::encounter::{Appointment, Encounter};
use crate::operations::Trail;
use crate::patient::Patient;
use crate::policy::LabResource;
use crate::rig::{Answer, Asked, Caller, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

/// Most pages of history, and of the trail, that one answer goes through; each has [`PAGE_MAX`] at most.
const PAGES_MAX: usize = 10;
const LINEAGE: FanOut = FanOut::because("lineage");
/// When everything that is in force is in force.
const NOW: Timestamp = Timestamp::from_micros(i64::MAX);

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
        let (cluster, cx) = (self.cluster, &self.caller.cx);
        let permit = self.permit.for_resource(resource);
        let state = cluster.period_at::<E>(cx, &permit, id, self.query.as_of.unwrap_or(NOW)).await?;
        let past = self.past::<E>(&permit, id).await?;
        if past.0.is_empty() {
            return Err(Problem::of(problem::NOT_FOUND).into());
        }
        let filter = AuditFilter::Entity(id.uuid());
        let trail = Trail::gather((cluster, cx, self.permit), LINEAGE, &filter, PAGES_MAX).await?;
        let sides = Sides::of(past, trail);
        let retained = cluster.retained().await.map_err(|_| Problem::of(problem::UNAVAILABLE))?;
        let within = |at: Timestamp| self.query.as_of.is_none_or(|until| at <= until);
        let changes: Vec<Value> = sides.entries.iter().filter(|entry| within(entry.at)).map(change).collect();
        let mut found = json!({
            "entity": E::TABLE.name,
            "id": self.id,
            "as_of": self.query.as_of,
            "state": state.as_ref().map(|period| shown::<E>(&period.row)),
            "valid_from": state.as_ref().map(|period| period.valid_from),
            "changes": changes,
            // From then on there are changes that are neither shown nor compared.
            "complete_before": sides.complete_before,
            // What is missing from before is not lost: its time was over.
            "retained": retained,
        });
        if self.query.verify {
            // Of this key's lane alone: the whole trail of a large system takes longer than a request may.
            let chain = cluster.verify_audit_lane(id.bucket().lane()).await;
            let chain = chain.map_err(|error| error.into_problem())?;
            let deviations = sides.deviations(&retained);
            let agrees = deviations.is_empty();
            found["verify"] = json!({ "audit_verified": chain.verified, "agrees": agrees, "deviations": deviations });
        }
        Answer::ok(&found)
    }

    /// The row's periods, and whether these are all that are to be compared: the first alone when nothing is.
    async fn past<E: Entity>(
        &self,
        permit: &Permit<Read>,
        id: pim_core::id::Id<E::Kind>,
    ) -> Result<(Vec<Period<E>>, bool), Failure> {
        let (limit, pages) = if self.query.verify { (PAGE_MAX, PAGES_MAX) } else { (1, 1) };
        let (mut page, mut periods) = (Page { after: None, limit }, Vec::new());
        for _ in 0..pages {
            let part = self.cluster.history::<E>(&self.caller.cx, permit, id, page).await?;
            periods.extend(part.periods);
            page.after = part.next;
            if page.after.is_none() {
                break;
            }
        }
        Ok((periods, page.after.is_none() || !self.query.verify))
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
