//! Every rule of a map has a smallest file that breaks it, and a map follows only the one that it names.

use std::collections::BTreeSet;

use pim_core::shard::{Bucket, Epoch, FindingCode, MapError, Severity, ShardId, ShardMap, ShardState};

const GOOD: &str = r#"format = 1
keyspace = "k"
version = 1

[[shards]]
id = 0
name = "a"
state = "live"
[[shards.endpoints]]
id = "a1"
role = "primary"
dsn_ref = "a"

[[shards]]
id = 1
name = "b"
state = "live"
[[shards.endpoints]]
id = "b1"
role = "primary"
dsn_ref = "b"
zone = "z1"

[[ranges]]
first = 0
last = 2047
shard = 0
epoch = 1

[[ranges]]
first = 2048
last = 4095
shard = 1
epoch = 1
"#;

/// The endpoint of the first shard.
const ENDPOINT: &str = "[[shards.endpoints]]\nid = \"a1\"\nrole = \"primary\"\ndsn_ref = \"a\"";

const REPLICA: &str =
    "zone = \"z1\"\n[[shards.endpoints]]\nid = \"b2\"\nrole = \"replica\"\ndsn_ref = \"b2\"\nzone = \"z1\"";

fn edited(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

/// The good map's successor, with an edit.
fn successor(from: &str, to: &str) -> String {
    let parent = ShardMap::parse(GOOD).unwrap().digest();
    let next = GOOD.replacen("version = 1", &format!("version = 2\nparent = \"{parent}\""), 1);
    assert!(next.contains(from), "{from}");
    next.replacen(from, to, 1)
}

fn codes(error: &MapError) -> Vec<FindingCode> {
    error.findings().iter().map(|finding| finding.code).collect()
}

/// What one map file is refused for.
fn of_file() -> Vec<(String, Vec<FindingCode>)> {
    use FindingCode as F;
    vec![
        (edited("format = 1", "format = "), vec![F::Syntax]),
        (edited("format = 1", "format = 1\ncolour = 1"), vec![F::Syntax]),
        (edited("state = \"live\"", "state = \"awake\""), vec![F::Syntax]),
        (edited(ENDPOINT, "endpoints = [\"postgres://u:password@h/d\"]"), vec![F::Syntax]),
        (edited("role = \"primary\"", "role = \"password\""), vec![F::Syntax]),
        (edited("role = \"primary\"", "role = \"primary\"\n\"host=h password=p\" = 1"), vec![F::Syntax]),
        (edited("format = 1", "format = 2"), vec![F::Format]),
        ("format = 1\nkeyspace = \"k\"\nversion = 1".to_owned(), vec![F::ShardCount, F::Gap]),
        (edited("id = 1", "id = 0"), vec![F::Duplicate, F::UnknownShard]),
        (edited("id = 1", "id = 65535").replace("shard = 1", "shard = 65535"), vec![F::ReservedShard]),
        (edited("name = \"b\"", "name = \"a\""), vec![F::Duplicate]),
        (edited("id = \"b1\"", "id = \"a1\""), vec![F::Duplicate]),
        (edited("name = \"b\"", "name = \"b b\""), vec![F::Name]),
        (edited("keyspace = \"k\"", "keyspace = \"\""), vec![F::Name]),
        (edited("dsn_ref = \"b\"", "dsn_ref = \"b\u{e9}\""), vec![F::Name]),
        (edited("first = 2048", "first = 2049"), vec![F::Gap]),
        (edited("last = 4095", "last = 4094"), vec![F::Gap]),
        (edited("first = 2048", "first = 2047"), vec![F::Overlap]),
        (edited("last = 4095", "last = 4096"), vec![F::Range]),
        (edited("last = 2047", "last = 2047\nshard = 0\nepoch = 1\n[[ranges]]\nfirst = 9\nlast = 8"), vec![F::Range]),
        (edited("shard = 1", "shard = 9"), vec![F::UnknownShard]),
        (edited("name = \"b\"\nstate = \"live\"", "name = \"b\"\nstate = \"retired\""), vec![F::RetiredOwner]),
        (edited("role = \"primary\"", "role = \"replica\""), vec![F::Primary]),
        (GOOD.replacen("zone = \"z1\"", &REPLICA.replace("replica", "primary"), 1), vec![F::Primary]),
        (edited("dsn_ref = \"b\"", "dsn_ref = \"postgres://u:p@h/d\""), vec![F::InlineSecret]),
        (edited("dsn_ref = \"b\"", "dsn_ref = \"host=h password=p\""), vec![F::InlineSecret]),
        (edited("version = 1", "version = 0"), vec![F::Version]),
        (edited("version = 1", "version = 2"), vec![F::Parent]),
        (edited("version = 1", &format!("version = 1\nparent = \"{}\"", "0".repeat(64))), vec![F::Parent]),
        (edited("version = 1", &format!("version = 2\nparent = \"{}\"", "+f".repeat(32))), vec![F::Parent]),
        (edited("epoch = 1", "epoch = 0"), vec![F::Epoch, F::Gap]),
        (edited("epoch = 1", "epoch = 4294967295"), vec![F::Epoch]),
    ]
}

/// What a successor of the good map is refused or warned for.
fn of_step() -> Vec<(String, Vec<FindingCode>)> {
    use FindingCode as F;
    let moved = |to: &str| successor("last = 2047", to);
    let parent = ShardMap::parse(GOOD).unwrap().digest().to_string();
    vec![
        (successor("keyspace = \"k\"", "keyspace = \"other\""), vec![F::Keyspace]),
        (successor("version = 2", "version = 3"), vec![F::Version]),
        (successor(&parent, &"0".repeat(64)), vec![F::Parent]),
        (
            moved("last = 2000\nshard = 0\nepoch = 1\n[[ranges]]\nfirst = 2001\nlast = 2047\nshard = 1\nepoch = 1\n#"),
            vec![F::Epoch],
        ),
        (successor("epoch = 1", "epoch = 3"), vec![F::Epoch]),
        (successor("epoch = 1", "epoch = 2"), vec![]),
        (
            successor("id = 0", "id = 5").replacen("shard = 0\nepoch = 1", "shard = 5\nepoch = 2", 1),
            vec![F::UnknownShard, F::StepSize],
        ),
        (
            successor("name = \"b\"\nstate = \"live\"", "name = \"b\"\nstate = \"draining\"")
                .replacen("first = 2048", "first = 2048\nlast = 4095\nshard = 1\nepoch = 1\n[[ranges]]\nfirst = 0", 1)
                .replacen("first = 0\nlast = 2047", "first = 1\nlast = 2047", 1)
                .replacen(
                    "first = 0\nlast = 4095\nshard = 1\nepoch = 1",
                    "first = 0\nlast = 0\nshard = 1\nepoch = 2",
                    1,
                ),
            vec![F::DrainingOwner],
        ),
        (
            moved("last = 1000\nshard = 0\nepoch = 1\n[[ranges]]\nfirst = 1001\nlast = 2047\nshard = 1\nepoch = 2\n#"),
            vec![F::StepSize, F::Skew],
        ),
        (successor("zone = \"z1\"", REPLICA), vec![F::Zone]),
    ]
}

/// Trailing keys of a range that an edit has closed already.
fn tidied(text: &str) -> String {
    text.replace("#\nshard = 0\nepoch = 1\n", "")
}

#[test]
fn each_rule_of_a_file_is_broken_by_a_smallest_file() {
    assert!(ShardMap::parse(GOOD).is_ok());
    for (text, expected) in of_file() {
        let error = ShardMap::parse(&text).expect_err(&text);
        assert_eq!(codes(&error), expected, "{text}\n{error}");
        for finding in error.findings() {
            assert!(!finding.fix.is_empty() && finding.severity == Severity::Error);
            assert!(!finding.to_string().contains("password"), "a secret is not repeated");
        }
        assert!(!error.to_string().contains("password"), "a secret is not repeated");
    }
}

#[test]
fn each_rule_of_a_step_is_broken_by_a_smallest_step() {
    let good = ShardMap::parse(GOOD).unwrap();
    let plain = ShardMap::parse(&successor("name = \"b\"", "name = \"bb\"")).unwrap();
    assert_eq!(good.findings_on(&plain, 1024), []);
    for (text, expected) in of_step() {
        let text = tidied(&text);
        let next = ShardMap::parse(&text).expect(&text);
        let found: Vec<_> = good.findings_on(&next, 1024).iter().map(|finding| finding.code).collect();
        assert_eq!(found, expected, "{text}");
        let only_warned = expected.iter().all(|code| matches!(code, FindingCode::Skew | FindingCode::Zone));
        assert_eq!(good.check_successor(&next, 1024).is_ok(), only_warned, "{text}");
    }
}

#[test]
fn every_code_is_seen() {
    let all = "syntax format shard-count duplicate name gap overlap range unknown-shard reserved-shard retired-owner primary \
               inline-secret version parent epoch keyspace step-size draining-owner skew zone";
    let seen: BTreeSet<_> =
        of_file().into_iter().chain(of_step()).flat_map(|(_, codes)| codes).map(FindingCode::name).collect();
    assert_eq!(seen, all.split_whitespace().collect());
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = ShardMap::parse(&edited("id = 1", "id = \"one\"")).unwrap_err();
    assert!(error.to_string().contains("line 15, column 6: "), "{error}");
    let error = ShardMap::parse(&edited("[[ranges]]", "colour = 1\n[[ranges]]")).unwrap_err();
    assert!(error.to_string().contains("line 24, column 1: "), "{error}");
    let error = ShardMap::parse(&edited("version = 1\n", "")).unwrap_err();
    assert!(error.to_string().contains("line 1, column 1: "), "{error}");
}

#[test]
fn maps_chain_by_digest() {
    let first = ShardMap::even(4).unwrap();
    let second = first.reassign([Bucket::new(7).unwrap()], ShardId(3)).unwrap();
    let third = second.fenced().unwrap();
    assert_eq!(second.parent(), Some(first.digest()));
    assert_eq!(third.parent(), Some(second.digest()));
    for map in [&first, &second, &third] {
        assert_eq!(ShardMap::parse(&map.to_toml()).unwrap(), *map);
    }
    // The same numbers on another parent are another map, and do not follow.
    let other = first.reassign([Bucket::new(8).unwrap()], ShardId(3)).unwrap();
    let forged = other.fenced().unwrap();
    assert_eq!(codes(&second.check_successor(&forged, 1024).unwrap_err())[0], FindingCode::Parent);
    assert!(second.check_successor(&third, 1024).is_ok());
    assert!(first.check_successor(&third, 1024).is_err(), "no version is skipped");
    assert!(second.check_successor(&second, 1024).is_err(), "no map follows itself");
    let parsed = ShardMap::parse(&second.to_toml().replacen("epoch = 2", "epoch = 3", 1)).unwrap();
    assert_ne!(parsed.digest(), second.digest(), "the digest covers epochs");
}

#[test]
fn what_cannot_be_reassigned_is_refused() {
    let map = ShardMap::parse(&edited("name = \"b\"\nstate = \"live\"", "name = \"b\"\nstate = \"draining\"")).unwrap();
    let bucket = Bucket::new(0).unwrap();
    assert_eq!(codes(&map.reassign([bucket], ShardId(1)).unwrap_err()), [FindingCode::DrainingOwner]);
    assert_eq!(codes(&map.reassign([bucket], ShardId(9)).unwrap_err()), [FindingCode::UnknownShard]);
    let away = map.reassign([Bucket::new(4000).unwrap()], ShardId(0)).unwrap();
    assert_eq!(away.owner(Bucket::new(4000).unwrap()).1.0, 2);
    assert!(ShardMap::even(0).is_err() && ShardMap::even(1025).is_err() && ShardMap::even(1024).is_ok());
}

/// A step that was made while a shard drains can be taken back: it has its buckets again, and drains when somebody says so again.
#[test]
fn what_a_draining_shard_gave_away_comes_back() {
    let live = ShardMap::parse(GOOD).unwrap();
    let draining = "name = \"b\"\nstate = \"draining\"";
    let second = ShardMap::parse(&successor("name = \"b\"\nstate = \"live\"", draining)).unwrap();
    assert!(live.check_successor(&second, 1024).is_ok());
    let bucket = Bucket::new(4000).unwrap();
    let third = second.reassign([bucket], ShardId(0)).unwrap();

    let back = third.back_to(&second).unwrap();
    assert_eq!(back.owner(bucket), (ShardId(1), Epoch(3)));
    assert_eq!(back.shards()[1].state, ShardState::Live);
    // The buckets are there: from here the same way says that it drains, and after that there is nothing left to do.
    let drains = back.back_to(&second).unwrap();
    assert_eq!(drains.shards(), second.shards());
    assert!(drains.back_to(&second).unwrap().is_like(&drains));
    // Where it gets nothing it goes on draining.
    assert_eq!(second.fenced().unwrap().back_to(&second).unwrap().shards(), second.shards());
    assert_eq!(third.back_to(&live).unwrap().shards(), live.shards());
}

/// Without a rise a fence would let everybody pass who holds the map before.
#[test]
fn an_epoch_that_cannot_rise_is_refused() {
    let worn = ShardMap::parse(&GOOD.replace("epoch = 1", "epoch = 4294967293")).unwrap();
    let last = worn.fenced().unwrap();
    assert!(last.buckets_of(ShardId(1)).all(|(_, epoch)| epoch == Epoch::MAX));
    let bucket = Bucket::new(0).unwrap();
    let moved = worn.reassign([bucket], ShardId(1)).unwrap();
    for refused in
        [last.fenced(), last.fenced_on(ShardId(1)), last.reassign([bucket], ShardId(1)), moved.back_to(&worn)]
    {
        let codes: BTreeSet<_> = codes(&refused.unwrap_err()).into_iter().map(FindingCode::name).collect();
        assert_eq!(codes, BTreeSet::from(["epoch"]));
    }
}

/// The chain cannot lead back to where it has been: neither by the old map itself, nor by one that names an old parent, nor by
/// one whose parent is its own successor.
#[test]
fn no_chain_of_maps_has_a_cycle() {
    let first = ShardMap::even(2).unwrap();
    let second = first.fenced().unwrap();
    let third = second.fenced().unwrap();
    let refused = |next: &ShardMap| codes(&third.check_successor(next, 4096).unwrap_err());
    assert_eq!(refused(&first), [FindingCode::Version, FindingCode::Parent, FindingCode::Epoch]);
    assert_eq!(refused(&second), [FindingCode::Version, FindingCode::Parent, FindingCode::Epoch]);

    let raised = |map: &ShardMap, version: u64, parent: &ShardMap| {
        let text = map.to_toml();
        let (own, old) = (format!("version = {}", map.version()), map.parent().unwrap().to_string());
        let text = text.replacen(&own, &format!("version = {version}"), 1);
        ShardMap::parse(&text.replacen(&old, &parent.digest().to_string(), 1)).unwrap()
    };
    // An old map under the next number: its epochs have been used. With newer ones as well, its parent is old.
    assert_eq!(refused(&raised(&second, 4, &third)), [FindingCode::Epoch]);
    let fourth = third.fenced().unwrap();
    assert_eq!(refused(&raised(&fourth, 4, &first)), [FindingCode::Parent]);
    assert_eq!(refused(&raised(&fourth, 4, &fourth)), [FindingCode::Parent]);
    assert!(third.check_successor(&raised(&fourth, 4, &third), 4096).is_ok());
}

#[test]
fn a_member_that_is_missing_is_named() {
    let refused = ShardMap::parse(&edited("keyspace = \"k\"", "")).expect_err("is refused").to_string();
    assert!(refused.contains("missing field `keyspace`"), "{refused}");
}
