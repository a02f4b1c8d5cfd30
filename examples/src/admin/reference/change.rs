//! Changing a facility or a provider: what is absent in the body stays.

use axum::extract::State;
use pim_core::id::Id;
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_data::consistency::ConsistencyToken;
use pim_data::entity::Entity;
use pim_events::AppendExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::{Label, state_code_of};
use crate::ids::FacilityId;
use crate::reference::{Facility, Provider, ReferenceBook, ReferenceChanged};
use crate::rig::{Answer, Conditional, Failure, May, PathId, present, write_control};

/// The body that changes a record.
pub(super) trait Change: Clone + DeserializeOwned + ToSchema + Send + Sync + 'static {
    type Record: Entity;

    /// Changes the record.
    fn apply_to(&self, record: &mut Self::Record) -> Result<(), Failure>;

    /// Sets the version that the record has once it is written.
    fn stamp(record: &mut Self::Record, version: u64);

    /// Refuses a body that refers to what is not there.
    fn check(
        &self,
        _book: &ReferenceBook,
        _seen: &ConsistencyToken,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }
}

/// Body of a change of a facility.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FacilityChange {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Label)]
    name: Option<Label>,
    /// Two capital letters.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, example = "OR")]
    state_code: Option<Label>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool)]
    active: Option<bool>,
}

impl Change for FacilityChange {
    type Record = Facility;

    fn apply_to(&self, facility: &mut Facility) -> Result<(), Failure> {
        if let Some(name) = &self.name {
            facility.name.clone_from(&name.0);
        }
        if let Some(state_code) = &self.state_code {
            facility.state_code = state_code_of(state_code)?;
        }
        facility.active = self.active.unwrap_or(facility.active);
        Ok(())
    }

    fn stamp(facility: &mut Facility, version: u64) {
        facility.version = version;
    }
}

/// Body of a change of a provider.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProviderChange {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, format = "uuid")]
    facility_id: Option<FacilityId>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Label)]
    name: Option<Label>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Label)]
    specialty: Option<Label>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool)]
    active: Option<bool>,
}

impl Change for ProviderChange {
    type Record = Provider;

    fn apply_to(&self, provider: &mut Provider) -> Result<(), Failure> {
        provider.facility_id_of = self.facility_id.unwrap_or(provider.facility_id_of);
        if let Some(name) = &self.name {
            provider.name.clone_from(&name.0);
        }
        if let Some(specialty) = &self.specialty {
            provider.specialty.clone_from(&specialty.0);
        }
        provider.active = self.active.unwrap_or(provider.active);
        Ok(())
    }

    fn stamp(provider: &mut Provider, version: u64) {
        provider.version = version;
    }

    async fn check(&self, book: &ReferenceBook, seen: &ConsistencyToken) -> Result<(), Failure> {
        match self.facility_id {
            Some(facility) => book.check::<Facility>("/facility_id", facility, seen).await,
            None => Ok(()),
        }
    }
}

/// Changes a record, and tells every cache of it.
pub(super) async fn change<C: Change>(
    State(cluster): State<Cluster>,
    State(book): State<ReferenceBook>,
    May(permit): May<Write>,
    PathId(id): PathId<Id<<C::Record as Entity>::Kind>>,
    command: Conditional<C>,
) -> Result<Answer, Failure> {
    let (permit, command, book) = (&permit, &command, &book);
    write_control(&cluster, &command.cx, id, move |mut unit| async move {
        let mut record = command.load::<C::Record>(&mut unit, permit, id).await?;
        command.body.check(book, &command.seen).await?;
        command.body.apply_to(&mut record)?;
        let version = unit.save(permit, &record)?;
        let table = C::Record::TABLE.name.to_owned();
        unit.append(&ReferenceChanged { table, id: id.uuid(), version })?;
        C::stamp(&mut record, version);
        Ok((unit, Answer::ok(&record)?))
    })
    .await
}
