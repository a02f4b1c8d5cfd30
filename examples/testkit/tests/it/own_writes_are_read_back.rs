//! Whoever has written finds it in every read model that the answer's token is brought to, without waiting by themselves.

use pim_testkit::caller::Caller;
use pim_testkit::folder::Folder;
use pim_testkit::nine::Nine;
use pim_testkit::program::Program;

/// Enough that a model that is asked too early would be caught at least once.
const PATIENTS: u64 = 20;

async fn check(gateway: &str) {
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    for number in 0..PATIENTS {
        let body = clinician.registration(number);
        let (patient, token) = clinician.post_for_token("/v1/patients", &body).await.unwrap();
        let id = patient["id"].as_str().unwrap();
        let summary = clinician.get_after(&format!("/v1/patients/{id}/summary"), &token).await.unwrap();
        assert_eq!((summary.0.as_u16(), summary.1["patient_id"].as_str()), (200, Some(id)), "{:#}", summary.1);
        let timeline = clinician.get_after(&format!("/v1/patients/{id}/timeline"), &token).await.unwrap();
        assert_eq!(timeline.1["items"].as_array().map(Vec::len), Some(1), "{:#}", timeline.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "5", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await.unwrap();
    check(services.told("gateway")).await;
    let (code, summary) = services.stop().await.unwrap();
    assert_eq!(code, Some(0), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_processes_of_their_own() {
    let folder = Folder::new("read-back").unwrap();
    let nine = Nine::start(folder.path()).await.unwrap();
    check(&nine.gateway).await;
    nine.stop().await.unwrap();
}
