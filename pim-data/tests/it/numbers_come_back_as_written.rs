//! Whatever number stands in a Json column comes back as it was written, now and as of then, so that the trail verifies.

use pim_core::id::Id;
use pim_data::cluster::Cluster;
use pim_data::consistency::Consistency;
use pim_data::entity::{Column, ColumnKind};
use pim_data::repository::Page;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::world::{Customer, Folder, ShopResource, cx, read, schema_builder, settings, tell, write};

/// What somebody has measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    id: Id<Customer>,
    version: u64,
    readings: Vec<f64>,
    anything: Json,
}

pim_data::entity! {
    impl Entity for Measured {
        kind: Customer,
        resource: ShopResource::Account,
        table: "measured",
        home: id,
        columns: [Column::new("readings", ColumnKind::Json), Column::new("anything", ColumnKind::Json).shown()],
    }
}

/// The same numbers each time, of all magnitudes and between 0 and 1.
fn drawn(count: usize) -> Vec<f64> {
    let mut state = 7_u64;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state ^ (state >> 31)
    };
    let of_any_size = std::iter::repeat_with(|| f64::from_bits(draw())).filter(|number| number.is_finite());
    let mut numbers: Vec<f64> = of_any_size.take(count).collect();
    numbers.extend((0..count).map(|_| draw() as f64 / u64::MAX as f64));
    // Whole ones as well, around where a float is written with an exponent and where no integer holds it any more.
    numbers.extend((0..count).map(|_| draw() as f64));
    numbers.extend((0..count).map(|_| -((draw() >> 2) as f64)));
    numbers
}

/// What there is at every place where a float, or how it is written, is another.
const EDGES: [f64; 24] = [
    1.0 / 11.0,
    0.1,
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e15,
    1e16,
    -1e16,
    12_345_678_901_234_568.0,
    1e17,
    -1e17,
    9_223_372_036_854_775_808.0,
    -9_223_372_036_854_775_808.0,
    18_446_744_073_709_549_568.0,
    18_446_744_073_709_551_616.0,
    -18_446_744_073_709_551_616.0,
    1e22,
    1e-7,
    1e300,
    -1e300,
    5e-324,
    f64::MAX,
    f64::MIN_POSITIVE,
];

async fn saved(cluster: &Cluster, row: &mut Measured) {
    let mut unit = cluster.begin(&cx(), row.id);
    let permit = write(ShopResource::Account);
    if row.version > 0 {
        unit.load::<Measured>(&permit, row.id).await.expect("loads").expect("is there");
    }
    row.version = unit.save(&permit, row).expect("saves");
    tell(&mut unit, "measured");
    unit.commit().await.expect("commits");
}

fn same(found: &Measured, written: &Measured) {
    for (found, written) in found.readings.iter().zip(&written.readings) {
        assert_eq!(found, written, "{found:e} for {written:e}");
    }
    assert_eq!(found.readings.len(), written.readings.len());
    assert_eq!(found.anything, written.anything);
}

#[tokio::test]
async fn a_number_comes_back_as_the_same_number() {
    let folder = Folder::new();
    let schema = schema_builder().entity::<Measured>(10_002).build().expect("a sound schema");
    let cluster = Cluster::open(settings(&folder, 1), schema).await.expect("opens");
    let anything = json!({
        "whole": [0, -1, i64::MIN, i64::MAX, u64::MAX, 10_000_000_000_000_000_u64],
        "edges": EDGES,
        "deep": [{"a": [[-0.0, {"b": 1e16}]], "text": "-0.0 1e16"}],
    });
    let mut row = Measured { id: Id::random(), version: 0, readings: EDGES.to_vec(), anything };
    row.readings.extend(drawn(400));
    let written = row.clone();
    let permit = read(ShopResource::Account);
    for _ in 0..2 {
        saved(&cluster, &mut row).await;
        let found = cluster.read::<Measured>(&cx(), &permit, row.id, &Consistency::Strong).await.expect("reads");
        let found = found.expect("is there");
        same(&found, &written);
        // The sign of nothing is not kept, on either engine.
        assert!(found.readings[3].is_sign_positive(), "{}", found.readings[3]);
        // What was read is written again.
        row = found;
    }
    row.anything = json!(7);
    saved(&cluster, &mut row).await;
    let periods = cluster.history::<Measured>(&cx(), &permit, row.id, Page::FIRST).await.expect("reads").periods;
    let first = cluster.as_of::<Measured>(&cx(), &permit, row.id, periods[0].valid_from).await.expect("reads");
    same(&first.expect("was there"), &written);
    let report = cluster.verify_audit().await.expect("reads");
    assert!(report.verified, "{:?}", report.findings);
}
