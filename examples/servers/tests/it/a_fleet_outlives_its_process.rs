//! The servers of a lab are found again by their folder, change roles, and leave nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pim_servers::fleet::{Fleet, FleetError};
use pim_servers::local::{LocalServer, Stop};
use pim_servers::programs::Programs;
use pim_servers::temporary::TemporaryFleet;

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

/// Guard: what was left where somebody was broken off is in nobody's way, and nothing else is taken for that.
#[test]
fn what_is_left_of_one_goes_too() {
    let folder = std::env::temp_dir().join(format!("pim-fleet-left-{}", std::process::id()));
    let made = |names: &[&str]| names.iter().try_for_each(|name| fs::create_dir_all(folder.join(name)));
    for left in [&[""][..], &["secrets"], &["shard_0_a/data", "unsharded/data", "service-secrets"]] {
        made(left).expect("is made");
        Fleet::remove(&folder).expect("goes");
        assert!(!folder.exists(), "{left:?}");
        assert!(matches!(Fleet::remove(&folder), Err(FleetError::Absent { .. })));
    }
    made(&["shard_0_a", "letters"]).expect("is made");
    assert!(matches!(Fleet::remove(&folder), Err(FleetError::Absent { .. })));
    assert!(folder.join("letters").exists() && folder.join("shard_0_a").exists());
    fs::remove_dir_all(&folder).expect("goes");
}

/// Guards: a promotion that was broken off is gone on with, wherever that was; a standby that is lost is made anew.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn what_was_broken_off_is_gone_on_with() {
    let folder = std::env::temp_dir().join(format!("pim-fleet-resumes-{}", std::process::id()));
    let fleet = Fleet::create(&folder, 1).expect("starts");
    let roles = || {
        let state = fleet.state().expect("answers").remove(0);
        (state.primary.name, state.primary.role, state.standby.role, state.is_synchronous)
    };
    assert!(matches!(fleet.rejoin(0), Err(FleetError::Follows { shard: 0, .. })));
    let (a, b) = fleet.servers_of(0).expect("two servers");
    // The standby has taken over, and no secret names it.
    a.stop(Stop::Fast).expect("stops");
    b.promote().expect("takes over");
    assert!(matches!(fleet.rejoin(0), Err(FleetError::NoPrimary { shard: 0, found: "stopped", .. })));
    assert_eq!(fleet.promote(0).expect("goes on"), "shard_0_b");
    assert_eq!(roles(), ("shard_0_b".to_owned(), "primary", "standby", true));
    // The other one's data have been removed in part; then all of them. The primary keeps a slot for it.
    let (b, a) = fleet.servers_of(0).expect("two servers");
    for gone in ["shard_0_a/data/postgresql.conf", "shard_0_a"] {
        let (_, a) = fleet.servers_of(0).expect("two servers");
        a.kill().expect("dies");
        // The primary knows by itself, a moment later.
        let (primary, _) = fleet.servers_of(0).expect("two servers");
        let sends = "SELECT count(*) FROM pg_stat_replication";
        let give_up = Instant::now() + Duration::from_secs(60);
        while primary.sql("postgres", sends).expect("answers") != "0" {
            assert!(Instant::now() < give_up, "it sends to nobody any more");
        }
        let gone = folder.join(gone);
        if gone.is_dir() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) }.expect("is gone");
        assert_eq!(roles(), ("shard_0_b".to_owned(), "primary", "missing", false));
        assert!(matches!(fleet.promote(0), Err(FleetError::NoStandby { shard: 0, found: "missing", .. })));
        assert_eq!(fleet.rejoin(0).expect("is copied"), "shard_0_a");
        assert_eq!(roles(), ("shard_0_b".to_owned(), "primary", "standby", true));
    }
    // Whoever was the primary before and is started by hand does not become it again.
    drop(a);
    let before = folder.join("before");
    b.stop(Stop::Fast).expect("stops");
    copy(&folder.join("shard_0_b"), &before);
    b.start().expect("starts");
    assert_eq!(fleet.promote(0).expect("takes over"), "shard_0_a");
    let (a, b) = fleet.servers_of(0).expect("two servers");
    b.kill().expect("dies");
    a.stop(Stop::Immediate).expect("stops");
    fs::remove_dir_all(folder.join("shard_0_b")).expect("is gone");
    copy(&before, &folder.join("shard_0_b"));
    fleet.servers_of(0).expect("two servers").1.start().expect("starts");
    assert!(matches!(fleet.promote(0), Err(FleetError::NoStandby { shard: 0, found: "primary", .. })));
    Fleet::remove(&folder).expect("stops");
}

/// Guards: nothing is copied over whoever has taken over and was not told of, because all write to it; be the old one started
/// again, or both stopped in between.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn what_programs_wrote_to_a_primary_that_no_secret_names_stays() {
    let fleet = TemporaryFleet::new(1).expect("starts");
    let rows = |server: &LocalServer| server.sql("shard-0", "SELECT n FROM written").expect("answers");
    let mut last = None;
    for is_stopped in [false, true] {
        let (old, new) = fleet.servers_of(0).expect("two servers");
        old.stop(Stop::Fast).expect("stops");
        new.promote().expect("takes over");
        old.start().expect("starts");
        assert!(fleet.state().expect("answers")[0].is_succeeded);
        assert!(!fleet.acknowledges_alone(0).expect("is known"), "its commits wait for whoever has taken over");
        new.sql("shard-0", "CREATE TABLE IF NOT EXISTS written (n int); INSERT INTO written VALUES (7)")
            .expect("writes");
        if is_stopped {
            // No checkpoint tells of the new history.
            new.stop(Stop::Immediate).expect("stops");
        }
        let refusal = fleet.rejoin(0).expect_err("would remove it");
        assert!(matches!(&refusal, FleetError::Succeeded { shard: 0, server } if server == new.name()), "{refusal}");
        assert_eq!(fleet.promote(0).expect("goes on"), new.name());
        last = Some(new);
    }
    assert_eq!(last.map(|primary| rows(&primary)).as_deref(), Some("7\n7"));
    let state = fleet.state().expect("answers").remove(0);
    assert_eq!((state.standby.role, state.is_synchronous, state.is_succeeded), ("standby", true, false));
}

/// Guards: a server without its data, or with a part of the other one's, is the one that it was before.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn who_has_lost_its_data_is_not_taken_for_the_other_one() {
    let fleet = TemporaryFleet::new(1).expect("starts");
    let folder = fleet.secrets().with_file_name("");
    let roles = || {
        let state = fleet.state().expect("answers").remove(0);
        (state.primary.name, state.primary.role, state.standby.role, state.is_synchronous)
    };
    let lose = |name: &str| {
        let (a, b) = fleet.servers_of(0).expect("two servers");
        let lost = if a.name() == name { a } else { b };
        lost.kill().expect("dies");
        fs::remove_dir_all(folder.join(name)).expect("is gone");
    };
    // A directory in the place of a file: no secret is told.
    let in_the_way = fleet.secrets().join(".shard-0-owner.new");
    for (primary, standby) in [("shard_0_a", "shard_0_b"), ("shard_0_b", "shard_0_a")] {
        lose(primary);
        assert_eq!(roles(), (primary.to_owned(), "missing", "standby", false));
        assert!(matches!(fleet.rejoin(0), Err(FleetError::NoPrimary { shard: 0, found: "missing", .. })));
        fs::create_dir(&in_the_way).expect("is made");
        assert!(matches!(fleet.promote(0), Err(FleetError::Path { .. })), "it is broken off behind the promotion");
        fs::remove_dir(&in_the_way).expect("goes");
        assert_eq!(roles(), (primary.to_owned(), "missing", "primary", false));
        assert_eq!(fleet.promote(0).expect("goes on"), standby);
        assert_eq!(roles(), (standby.to_owned(), "primary", "standby", true));
        // A copy that was broken off has the settings of whom it is a copy of.
        lose(primary);
        let (running, _) = fleet.servers_of(0).expect("two servers");
        let programs = Programs::find().expect("is installed");
        fs::create_dir(folder.join(primary)).and_then(|()| programs.give(&folder.join(primary))).expect("a folder");
        let mut half = programs.command("pg_basebackup");
        half.args(["-d", &running.dsn(), "--checkpoint=fast", "--no-sync", "-D"])
            .arg(folder.join(primary).join("data"));
        assert!(half.status().expect("runs").success());
        assert_eq!(roles(), (standby.to_owned(), "primary", "missing", false));
        assert!(matches!(fleet.promote(0), Err(FleetError::NoStandby { shard: 0, found: "missing", .. })));
        assert_eq!(fleet.rejoin(0).expect("is copied"), primary);
        assert_eq!(roles(), (standby.to_owned(), "primary", "standby", true));
    }
}

/// Guards: a promotion that may lose what was acknowledged by a primary alone is told from one that may not.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn who_acknowledges_alone_is_known_also_when_it_is_dead() {
    let fleet = TemporaryFleet::new(1).expect("starts");
    let is_alone = || fleet.acknowledges_alone(0).expect("is known");
    let (a, b) = fleet.servers_of(0).expect("two servers");
    assert!(!is_alone());
    a.freeze().expect("stands still");
    assert!(!is_alone(), "by its settings: it does not answer");
    a.thaw().expect("goes on");
    a.kill().expect("dies");
    assert!(!is_alone(), "by its settings");

    assert_eq!(fleet.take_over(0).expect("takes over"), "shard_0_b");
    assert!(is_alone());
    // What says so is its settings, or the note where somebody has changed them; and the note where its data are gone.
    b.configure(&[("synchronous_standby_names", a.name())]).expect("is set");
    b.kill().expect("dies");
    assert!(is_alone());
    let lost = fleet.secrets().with_file_name("shard_0_b");
    let kept = lost.with_file_name("kept");
    fs::rename(&lost, &kept).expect("is gone");
    assert!(is_alone());
    fs::rename(&kept, &lost).expect("is back");
    b.start().expect("starts");
    assert_eq!(fleet.rejoin(0).expect("follows"), "shard_0_a");
    assert!(!is_alone());

    // The other one streams, and nobody waits for it.
    b.require_synchronous("").expect("waits for nobody");
    assert!(is_alone());
    b.kill().expect("dies");
    assert!(is_alone());
    fs::remove_dir_all(&lost).expect("is gone");
    assert!(!is_alone(), "no note says so");
}

/// Guard: whoever comes second is refused, and removes nothing of the first one's.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn also_when_two_start_servers_in_one_place() {
    let folder = std::env::temp_dir().join(format!("pim-fleet-twice-{}", std::process::id()));
    let created = thread::scope(|scope| {
        [(); 2].map(|()| scope.spawn(|| Fleet::create(&folder, 1))).map(|starting| starting.join().expect("ends"))
    });
    let (started, refused): (Vec<_>, Vec<_>) = created.into_iter().partition(Result::is_ok);
    let unasked = Fleet::open(&folder).and_then(|fleet| fleet.state());
    Fleet::remove(&folder).expect("stops");
    assert_eq!(started.len(), 1, "{refused:?}");
    assert!(matches!(refused[..], [Err(FleetError::Exists { .. })]), "{refused:?}");
    assert!(unasked.expect("answers")[0].is_synchronous);
}

/// With owners and permissions.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("runs");
    assert!(copied.success());
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
