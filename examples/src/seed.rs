//! Filling a new data directory: the same people for the same seed, whatever the number of shards or threads.

mod manifest;
mod past;
mod people;

pub use manifest::{DataManifest, manifest};

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use pim_core::context::{RequestContext, RequestId, TraceContext};
use pim_core::deadline::Deadline;
use pim_core::rbac::{Permit, Read, SystemScope, Write};
use pim_core::shard::ShardKey as _;
use pim_data::backend::Statement;
use pim_data::cluster::CONTROL;
use pim_data::entity::Entity;
use pim_data::unit::{Unit, UnitError};
use pim_events::AppendExt as _;
use tokio::task::JoinSet;
use uuid::Uuid;

use self::past::{Past, Story};
use self::people::People;
use crate::broker::PersonaDirectory;
use crate::policy::{LabAction, LabResource};
use crate::reference::{Facility, ReferenceChanged};
use crate::workers::{Stores, service_actor};

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct SeedSettings {
    /// How many patients.
    pub patients: u32,
    /// Decides everything else.
    pub seed: u64,
    /// How many in a hundred have something behind them: an appointment, an encounter and its claim.
    pub history_percent: u8,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeded {
    /// How many patients; zero when the directory had been filled before.
    pub patients: u32,
    /// How many personas may sign in.
    pub personas: usize,
}

/// Units that go into one transaction: short enough for progress, long enough for speed.
const CHUNK: usize = 100;
const PATIENCE: Duration = Duration::from_secs(300);
const REASON: SystemScope = SystemScope::new("seed a new data directory");

/// Fills a new data directory; does nothing to one that has been filled. `progress` is told how many patients are there.
///
/// Patients go through the same units of work as ever: history, audit, events and fence included, many in a transaction.
///
/// # Errors
/// When a store cannot be written; the data directory is then removed and made anew by hand.
pub async fn seed(
    stores: &Stores,
    settings: &SeedSettings,
    progress: impl Fn(u32) + Send + Sync,
) -> anyhow::Result<Seeded> {
    let cx = RequestContext::new(RequestId::mint(), service_actor("seed")?, Deadline::after(PATIENCE));
    if is_filled(stores, &cx).await? {
        return Ok(Seeded { patients: 0, personas: 0 });
    }
    let people = People::of(settings);
    // Nobody asks for the journey of ten thousand patients at once, and their spans would push out all others.
    let cx = cx.with_trace(TraceContext::root().with_sampled(false));
    fill_shards(stores, &people, &cx, progress).await?;
    let personas = people.personas();
    PersonaDirectory::write(stores.cluster.data_dir(), &personas).context("cannot write personas.json")?;
    fill_control(stores, &people, &cx).await?;
    Ok(Seeded { patients: settings.patients, personas: personas.len() })
}

/// The facilities are written last, so all of them say that everything is there.
async fn is_filled(stores: &Stores, cx: &RequestContext) -> anyhow::Result<bool> {
    let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Facility);
    let counted = Statement::same("SELECT COUNT(*) FROM facility");
    let counted = stores.cluster.select::<Facility>(cx, &permit, CONTROL, counted).await?;
    Ok(counted.first().context("nothing counted")?.count(0)? >= people::FACILITIES)
}

async fn fill_shards(
    stores: &Stores,
    people: &People,
    cx: &RequestContext,
    progress: impl Fn(u32) + Send + Sync,
) -> anyhow::Result<()> {
    let done = std::sync::Arc::new(AtomicU32::new(0));
    let mut shards = JoinSet::new();
    for described in stores.cluster.map().serving() {
        let (stores, people, cx, id) = (stores.clone(), people.clone(), cx.clone(), described.id);
        let done = std::sync::Arc::clone(&done);
        shards.spawn(async move {
            let mine: Vec<u32> = (0..people.count())
                .filter(|&n| stores.cluster.router().route(&people.patient_id(n)).shard == id)
                .collect();
            for chunk in mine.chunks(CHUNK) {
                let units = chunk.iter().map(|&n| patient_units(&stores, &people, &cx, n));
                let units = units.collect::<anyhow::Result<Vec<Vec<Unit>>>>()?.into_iter().flatten().collect();
                // A patient that is there already was committed before an interruption: leave it.
                match stores.cluster.commit_bulk(id, units).await {
                    Ok(_) | Err(UnitError::AlreadyExists { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                done.fetch_add(u32::try_from(chunk.len()).unwrap_or(0), Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
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

/// A patient with what is planned for them, and what they have behind them.
fn patient_units(stores: &Stores, people: &People, cx: &RequestContext, n: u32) -> anyhow::Result<Vec<Unit>> {
    let patient = people.patient(n).context("a made-up patient does not fit its own rules")?;
    let mut unit = stores.cluster.begin(cx, patient.id);
    let version = unit.save(&permit(LabResource::Patient), &patient)?;
    unit.append(&patient.registered(version))?;
    for encounter in people.encounters(n, patient.id) {
        let version = unit.save(&permit(LabResource::Encounter), &encounter)?;
        unit.append(&people::scheduled(&encounter, version))?;
    }
    if !people.has_past(n) {
        return Ok(vec![unit]);
    }
    let mut story = Story::from(unit);
    Past::of(people, n, patient).tell(&mut story)?;
    Ok(story.units)
}

fn permit(resource: LabResource) -> Permit<Write> {
    Permit::<Write>::system(REASON, LabAction::Write, resource)
}

async fn fill_control(stores: &Stores, people: &People, cx: &RequestContext) -> anyhow::Result<()> {
    let mut units = Vec::new();
    for provider in people.providers() {
        let unit = stores.cluster.begin_control(cx, provider.id);
        let id = provider.id.key_uuid();
        units.push(reference_unit(unit, &provider, LabResource::Provider, ("provider", id))?);
    }
    for account in people.accounts() {
        let unit = stores.cluster.begin_control(cx, account.id);
        let id = account.id.key_uuid();
        units.push(reference_unit(unit, &account, LabResource::Account, ("account", id))?);
    }
    commit_together(units).await?;
    let mut units = Vec::new();
    for facility in people.facilities() {
        let unit = stores.cluster.begin_control(cx, facility.id);
        let id = facility.id.key_uuid();
        units.push(reference_unit(unit, &facility, LabResource::Facility, ("facility", id))?);
    }
    commit_together(units).await
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
