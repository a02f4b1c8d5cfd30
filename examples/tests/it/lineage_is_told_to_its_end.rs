//! A row that was changed more often than a page holds has its lineage, as of any time and compared to the end.

use std::time::Duration;

use http::StatusCode;
use pim_data::repository::PAGE_MAX;
use serde_json::json;

use crate::world::World;

/// Guard: the state is that of the instant, not that of the last version of a page, and whoever is sound agrees.
#[tokio::test]
async fn of_a_row_with_more_versions_than_a_page() {
    let world = World::new().await;
    let patient = world.registered("a").await;
    let path = format!("/v1/patients/{}/transitions", patient.id());
    let versions = u64::from(PAGE_MAX) + 5;
    let (mut between, clinician) = (world.clock.now(), world.clinician());
    for version in 2..=versions {
        world.pass(Duration::from_millis(1));
        let to = if version % 2 == 0 { "active" } else { "suspended" };
        let moved = world.post(&clinician, &path, &version.to_string(), &json!({"to": to})).await;
        assert_eq!(moved.status, StatusCode::OK, "{version}: {:?}", moved.body);
        if version == versions - 2 {
            between = world.clock.now();
        }
    }
    let sre = world.session("sre", &[], None);
    let lineage = format!("/v1/admin/lineage/patient/{}?verify=true", patient.id());
    let now = world.get(&sre, &lineage).await;
    assert_eq!(now.body["state"], json!({"state": "suspended", "version": versions}));
    assert_eq!(now.body["verify"], json!({"audit_verified": true, "agrees": true, "deviations": []}));
    assert_eq!(now.body["changes"].as_array().map(Vec::len), Some(versions as usize));
    assert_eq!(now.body["complete_before"], json!(null), "all of it was shown and compared");
    let then = world.get(&sre, &format!("{lineage}&as_of={between}")).await;
    assert_eq!(then.body["state"], json!({"state": "suspended", "version": versions - 2}));
    assert_eq!(then.body["valid_from"], json!(between));
    assert_eq!(then.body["changes"].as_array().map(Vec::len), Some(versions as usize - 2));
    let brief = world.get(&sre, &format!("/v1/admin/lineage/patient/{}", patient.id())).await;
    assert_eq!((&brief.body["state"], &brief.body["changes"]), (&now.body["state"], &now.body["changes"]));
}
