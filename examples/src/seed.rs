//! Filling a new data directory: the same people for the same seed, whatever the number of shards or threads.

mod filling;
mod manifest;
mod past;
mod people;

pub use manifest::{DataManifest, manifest};

use anyhow::Context as _;
use pim_core::rbac::{Permit, SystemScope, Write};

use self::filling::Filling;
use self::people::People;
use crate::broker::PersonaDirectory;
use crate::policy::{LabAction, LabResource};
use crate::workers::Stores;

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

const REASON: SystemScope = SystemScope::new("seed a new data directory");

/// Fills a new data directory; does nothing to one that has been filled, and goes on where an earlier call was interrupted.
/// `progress` is told how many patients are there.
///
/// Patients go through the same units of work as ever: history, audit, events and fence included, many in a transaction.
///
/// # Errors
/// When a store cannot be written; what is there by then is left by the next call.
pub async fn seed(
    stores: &Stores,
    settings: &SeedSettings,
    progress: impl Fn(u32) + Send + Sync,
) -> anyhow::Result<Seeded> {
    let filling = Filling::of(stores, settings)?;
    if filling.is_done().await? {
        return Ok(Seeded { patients: 0, personas: 0 });
    }
    filling.fill_shards(progress).await?;
    let personas = People::of(settings).personas();
    PersonaDirectory::write(stores.cluster.data_dir(), &personas).context("cannot write personas.json")?;
    filling.fill_control().await?;
    Ok(Seeded { patients: settings.patients, personas: personas.len() })
}

fn permit(resource: LabResource) -> Permit<Write> {
    Permit::<Write>::system(REASON, LabAction::Write, resource)
}
