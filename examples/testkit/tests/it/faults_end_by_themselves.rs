//! A fault on purpose strikes, and ends by itself when its lease does; only the sre role may ask for it.

use std::time::Duration;

use http::StatusCode;
use pim_testkit::caller::Caller;
use pim_testkit::program::Program;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_the_gateway_is_gone_when_its_lease_is() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "20", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await.unwrap();
    let gateway = services.told("gateway");
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    let fault = json!({"fault": "error", "percent": 100, "seconds": 2});
    let (status, _) = clinician.put("/v1/admin/chaos/flags/gateway", &fault).await.unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
    let too_long = json!({"fault": "error", "percent": 100, "seconds": 100_000});
    let (status, problem) = sre.put("/v1/admin/chaos/flags/gateway", &too_long).await.unwrap();
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem:#}");
    let (status, armed) = sre.put("/v1/admin/chaos/flags/gateway", &fault).await.unwrap();
    assert_eq!((status, armed["items"].as_array().map(Vec::len)), (StatusCode::OK, Some(1)), "{armed:#}");
    let (status, problem) = clinician.get("/v1/patients?name=a").await.unwrap();
    assert_eq!(
        (status, problem["type"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("urn:pim:problem:unavailable"))
    );
    for _ in 0..200 {
        if clinician.get("/v1/patients?name=a").await.unwrap().0 == StatusCode::OK {
            let (_, left) = sre.get("/v1/admin/chaos/flags").await.unwrap();
            assert_eq!(left["items"], json!([]));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the fault outlived its lease");
}
