//! What travels is CloudEvents with fixed names; old payloads are read by new programs, unreadable ones are refused by name.

use pim_core::clock::Timestamp;
use pim_core::context::{RequestId, TraceContext};
use pim_core::shard::{Bucket, Epoch, ShardId};
use pim_events::{
    DecodeError, DomainEvent, EnvelopeError, Event, HEADER_BYTES_MAX, Headers, Origin, Registry, UpcastError,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::rig::Happened;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Moved {
    who: Uuid,
    metres: u32,
}

impl DomainEvent for Moved {
    const TYPE: &'static str = "thing.moved";
    const VERSION: u16 = 3;
    const AGGREGATE: &'static str = "thing";
    fn aggregate_id(&self) -> Uuid {
        self.who
    }
    fn aggregate_version(&self) -> u64 {
        1
    }
}

fn registry() -> Registry {
    let rename = |mut old: serde_json::Value| {
        let feet = old["distance"].as_u64().ok_or("distance is not a number")?;
        old["feet"] = feet.into();
        Ok(old)
    };
    let convert = |mut old: serde_json::Value| {
        let feet = old["feet"].as_u64().ok_or("feet is not a number")?;
        old["metres"] = (feet * 3 / 10).into();
        Ok(old)
    };
    let builder = Registry::builder().event::<Moved>();
    builder.upcast("thing.moved", 2, convert).upcast("thing.moved", 1, rename).build().unwrap()
}

fn event(schema_version: u16, payload: &str) -> Event {
    Event {
        id: Uuid::from_u128(1),
        origin: Origin::Shard(ShardId(3)),
        event_type: Moved::TYPE.into(),
        schema_version,
        time: Timestamp::from_micros(1_767_323_045_000_006),
        home: Uuid::from_u128(2),
        bucket: Bucket::new(130).unwrap(),
        n: 42,
        owner_epoch: Epoch(7),
        aggregate: "thing".into(),
        aggregate_id: Uuid::from_u128(3),
        aggregate_version: 5,
        correlation: RequestId::from_uuid(Uuid::from_u128(4)),
        causation: Some(Uuid::from_u128(5)),
        trace: TraceContext::from_parts(6, 7, true).unwrap(),
        actor: "u-1".into(),
        role: "clinician".into(),
        seq: 99,
        published_at: None,
        payload: RawValue::from_string(payload.into()).unwrap(),
    }
}

/// The names are an interface: other programs read them.
#[test]
fn headers_are_these() {
    let headers = event(3, "{}").headers();
    let shown: Vec<String> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let golden = [
        "ce_specversion=1.0",
        "ce_id=00000000-0000-0000-0000-000000000001",
        "ce_source=shard/3",
        "ce_type=thing.moved",
        "ce_subject=thing/00000000-0000-0000-0000-000000000003",
        "ce_time=2026-01-02T03:04:05.000006Z",
        "ce_dataschema=urn:pim:event:thing.moved:3",
        "ce_partitionkey=00000000-0000-0000-0000-000000000002",
        "aggregate=thing",
        "aggregate_version=5",
        "correlation=00000000-0000-0000-0000-000000000004",
        "traceparent=00-00000000000000000000000000000006-0000000000000007-01",
        "pim-bucket=130",
        "pim-n=42",
        "pim-owner=7",
        "pim-src=shard/3/2",
        "pim-seq=99",
        "pim-actor=u-1",
        "pim-role=clinician",
        "causation=00000000-0000-0000-0000-000000000005",
    ];
    assert_eq!(shown, golden);
}

/// A unit that may append an event may count on the bus to take it: names have at most 64 characters each.
#[test]
fn the_longest_headers_fit() {
    let name = || "n".repeat(64);
    let longest = Event {
        origin: Origin::Shard(ShardId(u16::MAX)),
        event_type: name(),
        schema_version: u16::MAX,
        n: u64::MAX,
        owner_epoch: Epoch(u32::MAX),
        aggregate: name(),
        aggregate_version: u64::MAX,
        actor: name(),
        role: name(),
        seq: u64::MAX,
        ..event(3, "{}")
    };
    assert!(longest.headers().size() <= HEADER_BYTES_MAX, "{}", longest.headers().size());
}

#[test]
fn what_is_written_is_read() {
    for causation in [None, Some(Uuid::from_u128(5))] {
        let sent = Event { causation, ..event(3, r#"{"who":"00000000-0000-0000-0000-000000000009","metres":3}"#) };
        let read = Event::from_wire(&sent.headers(), sent.payload.get()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{sent:?}"));
        assert_eq!(read.decode::<Moved>().unwrap(), Moved { who: Uuid::from_u128(9), metres: 3 });
        assert_eq!((read.home_key().bucket(), read.home_key().uuid()), (sent.bucket, sent.home));
    }
}

#[test]
fn each_missing_or_malformed_header_is_named() {
    let whole = event(3, "{}");
    for (name, _) in whole.headers().iter() {
        if ["aggregate", "pim-src", "causation"].contains(&name) {
            continue;
        }
        let mut headers = Headers::default();
        for (other, value) in whole.headers().iter().filter(|(other, _)| *other != name) {
            headers.set(other, value);
        }
        let read = Event::from_wire(&headers, "{}").unwrap_err();
        assert!(matches!(read, EnvelopeError::Missing { name: missing } if missing == name), "{name}: {read}");
    }
    for (name, value) in [
        ("pim-n", "-1"),
        ("ce_specversion", "2.0"),
        ("ce_dataschema", "urn:pim:event:thing.other:3"),
        ("ce_dataschema", "urn:pim:event:thing.moved"),
        ("ce_subject", "thing"),
        ("ce_type", "thing.\0"),
    ] {
        let mut headers = whole.headers();
        headers.set(name, value);
        assert_eq!(Event::from_wire(&headers, "{}").unwrap_err(), EnvelopeError::Malformed { name });
    }
    assert_eq!(Event::from_wire(&whole.headers(), "{").unwrap_err(), EnvelopeError::Payload);
}

/// Guard: `Event::from_wire` leaves names to whoever appends. Another publisher's event is passed over; refused, it would leave a gap
/// in its key for ever.
#[test]
fn types_of_others_are_read() {
    for event_type in ["com.example/Thing Moved", "größe", ""] {
        let sent = Event { event_type: event_type.into(), ..event(3, "{}") };
        assert_eq!(Event::from_wire(&sent.headers(), "{}").unwrap().event_type, event_type);
    }
}

/// One fixture a version: what was written then is read now.
#[test]
fn old_payloads_are_brought_up_to_date() {
    let who = r#""who":"00000000-0000-0000-0000-000000000009""#;
    let fixtures = [(1, r#""distance":100"#), (2, r#""feet":100"#), (3, r#""metres":30"#)];
    for (version, field) in fixtures {
        let new = registry().upcast(event(version, &format!("{{{who},{field}}}"))).unwrap();
        assert_eq!(new.decode::<Moved>().unwrap(), Moved { who: Uuid::from_u128(9), metres: 30 });
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let newer = registry().upcast(event(4, "{}")).unwrap_err();
    assert_eq!(newer, UpcastError::UnknownVersion { found: 4, known: 3 });
    let broken = registry().upcast(event(1, "{}")).unwrap_err();
    assert_eq!(broken, UpcastError::Refused { from: 1, reason: "distance is not a number" });
    let stranger = Event { event_type: "no.such".into(), ..event(1, "{}") };
    assert_eq!(registry().upcast(stranger).unwrap_err(), UpcastError::UnknownType);
    assert!(matches!(event(1, "{}").decode::<Moved>(), Err(DecodeError::Version { found: 1, .. })));
    assert!(matches!(event(3, "{}").decode::<Happened>(), Err(DecodeError::Type { .. })));
    let secret = event(3, r#"{"who":"secret"}"#).decode::<Moved>().unwrap_err();
    assert!(!format!("{secret} {secret:?}").contains("secret"), "an error never quotes the payload");
}
