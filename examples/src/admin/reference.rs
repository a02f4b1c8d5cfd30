//! Facilities, providers, accounts and flags: listing, making and changing them.

mod change;

use axum::extract::State;
use pim_core::id::Id;
use pim_core::identity::Subject;
use pim_core::problem::{self, Problem};
use pim_core::rbac::Write;
use pim_core::role::ClosedEnum as _;
use pim_data::cluster::Cluster;
use pim_data::consistency::ConsistencyToken;
use pim_data::entity::Entity;
use pim_data::unit::UnitError;
use pim_events::AppendExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use self::change::{FacilityChange, ProviderChange, change};
use crate::identifier::{REAL_IDENTIFIER, RULE, could_be_real, names_a_real_one};
use crate::ids::{FacilityId, PatientId};
use crate::policy::LabRole;
use crate::reference::{Account, Facility, Flag, Provider, ReferenceBook, ReferenceChanged};
use crate::rig::{Answer, Command, Endpoints, Failure, May, Operation, list_control, show_control, write_control};
use crate::workers::Stores;

const FACILITIES_MAX: usize = 16;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::list::<Facility>("/v1/admin/facilities", "Lists facilities"), list_control::<Facility>)
        .serve(Operation::create::<Facility>("/v1/admin/facilities", "Makes a facility"), create::<NewFacility>)
        .serve(Operation::get::<Facility>("/v1/admin/facilities/{id}", "Shows a facility"), show_control::<Facility>)
        .serve(
            Operation::patch::<Facility>("/v1/admin/facilities/{id}", "Changes a facility"),
            change::<FacilityChange>,
        )
        .serve(Operation::list::<Provider>("/v1/admin/providers", "Lists providers"), list_control::<Provider>)
        .serve(Operation::create::<Provider>("/v1/admin/providers", "Makes a provider"), create::<NewProvider>)
        .serve(Operation::get::<Provider>("/v1/admin/providers/{id}", "Shows a provider"), show_control::<Provider>)
        .serve(Operation::patch::<Provider>("/v1/admin/providers/{id}", "Changes a provider"), change::<ProviderChange>)
        .serve(
            Operation::list::<Account>("/v1/admin/accounts", "Lists the accounts that are kept; sign-in asks none"),
            list_control::<Account>,
        )
        .serve(
            Operation::create::<Account>("/v1/admin/accounts", "Makes an account, which lets nobody sign in"),
            create::<NewAccount>,
        )
        .serve(
            Operation::list::<Flag>("/v1/admin/flags", "Lists the flags that are kept; nothing asks them"),
            list_control::<Flag>,
        )
        .serve(
            Operation::create::<Flag>("/v1/admin/flags", "Makes a flag, which switches nothing of the lab"),
            create::<NewFlag>,
        )
}

/// A label: 1 to 80 characters without control characters, and no identifier of a real person.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(example = "North Clinic")]
struct Label(String);

impl TryFrom<String> for Label {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if could_be_real(&text) {
            return Err(RULE);
        }
        let fits = !text.trim().is_empty() && text.chars().count() <= 80 && !text.chars().any(char::is_control);
        if fits { Ok(Self(text)) } else { Err("must be a text of 1 to 80 characters") }
    }
}

/// The body that makes a record.
trait NewRecord: Clone + DeserializeOwned + ToSchema + Send + Sync + 'static {
    type Record: Entity;

    /// The record at a version.
    fn record(&self, id: Id<<Self::Record as Entity>::Kind>, version: u64) -> Result<Self::Record, Failure>;

    /// Refuses a body that refers to what is not there.
    fn check(
        &self,
        _book: &ReferenceBook,
        _seen: &ConsistencyToken,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }
}

/// A code of two capital letters.
fn state_code_of(label: &Label) -> Result<String, Failure> {
    let text = label.0.clone();
    if text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase()) {
        return Ok(text);
    }
    Err(Problem::of(problem::INVALID_BODY).detail("state_code must be two capital letters").into())
}

/// Body of a new facility.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewFacility {
    name: Label,
    /// Two capital letters.
    #[schema(value_type = String, example = "OR")]
    state_code: Label,
}

impl NewRecord for NewFacility {
    type Record = Facility;

    fn record(&self, id: FacilityId, version: u64) -> Result<Facility, Failure> {
        let state_code = state_code_of(&self.state_code)?;
        Ok(Facility { id, version, name: self.name.0.clone(), state_code, active: true })
    }
}

/// Body of a new provider.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewProvider {
    #[schema(value_type = String, format = "uuid")]
    facility_id: FacilityId,
    name: Label,
    specialty: Label,
}

impl NewRecord for NewProvider {
    type Record = Provider;

    fn record(&self, id: crate::ids::ProviderId, version: u64) -> Result<Provider, Failure> {
        let (name, specialty) = (self.name.0.clone(), self.specialty.0.clone());
        Ok(Provider { id, version, facility_id_of: self.facility_id, name, specialty, active: true })
    }

    async fn check(&self, book: &ReferenceBook, seen: &ConsistencyToken) -> Result<(), Failure> {
        book.check::<Facility>("/facility_id", self.facility_id, seen).await
    }
}

/// Body of a new account.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    /// What the identity provider calls them: opaque, and no name.
    #[schema(value_type = String, example = "u-77", max_length = 64, pattern = "^[A-Za-z0-9._:-]+$")]
    subject: String,
    #[schema(value_type = String, example = "clinician")]
    role: Label,
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    facilities: Vec<FacilityId>,
    #[schema(value_type = Option<String>, format = "uuid")]
    patient: Option<PatientId>,
}

impl NewRecord for NewAccount {
    type Record = Account;

    fn record(&self, id: crate::ids::AccountId, version: u64) -> Result<Account, Failure> {
        let refused = |rule| Err(Problem::of(problem::INVALID_BODY).detail(rule).into());
        if self.facilities.len() > FACILITIES_MAX {
            return refused("facilities must be at most 16");
        }
        // No person is one of our own programs.
        if LabRole::from_name(&self.role.0).is_none_or(|role| role == LabRole::Service) {
            return refused("role must be patient, clinician, admin or sre");
        }
        // The trail shows it.
        let Ok(subject) = self.subject.parse::<Subject>() else {
            return refused("subject must be 1 to 64 characters of A-Z a-z 0-9 . _ : -");
        };
        // An identity provider makes them of UUIDs and the like, of which some have nine digits in a row.
        if names_a_real_one(subject.as_str()) {
            return Err(Problem::of(REAL_IDENTIFIER).detail(RULE).into());
        }
        Ok(Account {
            id,
            version,
            subject: subject.to_string(),
            role: self.role.0.clone(),
            facilities: self.facilities.clone(),
            patient: self.patient,
            active: true,
        })
    }

    async fn check(&self, book: &ReferenceBook, seen: &ConsistencyToken) -> Result<(), Failure> {
        for (place, facility) in self.facilities.iter().take(FACILITIES_MAX).enumerate() {
            book.check::<Facility>(format!("/facilities/{place}"), *facility, seen).await?;
        }
        Ok(())
    }
}

/// Body of a new flag.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewFlag {
    name: Label,
    enabled: bool,
}

impl NewRecord for NewFlag {
    type Record = Flag;

    fn record(&self, id: crate::ids::FlagId, version: u64) -> Result<Flag, Failure> {
        Ok(Flag { id, version, name: self.name.0.clone(), enabled: self.enabled })
    }
}

async fn create<B: NewRecord>(
    State(cluster): State<Cluster>,
    State(book): State<ReferenceBook>,
    May(permit): May<Write>,
    command: Command<B>,
) -> Result<Answer, Failure> {
    let scope = command.cx.idempotency().ok_or_else(|| Problem::of(problem::IDEMPOTENCY_KEY_MISSING))?;
    let id = Id::derive(scope.scope(), 0);
    let (permit, body, book, seen) = (&permit, &command.body, &book, &command.seen);
    let made = write_control(&cluster, &command.cx, id, move |mut unit| async move {
        if let Err(refused) = body.check(book, seen).await {
            // Unless an equal submission was answered when it was there.
            unit.load::<B::Record>(permit, id).await?;
            return Err(refused);
        }
        let version = unit.save(permit, &body.record(id, 0)?)?;
        let table = B::Record::TABLE.name.to_owned();
        unit.append(&ReferenceChanged { table, id: id.uuid(), version })?;
        Ok((unit, Answer::created(&body.record(id, version)?)?))
    });
    match made.await {
        Err(Failure::Unit(UnitError::AlreadyExists { entity })) => {
            Err(Problem::of(problem::ALREADY_EXISTS).with("entity", entity).into())
        }
        outcome => outcome,
    }
}
