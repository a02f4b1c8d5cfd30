//! What a data set comes to, without making one: a digest that tells two of them apart.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::SeedSettings;
use super::past::Past;
use super::people::People;

/// Patients that a manifest's digest covers, at most.
const DIGEST_PATIENTS: u32 = 2_000;

/// What a data set comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataManifest {
    /// Of which seed.
    pub seed: u64,
    /// How many patients.
    pub patients: u32,
    /// How many of them have something behind them.
    pub pasts: u32,
    /// Patients that the digest covers: the first ones.
    pub digested: u32,
    /// SHA-256 over places, people, what is planned for the patients and what they have behind them.
    pub digest: String,
}

/// The manifest of a data set; the same for any number of shards and threads, on any day.
#[must_use]
pub fn manifest(settings: &SeedSettings) -> DataManifest {
    let people = People::of(settings);
    let mut digest = Sha256::new();
    let mut add = |told: Result<Vec<u8>, serde_json::Error>| digest.update(told.unwrap_or_default());
    add(serde_json::to_vec(&(people.facilities(), people.providers(), people.accounts())));
    let digested = settings.patients.min(DIGEST_PATIENTS);
    for n in 0..digested {
        let Some(patient) = people.patient(n) else { continue };
        add(serde_json::to_vec(&(&patient, people.encounters(n, patient.id))));
        if people.has_past(n) {
            add(Past::of(&people, n, patient).told());
        }
    }
    let pasts = (0..settings.patients).filter(|n| people.has_past(*n)).count();
    DataManifest {
        seed: settings.seed,
        patients: settings.patients,
        pasts: u32::try_from(pasts).unwrap_or(u32::MAX),
        digested,
        digest: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_data_in_any_thread() {
        let settings = SeedSettings { patients: 300, seed: 7, history_percent: 10 };
        let here = manifest(&settings);
        for threads in [1, 2, 8] {
            let others: Vec<_> = (0..threads).map(|_| std::thread::spawn(move || manifest(&settings))).collect();
            assert!(others.into_iter().all(|other| other.join().unwrap() == here), "{threads} threads");
        }
        assert!((15..=60).contains(&here.pasts), "{here:?}");
        let others = [
            SeedSettings { seed: 8, ..settings },
            SeedSettings { patients: 301, ..settings },
            SeedSettings { history_percent: 11, ..settings },
        ];
        for other in others {
            assert_ne!(manifest(&other).digest, here.digest, "{other:?}");
        }
    }
}
