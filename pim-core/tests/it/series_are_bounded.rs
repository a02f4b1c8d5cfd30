//! A family has no more series than a store of them can bear, as who scrapes it counts them.

use pim_core::signal::{Descriptor, Kind, LATENCY_SECONDS, LabelDescriptor, Purpose, SignalError, SignalRegistry};

pim_core::closed_enum! { enum Aisle { A = "a", B = "b", C = "c", D = "d", E = "e", F = "f", G = "g", H = "h", I = "i" } }
pim_core::closed_enum! {
    enum Shelf {
        A = "a", B = "b", C = "c", D = "d", E = "e", F = "f", G = "g", H = "h", I = "i", J = "j", K = "k", L = "l", M = "m",
    }
}
pim_core::closed_enum! { enum Side { A = "a", B = "b" } }

const AISLE: LabelDescriptor =
    LabelDescriptor { name: "aisle", values: &["a", "b", "c", "d", "e", "f", "g", "h", "i"] };
const SHELF: LabelDescriptor =
    LabelDescriptor { name: "shelf", values: &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"] };
const SIDE: LabelDescriptor = LabelDescriptor { name: "side", values: &["a", "b"] };

const fn stock(kind: Kind, labels: &'static [LabelDescriptor]) -> Descriptor {
    let buckets: &[f64] = if matches!(kind, Kind::Histogram) { LATENCY_SECONDS } else { &[] };
    Descriptor {
        name: "shop_stock",
        kind,
        unit: "",
        help: "Stock.",
        labels,
        purpose: Purpose::Use,
        buckets,
        owner: "shop",
        runbook: "",
    }
}

#[test]
fn a_histogram_counts_with_all_of_its_buckets() {
    static FITS: Descriptor = stock(Kind::Histogram, &[AISLE, SHELF]);
    static ABOVE: Descriptor = stock(Kind::Histogram, &[AISLE, SHELF, SIDE]);
    static COUNTED: Descriptor = stock(Kind::Counter, &[AISLE, SHELF, SIDE]);
    let mut registry = SignalRegistry::new();
    registry.histogram::<(Aisle, Shelf)>(&FITS).unwrap();
    let shown = registry.encode().lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(shown, 117 * 17, "what is counted is what is shown");

    let refused = SignalRegistry::new().histogram::<(Aisle, Shelf, Side)>(&ABOVE).map(drop);
    assert_eq!(refused, Err(SignalError::Series { name: "shop_stock", series: 234 * 17 }));
    assert!(SignalRegistry::new().counter::<(Aisle, Shelf, Side)>(&COUNTED).is_ok());
}
