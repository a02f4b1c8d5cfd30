//! The first backup of a fleet begins its archive: for all who take one at the same time the same one, of every server that is
//! there, and of those that come later.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use pim_servers::fleet::{Fleet, FleetError};
use pim_servers::local::{LocalServer, Stop};
use pim_servers::temporary::{TemporaryFleet, TemporaryServers};

fn folder_of(fleet: &Fleet) -> PathBuf {
    fleet.secrets().with_file_name("")
}

fn all(fleet: &Fleet) -> Vec<LocalServer> {
    let pairs = (0..fleet.shards()).map(|shard| fleet.servers_of(shard).expect("a shard"));
    pairs
        .flat_map(|(primary, standby)| [primary, standby])
        .chain([fleet.unsharded_server().expect("is there")])
        .collect()
}

fn set(server: &LocalServer, command: &str) {
    server.configure(&[("archive_command", command)]).expect("is set");
    for _ in 0..600 {
        if server.sql("postgres", "SHOW archive_command").expect("answers") == command {
            return;
        }
        thread::park_timeout(Duration::from_millis(50));
    }
    panic!("it does not take its settings");
}

/// Each archives into the folder that everybody finds.
fn assert_archived(fleet: &Fleet) {
    let archive = fleet.archive().expect("is linked");
    for server in all(fleet) {
        let told = server.sql("postgres", "SHOW archive_command").expect("answers");
        assert!(told.contains(archive.to_str().expect("a name")), "{}: {told}", server.name());
    }
}

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn for_two_who_begin_at_the_same_time() {
    let fleet = TemporaryFleet::new(1).expect("starts");
    let fleet: &Fleet = &fleet;
    let places = ["one", "other"].map(|name| folder_of(fleet).join(name));
    thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| fleet.back_up(place, &mut |_| {}).expect("is copied"));
        }
    });
    assert_archived(fleet);
}

/// Guard: a server keeps some of its log in any case. `pg_basebackup` reserves what it needs a moment after its copy has begun, and
/// others that begin have the log switched and cleaned up meanwhile.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn and_nobody_takes_away_the_log_that_another_needs() {
    let servers = TemporaryServers::new().expect("a folder");
    let server = servers.primary("one").expect("starts");
    let ask = |text| server.sql("postgres", text).expect("answers");
    let needed = ask("SELECT pg_walfile_name(pg_current_wal_lsn())");
    for _ in 0..3 {
        ask("SELECT pg_current_xact_id(), pg_switch_wal()");
        ask("CHECKPOINT");
    }
    assert_eq!(ask(&format!("SELECT count(*) FROM pg_ls_waldir() WHERE name = '{needed}'")), "1");
}

/// Guards: nobody begins one while somebody else does, and whose link is found is gone on with, however far that came.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn for_whoever_comes_while_another_begins() {
    let servers = TemporaryFleet::new(1).expect("starts");
    let folder = folder_of(&servers);
    let fleet = Fleet::open(&folder).expect("is found");
    let held = fs::File::create(folder.join("lock")).expect("a file");
    held.lock().expect("is free");
    let begun = folder.with_file_name(format!("{}-archive", folder.file_name().expect("a name").to_string_lossy()));
    let begun = begun.join("begun");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| fleet.back_up(&folder.join("copy"), &mut |_| {}));
        let growing = scope.spawn(|| Fleet::open(&folder).expect("is found").add());
        // Time enough for both to be at it, if they do not wait.
        thread::park_timeout(Duration::from_secs(1));
        fs::create_dir_all(&begun).expect("a folder");
        std::os::unix::fs::symlink(&begun, folder.join("archive")).expect("nobody else has begun one");
        assert!(!folder.join("shard_1_a").exists(), "a shard comes while somebody looks at which there are");
        drop(held);
        waiting.join().expect("ends").expect("is copied");
        assert_eq!(growing.join().expect("ends").expect("is added"), 1);
    });
    let grown = Fleet::open(&folder).expect("is found");
    assert_eq!((fleet.archive(), grown.shards()), (Some(begun), 2));
    assert_archived(&grown);
    // Also a shard that came since a fleet was opened.
    set(&grown.servers_of(1).expect("a shard").0, "true");
    fleet.back_up(&folder.join("again"), &mut |_| {}).expect("is copied");
    assert_archived(&grown);

    let [mut one, mut other] = [(); 2].map(|()| Fleet::open(&folder).expect("is found"));
    assert_eq!(one.take_away().expect("goes"), 1);
    assert!(matches!(other.take_away(), Err(FleetError::Changed { found: 1, known: 2 })), "it meant another one");
}

/// Guard: servers that did not come leave nothing in the archive, where it would keep those out who come next.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn not_for_a_shard_that_did_not_come() {
    let servers = TemporaryFleet::new(1).expect("starts");
    let folder = folder_of(&servers);
    servers.back_up(&folder.join("copy"), &mut |_| {}).expect("is copied");
    let mut fleet = Fleet::open(&folder).expect("is found");
    let log = fleet.archive().expect("is linked").join("shard_1");
    // The last that is done for it cannot be done, because something has come there meanwhile.
    let link = fleet.service_secrets().join("shard-1-standby");
    let refused = thread::scope(|scope| {
        let adding = scope.spawn(|| fleet.add());
        for _ in 0..3000 {
            if folder.join("shard_1_a").exists() {
                break;
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        fs::write(&link, "of somebody else").expect("writes");
        adding.join().expect("ends").expect_err("nobody could be told of it")
    });
    assert!(matches!(&refused, FleetError::Path { path, .. } if *path == link), "{refused}");
    assert!(!folder.join("shard_1_a").exists() && !log.exists(), "something is left of it");
    assert_eq!(fleet.add().expect("starts"), 1);
    assert!(log.is_dir());
    assert_archived(&fleet);
    // It counted: what it has archived is not lost with it.
    assert_eq!(fleet.take_away().expect("stops"), 1);
    assert!(log.is_dir());
}

/// Guards: a standby that is missing keeps nobody from a backup, archives when it is back, and so does who was set otherwise.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn also_beside_a_standby_that_is_missing() {
    let fleet = TemporaryFleet::new(2).expect("starts");
    let folder = folder_of(&fleet);
    let (primary, standby) = fleet.servers_of(1).expect("a shard");
    standby.stop(Stop::Immediate).expect("stops");
    fs::remove_dir_all(folder.join(standby.name())).expect("is gone");
    fleet.back_up(&folder.join("one"), &mut |_| {}).expect("is copied");
    // As of a copy that came by the settings before the archive did.
    set(&primary, "true");
    fleet.rejoin(1).expect("is copied");
    let (_, standby) = fleet.servers_of(1).expect("a shard");
    let archive = fleet.archive().expect("is linked");
    let told = standby.sql("postgres", "SHOW archive_command").expect("answers");
    assert!(told.contains(archive.to_str().expect("a name")), "{told}");
    fleet.back_up(&folder.join("two"), &mut |_| {}).expect("is copied");
    assert_archived(&fleet);
}
