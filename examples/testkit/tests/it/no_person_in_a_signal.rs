//! Nothing of anybody in the data set is in a log line, metric, span, event header, problem body, or anything that operators are told
//! (journey, lineage, trail, dead letters, stores, faults) of a live run of all nine programs, with traffic, refusals, faults and parked keys; and every signal that they emit is declared.

mod particulars;
mod provoked;
mod signals;

use std::process::Stdio;

use pim_core::clock::Clock;
use pim_data::cluster::Access;
use pim_lab::signals::{CATALOGS, Hub};
use pim_lab::workers::Stores;
use pim_telemetry::capture::undeclared;
use pim_testkit::caller::Caller;
use pim_testkit::folder::Folder;
use pim_testkit::nine::Nine;
use pim_testkit::program::Program;

use self::particulars::{Particulars, Person};
use self::provoked::Provoker;
use self::signals::{Emitted, PROGRAMS};

const PATIENTS: &str = "300";

/// Fills the data directory that the programs then share.
async fn seed(data: &str) {
    let arguments =
        ["--data-dir", data, "--listen", "127.0.0.1:0", "--patients", PATIENTS, "--traffic", "off", "--json"];
    let seeded = Program::start_logging("services", &arguments, Stdio::null()).await.unwrap();
    let (code, summary) = seeded.stop().await.unwrap();
    assert_eq!(code, Some(0), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_nine_programs_with_traffic_refusals_faults_and_poison() {
    let folder = Folder::new("signals").unwrap();
    let (data, logs) = (folder.path().join("data"), folder.path().join("logs"));
    std::fs::create_dir_all(&logs).unwrap();
    seed(&data.display().to_string()).await;
    let nine = Nine::start_logging(&data, Some(&logs)).await.unwrap();
    let hub = Hub::new(None).unwrap();
    let stores = Stores::open(&data, None, Access::Shared, Clock::system(), &hub).await.unwrap();
    let people = Particulars::of(&stores).await;
    assert!(people.count() > 600, "the data set is known: {}", people.count());

    let sre = Caller::sign_in(&nine.gateway, "sre").await.unwrap();
    let clinician = Caller::sign_in(&nine.gateway, "clinician").await.unwrap();
    let person = Person::any(&stores).await;
    let provoker = Provoker { nine: &nine, sre: &sre, clinician: &clinician, person: &person };
    let problems = provoker.refusals().await;
    provoker.poison(&stores).await;
    let struck = provoker.faults().await;

    // Among the newest requests is one that billing answers, and one of encounters, whatever the personas did.
    for path in ["claims", "encounters"] {
        clinician.get(&format!("/v1/patients/{}/{path}", person.id)).await.unwrap();
    }

    let mut emitted = Emitted::by(&nine, &sre, &logs).await;
    emitted.told.insert("the lineage of a patient", signals::lineage_of(&sre, &person.id.to_string()).await);
    let headers = signals::event_headers(&stores).await;
    for program in PROGRAMS {
        let found = undeclared(&emitted.metrics[program], CATALOGS);
        assert!(found.is_empty(), "{program} shows what nobody declared: {found:?}");
    }
    emitted.check_spans();
    emitted.check_that_something_happened();
    for told in ["patient.registered", "encounter.scheduled", "traceparent"] {
        assert!(headers.contains(told), "event headers were looked at: no {told}");
    }

    // Those whom personas registered meanwhile are somebody too.
    let everybody = Particulars::of(&stores).await;
    let mut places = vec![("a problem", problems), ("a problem of a fault", struck), ("an event header", headers)];
    let spans = emitted.spans.iter().map(|(program, spans)| (*program, spans.to_string()));
    places.extend(emitted.metrics.into_iter().chain(emitted.logs).chain(emitted.told).chain(spans));
    for (place, text) in &places {
        assert_eq!(everybody.found_in(text), None, "a signal of {place} tells it");
    }
    nine.stop().await.unwrap();
}
