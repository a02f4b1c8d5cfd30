//! The development identity provider's people: personas of the seeded data set.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{FacilityId, PatientId, ProviderId};

/// File in the data directory that lists them.
pub(crate) const FILE: &str = "personas.json";
/// What ids of made-up personas are derived from.
const MADE_UP: &[u8] = b"development persona";
/// Most personas that are read.
const PERSONAS_MAX: usize = 1024;

/// Somebody whom the development identity provider knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persona {
    /// Opaque id.
    pub subject: String,
    /// Text form of their role.
    pub role: String,
    /// Facilities of affiliation.
    #[serde(default)]
    pub facilities: Vec<Uuid>,
    /// Their own record.
    #[serde(default)]
    pub patient: Option<Uuid>,
    /// Who they are among the providers.
    #[serde(default)]
    pub provider: Option<Uuid>,
}

/// The personas of a data directory; the file may appear later.
#[derive(Debug)]
pub struct PersonaDirectory {
    path: PathBuf,
    held: Mutex<Option<Arc<[Persona]>>>,
}

impl PersonaDirectory {
    /// Of a data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join(FILE), held: Mutex::new(None) }
    }

    /// Writes the list, for the program that seeds. A power cut afterwards leaves it whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(data_dir: &Path, personas: &[Persona]) -> std::io::Result<()> {
        let path = data_dir.join(FILE);
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(personas)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(data_dir)?.sync_all()
    }

    /// The first persona of a role; made up while nobody has been seeded, at a facility that is made up too and takes nobody.
    #[must_use]
    pub fn of_role(&self, role: &str) -> Persona {
        let found = self.all().and_then(|all| all.iter().find(|persona| persona.role == role).cloned());
        found.unwrap_or_else(|| Persona {
            subject: format!("dev-{role}"),
            role: role.to_owned(),
            facilities: if role == "clinician" { vec![FacilityId::derive(MADE_UP, 0).uuid()] } else { Vec::new() },
            patient: (role == "patient").then(|| PatientId::derive(MADE_UP, 0).uuid()),
            provider: (role == "clinician").then(|| ProviderId::derive(MADE_UP, 0).uuid()),
        })
    }

    /// A persona by subject.
    #[must_use]
    pub fn of_subject(&self, subject: &str) -> Option<Persona> {
        self.all()?.iter().find(|persona| persona.subject == subject).cloned()
    }

    fn all(&self) -> Option<Arc<[Persona]>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            let text = std::fs::read(&self.path).ok()?;
            let mut personas: Vec<Persona> = serde_json::from_slice(&text).ok()?;
            personas.truncate(PERSONAS_MAX);
            *held = Some(personas.into());
        }
        held.clone()
    }
}
