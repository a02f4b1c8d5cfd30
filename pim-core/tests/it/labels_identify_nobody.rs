//! A label whose values would be persons, records or requests cannot be bound.

use pim_core::signal::{Descriptor, Kind, LabelDescriptor, Purpose, SignalError, SignalRegistry};

pim_core::closed_enum! { enum Plain { A = "a", B = "b" } }
pim_core::closed_enum! { enum Ids { A = "018f2c6e-0000-8000-8000-000000000001" } }
pim_core::closed_enum! { enum Numbers { A = "SYN-99000042" } }

const fn labelled(labels: &'static [LabelDescriptor]) -> Descriptor {
    Descriptor {
        name: "shop_sales",
        kind: Kind::Counter,
        unit: "",
        help: "Sales.",
        labels,
        purpose: Purpose::Red,
        buckets: &[],
        owner: "shop",
        runbook: "",
    }
}

macro_rules! bound {
    ($name:literal, $values:ty, [$($value:literal),+]) => {{
        static SIGNAL: Descriptor = labelled(&[LabelDescriptor { name: $name, values: &[$($value),+] }]);
        SignalRegistry::new().counter::<$values>(&SIGNAL).map(drop)
    }};
}

const fn identifying(label: &'static str) -> Result<(), SignalError> {
    Err(SignalError::Identifying { name: "shop_sales", label })
}

#[test]
fn by_their_names() {
    assert_eq!(bound!("patient_id", Plain, ["a", "b"]), identifying("patient_id"));
    assert_eq!(bound!("request_id", Plain, ["a", "b"]), identifying("request_id"));
    assert_eq!(bound!("user.id", Plain, ["a", "b"]), identifying("user.id"));
    assert_eq!(bound!("user", Plain, ["a", "b"]), identifying("user"));
    assert_eq!(bound!("mail", Plain, ["a", "b"]), identifying("mail"));
    for nobody in [
        bound!("outcome", Plain, ["a", "b"]),
        bound!("user_kind", Plain, ["a", "b"]),
        bound!("paid", Plain, ["a", "b"]),
        bound!("shard_id", Plain, ["a", "b"]),
    ] {
        assert_eq!(nobody, Ok(()));
    }
}

#[test]
fn by_their_values() {
    assert_eq!(bound!("whose", Ids, ["018f2c6e-0000-8000-8000-000000000001"]), identifying("whose"));
    assert_eq!(bound!("whose", Numbers, ["SYN-99000042"]), identifying("whose"));
}
