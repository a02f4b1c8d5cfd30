//! Without HTTP: the repository and the read models, under the permit that the policy gives the caller.

use std::collections::BTreeSet;

use anyhow::Result;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Read};
use pim_core::role::{ClosedEnum as _, RoleCode};
use pim_data::consistency::Consistency;
use pim_data::entity::Entity;
use pim_data::repository::Page;
use pim_lab::billing::Claim;
use pim_lab::encounter::{Appointment, Encounter};
use pim_lab::ids::PatientId;
use pim_lab::patient::Patient;
use pim_lab::policy::{LabAction, LabResource, LabRole, lab_policy};
use pim_lab::projections::{SearchQuery, Sight, audit_lines, revenue, search, summary, timeline};
use uuid::Uuid;

use super::people::{Kind, People, Record, Someone};
use super::{searches, sees, sees_all};

struct Reading<'a> {
    people: &'a People,
    someone: &'a Someone,
    actor: Actor,
    cx: RequestContext,
}

pub(super) async fn agree(people: &People, someone: &Someone, patient: PatientId) -> Result<()> {
    let role = LabRole::from_name(someone.role).expect("a role");
    let mut actor = Actor::new(someone.subject.parse()?, RoleCode::of(role)).with_facilities(&someone.facilities)?;
    if let Some(own) = someone.own {
        actor = actor.with_own_record(own.uuid());
    }
    let deadline = Deadline::after(std::time::Duration::from_secs(20));
    let cx = RequestContext::new(RequestId::mint(), actor.clone(), deadline);
    let reading = Reading { people, someone, actor, cx };
    reading.rows::<Patient>(patient, Kind::Patient, LabResource::Patient).await?;
    reading.rows::<Appointment>(patient, Kind::Appointment, LabResource::Appointment).await?;
    reading.rows::<Encounter>(patient, Kind::Encounter, LabResource::Encounter).await?;
    reading.rows::<Claim>(patient, Kind::Claim, LabResource::Claim).await?;
    reading.models(patient).await
}

impl Reading<'_> {
    fn permit(&self, action: LabAction, resource: LabResource) -> Option<Permit<Read>> {
        lab_policy().authorize::<Read>(&self.actor, action, resource).ok()
    }

    fn seen(&self, patient: PatientId, kind: Kind) -> BTreeSet<Uuid> {
        let seen = self.people.of(patient, kind).filter(|record| sees(self.someone, record));
        seen.map(|record| record.id).collect()
    }

    async fn rows<E: Entity>(&self, patient: PatientId, kind: Kind, resource: LabResource) -> Result<()> {
        let expected = self.seen(patient, kind);
        let Some(permit) = self.permit(LabAction::Read, resource) else {
            assert!(expected.is_empty(), "{:?} has no permit for {kind:?}", self.someone);
            return Ok(());
        };
        let cluster = &self.people.lab.stores.cluster;
        for record in self.people.of(patient, kind) {
            let id = Id::<E::Kind>::from_uuid(record.id)?;
            for how in [Consistency::Strong, Consistency::Eventual] {
                let row = cluster.read::<E>(&self.cx, &permit, id, &how).await?;
                assert_eq!(row.is_some(), expected.contains(&record.id), "{kind:?} {:?}", self.someone);
            }
            let past = cluster.history::<E>(&self.cx, &permit, id, Page::FIRST).await?.periods;
            assert_eq!(!past.is_empty(), expected.contains(&record.id), "history of {kind:?} {:?}", self.someone);
        }
        let page = Page { after: None, limit: 100 };
        let listed = cluster.list::<E>(&self.cx, &permit, patient, page, &Consistency::Strong).await?;
        assert_eq!(listed.iter().map(|row| row.id().uuid()).collect::<BTreeSet<_>>(), expected, "{:?}", self.someone);
        Ok(())
    }

    async fn models(&self, patient: PatientId) -> Result<()> {
        let reads = &self.people.lab.stores.reads;
        let own = self.seen(patient, Kind::Patient);
        if let Some(permit) = self.permit(LabAction::Read, LabResource::Patient) {
            let found = summary(&Sight::of(reads, &permit), patient).await?;
            assert_eq!(found.is_some(), !own.is_empty(), "summary {:?}", self.someone);
        }
        if let Some(permit) = self.permit(LabAction::Read, LabResource::Encounter) {
            let lines = timeline(&Sight::of(reads, &permit), patient, 0, 100).await?;
            let told = |record: &&Record| record.patient == patient && record.kind != Kind::Claim;
            let expected = self.people.records.iter().filter(told).filter(|record| sees(self.someone, record));
            let shown: BTreeSet<Uuid> = lines.iter().map(|line| line.entity_id).collect();
            assert_eq!(shown, expected.map(|record| record.id).collect(), "timeline {:?}", self.someone);
            // A permit that does not reach every row opens nothing that is nobody's own.
            self.nobodys_own(&permit).await?;
        }
        let everybody = self.people.records.iter().filter(|record| record.kind == Kind::Patient);
        let findable = everybody.filter(|record| searches(self.someone) && sees(self.someone, record));
        let findable: BTreeSet<Uuid> = findable.map(|record| record.id).collect();
        let mut found = BTreeSet::new();
        if let Some(permit) = self.permit(LabAction::Search, LabResource::Patient) {
            let query = SearchQuery { words: vec!["reach".to_owned()], limit: 100, ..SearchQuery::default() };
            found = search(&Sight::of(reads, &permit), &query).await?.iter().map(|one| one.id).collect();
        }
        assert_eq!(found, findable, "search {:?}", self.someone);
        Ok(())
    }

    async fn nobodys_own(&self, permit: &Permit<Read>) -> Result<()> {
        let reads = &self.people.lab.stores.reads;
        let lines = revenue(&Sight::of(reads, permit), "2000-01-01", "2100-01-01", None).await?;
        assert_eq!(!lines.is_empty(), sees_all(self.someone), "revenue {:?}", self.someone);
        let lines = audit_lines(reads, permit, None, Some("all")).await?;
        assert_eq!(!lines.is_empty(), sees_all(self.someone), "audit index {:?}", self.someone);
        Ok(())
    }
}
