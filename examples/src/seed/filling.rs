//! A data set on its way into the stores.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use pim_core::context::{RequestContext, RequestId, TraceContext};
use pim_core::deadline::Deadline;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Read};
use pim_core::shard::{ShardId, ShardKey as _};
use pim_data::backend::{SqlPair, Statement};
use pim_data::cluster::CONTROL;
use pim_data::entity::Entity;
use pim_data::unit::{Unit, UnitError};
use pim_events::AppendExt as _;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::past::{Past, Story};
use super::people::{FACILITIES, People, scheduled};
use super::{REASON, SeedSettings, permit};
use crate::patient::Patient;
use crate::policy::{LabAction, LabResource};
use crate::reference::{Facility, ReferenceChanged};
use crate::workers::{Stores, service_actor};

/// Patients that go into one transaction: short enough for progress, long enough for speed.
const CHUNK: usize = 100;
/// How long one transaction may wait for its store.
const PATIENCE: Duration = Duration::from_secs(300);

/// A data set on its way: one request, whose time begins anew with each transaction, for nobody knows how many there are.
#[derive(Clone, Debug)]
pub(super) struct Filling {
    stores: Stores,
    people: People,
    request: RequestId,
    actor: Actor,
    trace: TraceContext,
    patience: Duration,
}

impl Filling {
    pub(super) fn of(stores: &Stores, settings: &SeedSettings) -> anyhow::Result<Self> {
        Ok(Self {
            stores: stores.clone(),
            people: People::of(settings),
            request: RequestId::mint(),
            actor: service_actor("seed")?,
            // Nobody asks for the journey of ten thousand patients at once, and their spans would push out all others.
            trace: TraceContext::root().with_sampled(false),
            patience: PATIENCE,
        })
    }

    fn context(&self) -> RequestContext {
        RequestContext::new(self.request, self.actor.clone(), Deadline::after(self.patience)).with_trace(self.trace)
    }

    /// The facilities are written last, so all of them say that everything is there.
    pub(super) async fn is_done(&self) -> anyhow::Result<bool> {
        let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Facility);
        let counted = Statement::same("SELECT COUNT(*) FROM facility");
        let counted = self.stores.cluster.select::<Facility>(&self.context(), &permit, CONTROL, counted).await?;
        Ok(counted.first().context("nothing counted")?.count(0)? >= FACILITIES)
    }

    pub(super) async fn fill_shards(&self, progress: impl Fn(u32) + Send + Sync) -> anyhow::Result<()> {
        let done = Arc::new(AtomicU32::new(0));
        let mut shards = JoinSet::new();
        for described in self.stores.cluster.map().serving() {
            let (filling, done) = (self.clone(), Arc::clone(&done));
            shards.spawn(filling.fill_shard(described.id, done));
        }
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                ended = shards.join_next() => match ended {
                    Some(outcome) => outcome.context("a seeding task broke off")??,
                    None => break,
                },
                _ = tick.tick() => progress(done.load(Ordering::Relaxed)),
            }
        }
        progress(done.load(Ordering::Relaxed));
        Ok(())
    }

    async fn fill_shard(self, shard: ShardId, done: Arc<AtomicU32>) -> anyhow::Result<()> {
        let router = self.stores.cluster.router();
        let is_here = |n: &u32| router.route(&self.people.patient_id(*n)).shard == shard;
        let mine: Vec<u32> = (0..self.people.count()).filter(is_here).collect();
        for chunk in mine.chunks(CHUNK) {
            self.fill_chunk(shard, chunk).await?;
            done.fetch_add(u32::try_from(chunk.len()).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes patients of a shard together, except for those that were committed before an interruption: where a chunk began
    /// then depended on how many patients were asked for, and on the map.
    async fn fill_chunk(&self, shard: ShardId, chunk: &[u32]) -> anyhow::Result<()> {
        let mut missing = chunk.to_vec();
        // Ends: fewer are missing each time.
        loop {
            let cx = self.context();
            let units = missing.iter().map(|&n| self.patient_units(&cx, n));
            let units = units.collect::<anyhow::Result<Vec<Vec<Unit>>>>()?.into_iter().flatten().collect();
            let refused = match self.stores.cluster.commit_bulk(shard, units).await {
                Ok(_) => return Ok(()),
                Err(refused @ UnitError::AlreadyExists { .. }) => refused,
                Err(error) => return Err(error.into()),
            };
            let before = missing.len();
            missing = self.missing(shard, missing).await?;
            if missing.len() == before {
                return Err(refused.into());
            }
        }
    }

    /// Which of these patients a shard does not have. Whoever is there has all of their units: they are one transaction.
    async fn missing(&self, shard: ShardId, mut numbers: Vec<u32>) -> anyhow::Result<Vec<u32>> {
        let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Patient);
        let id = |n: u32| self.people.patient_id(n).uuid();
        let places = vec!["?"; numbers.len()].join(", ");
        let there = SqlPair::generated(format!("SELECT id FROM patient WHERE id IN ({places})"));
        let there = Statement::of(there).bind_all(numbers.iter().map(|&n| id(n).into()));
        let there = self.stores.cluster.select::<Patient>(&self.context(), &permit, shard, there).await?;
        let there = there.iter().map(|row| row.uuid(0)).collect::<Result<BTreeSet<Uuid>, _>>()?;
        numbers.retain(|&n| !there.contains(&id(n)));
        Ok(numbers)
    }

    /// A patient with what is planned for them, and what they have behind them.
    fn patient_units(&self, cx: &RequestContext, n: u32) -> anyhow::Result<Vec<Unit>> {
        let patient = self.people.patient(n).context("a made-up patient does not fit its own rules")?;
        let mut unit = self.stores.cluster.begin(cx, patient.id);
        let version = unit.save(&permit(LabResource::Patient), &patient)?;
        unit.append(&patient.registered(version))?;
        for encounter in self.people.encounters(n, patient.id) {
            let version = unit.save(&permit(LabResource::Encounter), &encounter)?;
            unit.append(&scheduled(&encounter, version))?;
        }
        if !self.people.has_past(n) {
            return Ok(vec![unit]);
        }
        let mut story = Story::from(unit);
        Past::of(&self.people, n, patient).tell(&mut story)?;
        Ok(story.units)
    }

    pub(super) async fn fill_control(&self) -> anyhow::Result<()> {
        let (cx, cluster) = (self.context(), &self.stores.cluster);
        let mut units = Vec::new();
        for provider in self.people.providers() {
            let unit = cluster.begin_control(&cx, provider.id);
            let id = provider.id.key_uuid();
            units.push(reference_unit(unit, &provider, LabResource::Provider, ("provider", id))?);
        }
        for account in self.people.accounts() {
            let unit = cluster.begin_control(&cx, account.id);
            let id = account.id.key_uuid();
            units.push(reference_unit(unit, &account, LabResource::Account, ("account", id))?);
        }
        commit_together(units).await?;
        let cx = self.context();
        let mut units = Vec::new();
        for facility in self.people.facilities() {
            let unit = cluster.begin_control(&cx, facility.id);
            let id = facility.id.key_uuid();
            units.push(reference_unit(unit, &facility, LabResource::Facility, ("facility", id))?);
        }
        commit_together(units).await
    }
}

fn reference_unit<E: Entity>(
    mut unit: Unit,
    entity: &E,
    resource: LabResource,
    (table, id): (&str, Uuid),
) -> anyhow::Result<Unit> {
    let version = unit.save(&permit(resource), entity)?;
    unit.append(&ReferenceChanged { table: table.to_owned(), id, version })?;
    Ok(unit)
}

/// Units that wait at the same time share their commits.
async fn commit_together(units: Vec<Unit>) -> anyhow::Result<()> {
    for outcome in join_all(units.into_iter().map(Unit::commit)).await {
        match outcome {
            // Committed before an interruption.
            Ok(_) | Err(UnitError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use pim_core::clock::Clock;
    use pim_data::cluster::Access;

    use super::*;
    use crate::seed::seed;
    use crate::signals::Hub;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _leftover = std::fs::remove_dir_all(&self.0);
        }
    }

    async fn open(shards: u16) -> (Stores, Folder) {
        let folder = Folder(std::env::temp_dir().join(format!("pim-lab-{}", Uuid::new_v4())));
        let hub = Hub::new(None).unwrap();
        let stores = Stores::open(&folder.0, Some(shards), Access::Shared, Clock::system(), &hub).await.unwrap();
        (stores, folder)
    }

    fn settings(patients: u32) -> SeedSettings {
        SeedSettings { patients, seed: 7, history_percent: 20 }
    }

    async fn count(stores: &Stores, select: &'static str) -> u64 {
        let mut total = 0;
        for shard in stores.cluster.map().serving() {
            let rows = stores.cluster.database(shard.id).unwrap().query(Statement::same(select)).await.unwrap();
            total += rows[0].count(0).unwrap();
        }
        total
    }

    /// Guard: of a chunk that is partly there the rest is made, and what is there is left as it is.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_there_from_before_an_interruption_keeps_nobody_out() {
        let (stores, _folder) = open(2).await;
        Filling::of(&stores, &settings(150)).unwrap().fill_shards(|_| {}).await.unwrap();
        assert_eq!(count(&stores, "SELECT COUNT(*) FROM patient_row").await, 150);
        let seeded = seed(&stores, &settings(1000), |_| {}).await.unwrap();
        assert_eq!(seeded.patients, 1000);
        assert_eq!(count(&stores, "SELECT COUNT(*) FROM patient_row").await, 1000);
        assert_eq!(count(&stores, "SELECT COUNT(*) FROM patient_history WHERE version = 1").await, 1000);
        let (whole, _its_folder) = open(2).await;
        seed(&whole, &settings(1000), |_| {}).await.unwrap();
        for select in ["SELECT COUNT(*) FROM claim_row", "SELECT COUNT(*) FROM encounter_history"] {
            assert_eq!(count(&stores, select).await, count(&whole, select).await, "as if at once: {select}");
        }
        assert!(stores.cluster.verify_audit().await.unwrap().verified);
    }

    /// Guard: how long all of it takes is nobody's deadline.
    #[tokio::test]
    async fn the_time_of_a_transaction_begins_with_it() {
        let (stores, _folder) = open(1).await;
        // Enough for the slowest of them on a busy disk.
        let patience = Duration::from_secs(5);
        let filling = Filling { patience, ..Filling::of(&stores, &settings(2)).unwrap() };
        filling.fill_chunk(ShardId(0), &[0]).await.unwrap();
        tokio::time::sleep(patience + Duration::from_millis(100)).await;
        filling.fill_chunk(ShardId(0), &[1]).await.unwrap();
        filling.fill_control().await.unwrap();
        assert!(filling.is_done().await.unwrap());
        assert_eq!(count(&stores, "SELECT COUNT(*) FROM patient_row").await, 2);
    }
}
