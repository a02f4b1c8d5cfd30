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
