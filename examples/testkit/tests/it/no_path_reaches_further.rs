//! A caller reaches exactly the rows of their scope, whichever way they ask: gateway, service, repository or read model.
//!
//! One running lab; each pair of a persona and a patient; a plain oracle that knows nothing of policy, scope or SQL.

mod asked;
mod people;
mod stored;

use std::sync::Arc;

use pim_lab::rig::PostgresSettings;
use pim_testkit::folder::Folder;

use self::people::{Kind, People, Record, Someone};

/// What the policy means, in plain words. `facilities` and `own` are of the caller, the record is what they ask for.
fn sees(someone: &Someone, record: &Record) -> bool {
    match someone.role {
        "patient" => someone.own == Some(record.patient),
        "clinician" => someone.facilities.contains(&record.facility),
        "admin" | "sre" => true,
        _ => false,
    }
}

/// Whether a role may look across patients at all.
fn searches(someone: &Someone) -> bool {
    ["clinician", "sre"].contains(&someone.role)
}

/// Whether a role sees what is nobody's own: revenue and the trail.
fn sees_all(someone: &Someone) -> bool {
    ["admin", "sre"].contains(&someone.role)
}

#[test]
fn every_path_shows_what_the_oracle_says_and_nothing_else() {
    agree_on(Folder::new("reach").expect("a folder"), PostgresSettings::default());
}

/// Over rows in files, or on servers.
pub(crate) fn agree_on(folder: Folder, postgres: PostgresSettings) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let people = Arc::new(runtime.block_on(People::new(folder, postgres)).expect("the lab starts"));
    let before = runtime.block_on(people.dump()).expect("reads");
    runtime.block_on(async {
        for (who, someone) in people.everyone.iter().enumerate() {
            for (whose, patient) in people.patients.iter().copied().enumerate() {
                // Each other patient in turn.
                let other = people.patients[(whose + who) % people.patients.len()];
                asked::agree(&people, someone, patient, other).await.expect("asks");
                stored::agree(&people, someone, patient).await.expect("reads");
            }
        }
    });
    let after = runtime.block_on(people.dump()).expect("reads");
    assert_eq!(before, after, "what was refused changed nothing");
    let kinds = [Kind::Patient, Kind::Appointment, Kind::Encounter, Kind::Claim];
    assert!(kinds.iter().all(|kind| people.records.iter().any(|record| record.kind == *kind)), "every kind was there");
    let people = Arc::into_inner(people).expect("nobody else has it");
    runtime.block_on(people.lab.stop());
}
