//! The servers of a lab are found again by their folder, change roles, and leave nothing behind.

use std::fs;

use pim_servers::fleet::{Fleet, FleetError};

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn a_standby_takes_over_and_the_old_primary_follows() {
    let folder = std::env::temp_dir().join(format!("pim-fleet-{}", std::process::id()));
    drop(Fleet::create(&folder, 2).expect("starts"));
    assert!(matches!(Fleet::create(&folder, 2), Err(FleetError::Exists { .. })));

    let fleet = Fleet::open(&folder).expect("is found again");
    let secret = || fs::read_to_string(fleet.secrets().join("shard-1")).expect("a secret");
    let before = secret();
    let roles = || {
        let state = fleet.state().expect("answers");
        state.into_iter().map(|it| (it.primary.role, it.standby.role, it.is_synchronous)).collect::<Vec<_>>()
    };
    assert_eq!(roles(), [("primary", "standby", true); 2]);
    assert_eq!(fleet.promote(1).expect("takes over"), "shard_1_b");
    assert_eq!(roles(), [("primary", "standby", true); 2]);
    assert_ne!(secret(), before, "the secret names the new primary");
    assert_eq!(fleet.promote(1).expect("and back"), "shard_1_a");
    assert_eq!(secret().rsplit('/').next(), before.rsplit('/').next());
    assert!(matches!(fleet.promote(2), Err(FleetError::NoShard { shard: 2, shards: 2 })));

    Fleet::remove(&folder).expect("stops");
    assert!(!folder.exists());
    assert!(matches!(Fleet::open(&folder), Err(FleetError::Absent { .. })));
}

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn servers_of_a_shard_come_and_go_beside_the_others() {
    let folder = std::env::temp_dir().join(format!("pim-fleet-grows-{}", std::process::id()));
    let mut fleet = Fleet::create(&folder, 1).expect("starts");
    assert!(matches!(fleet.take_away(), Err(FleetError::Shards { shards: 0 })), "the only one stays");
    assert_eq!(fleet.add().expect("starts"), 1);
    let fleet = Fleet::open(&folder).expect("is found again");
    let roles: Vec<_> = fleet.state().expect("answers").iter().map(|it| (it.shard, it.is_synchronous)).collect();
    assert_eq!(roles, [(0, true), (1, true)]);
    let secrets = || ["shard-1", "shard-1-standby"].map(|name| fs::read(fleet.service_secrets().join(name)).is_ok());
    assert_eq!(secrets(), [true; 2], "services find it");
    // What somebody else has begun and left does not count, and is in nobody's way.
    assert_eq!(Fleet::open(&folder).expect("is there").take_away().expect("stops"), 1);
    assert_eq!((secrets(), Fleet::open(&folder).expect("is there").shards()), ([false; 2], 1));
    let mut fleet = Fleet::open(&folder).expect("is there");
    fs::write(fleet.secrets().join("shard-1"), "half of one").expect("writes");
    assert_eq!(fleet.add().expect("starts anew"), 1);
    assert!(fleet.state().expect("answers")[1].is_synchronous);
    Fleet::remove(&folder).expect("stops");
    assert!(!folder.exists());
}
