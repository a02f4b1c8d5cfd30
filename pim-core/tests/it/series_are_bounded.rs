//! A family has no more series than a store of them can bear, as who scrapes it counts them, and a form that can be scraped.

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

/// A declaration as it should be, of a histogram.
const SOUND: Descriptor = Descriptor { name: "shop_wait_seconds", unit: "seconds", ..stock(Kind::Histogram, &[SIDE]) };

fn refused(signal: Descriptor) -> Option<SignalError> {
    let signal: &'static Descriptor = Box::leak(Box::new(signal));
    match signal.labels.len() {
        1 => SignalRegistry::new().histogram::<Side>(signal).err(),
        _ => SignalRegistry::new().histogram::<(Side, Side)>(signal).err(),
    }
}

/// Guard: `form::check`. One declaration out of form, and nobody reads any of a program's metrics.
#[test]
fn what_could_not_be_scraped_is_not_bound() {
    assert_eq!(refused(SOUND), None);
    for name in ["shop.wait_seconds", "1_seconds", "", "shop wait_seconds", "shop_wait_seconds_total"] {
        assert_eq!(refused(Descriptor { name, unit: "", ..SOUND }), Some(SignalError::Name { name }));
    }
    let name = SOUND.name;
    for (label, labels) in [
        ("http.route", &[LabelDescriptor { name: "http.route", ..SIDE }][..]),
        ("le", &[LabelDescriptor { name: "le", ..SIDE }]),
        ("side", &[SIDE, SIDE]),
    ] {
        let labels: &'static [LabelDescriptor] = Box::leak(labels.to_vec().into_boxed_slice());
        assert_eq!(refused(Descriptor { labels, ..SOUND }), Some(SignalError::LabelName { name, label }));
    }
    for buckets in [&[][..], &[0.1, 0.05], &[0.1, 0.1], &[0.1, f64::INFINITY], &[f64::NAN]] {
        let buckets: &'static [f64] = Box::leak(buckets.to_vec().into_boxed_slice());
        assert_eq!(refused(Descriptor { buckets, ..SOUND }), Some(SignalError::Buckets { name }));
    }
    let unit = "bytes";
    assert_eq!(refused(Descriptor { unit, ..SOUND }), Some(SignalError::Unit { name, unit }));
    assert_eq!(refused(Descriptor { help: "One.\nTwo.", ..SOUND }), Some(SignalError::Help { name }));
}
