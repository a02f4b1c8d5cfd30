//! An id keeps its bucket through text, bytes and JSON, and SQL reads the same bucket out of it.

use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::shard::Bucket;
use proptest::prelude::*;
use uuid::Uuid;

pim_core::id_kinds! {
    /// A thing.
    Thing = "thing",
    /// Another thing.
    Other = "other",
}

/// What SQL does: the twelve bits are the last three digits of the third group.
fn bucket_as_sql_reads_it(text: &str) -> u16 {
    u16::from_str_radix(&text[15..18], 16).unwrap()
}

proptest! {
    #[test]
    fn through_every_form(bucket in 0..4096_u16, micros in 0..4_000_000_000_000_000_i64, scope: Vec<u8>, ordinal: u32) {
        let bucket = Bucket::new(bucket).unwrap();
        let at = Timestamp::from_micros(micros);
        for id in [Id::<Thing>::child_of(bucket, at), Id::child_derived(bucket, at, &scope, ordinal)] {
            prop_assert_eq!(id.bucket(), bucket);
            let text = id.to_string();
            let again: Id<Thing> = text.parse().unwrap();
            prop_assert_eq!((again, again.bucket()), (id, bucket));
            prop_assert_eq!(bucket_as_sql_reads_it(&text), bucket.get());
            let json: Id<Thing> = serde_json::from_str(&serde_json::to_string(&id).unwrap()).unwrap();
            prop_assert_eq!(json, id);
            prop_assert_eq!(Id::<Thing>::from_uuid(id.uuid()), Ok(id));
        }
    }

    #[test]
    fn derived_from_their_scope_alone(scope: Vec<u8>, ordinal: u32) {
        let id = Id::<Thing>::derive(&scope, ordinal);
        prop_assert_eq!(Id::derive(&scope, ordinal), id);
        prop_assert_ne!(Id::<Thing>::derive(&scope, ordinal.wrapping_add(1)), id);
        prop_assert_ne!(Id::<Other>::derive(&scope, ordinal).uuid(), id.uuid());
    }

    #[test]
    fn derived_children_are_of_their_instant_too(millis in 0..4_000_000_000_000_i64, scope: Vec<u8>, ordinal: u32) {
        let bucket = Bucket::new(7).unwrap();
        let at = |micros: i64| Id::<Thing>::child_derived(bucket, Timestamp::from_micros(micros), &scope, ordinal);
        prop_assert_eq!(at(millis * 1000), at(millis * 1000 + 999));
        prop_assert!(at(millis * 1000) < at(millis * 1000 + 1000));
        prop_assert_eq!(at(0).uuid().as_bytes()[8..].to_vec(), at(millis * 1000).uuid().as_bytes()[8..].to_vec());
    }

    #[test]
    fn later_children_sort_later(bucket in 0..4096_u16, millis in 0..4_000_000_000_000_i64) {
        let at = |millis: i64| Id::<Thing>::child_of(Bucket::new(bucket).unwrap(), Timestamp::from_micros(millis * 1000));
        prop_assert!(at(millis) < at(millis + 1));
    }
}

#[test]
fn other_forms_are_no_ids() {
    let id = Id::<Thing>::derive(b"scope", 0);
    let text = id.to_string();
    let upper = text.to_uppercase();
    let refused = [
        String::new(),
        "x".to_owned(),
        if upper == text { format!("{text} ") } else { upper },
        format!("{{{text}}}"),
        format!("urn:uuid:{text}"),
        text.replace('-', ""),
        Uuid::nil().to_string(),
        Uuid::new_v4().to_string(),
        Uuid::now_v7().to_string(),
        // Version 8 by its digit, but of another variant than RFC 9562.
        format!("{}0{}", &text[..19], &text[20..]),
        format!("{}e{}", &text[..19], &text[20..]),
    ];
    for form in refused {
        assert!(form.parse::<Id<Thing>>().is_err(), "{form}");
    }
    assert_eq!("x".parse::<Id<Thing>>().unwrap_err().to_string(), "thing id is not a hyphenated lower-case uuid");
}

#[test]
fn every_bucket_is_met_by_registrations() {
    let seen: std::collections::BTreeSet<_> = (0..60_000).map(|n| Id::<Thing>::derive(b"s", n).bucket()).collect();
    assert_eq!(seen.len(), Bucket::COUNT);
}
