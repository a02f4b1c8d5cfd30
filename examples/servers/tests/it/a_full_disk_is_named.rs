//! The disk of base backups, of an archive, and of a restore is full: it is said by name, nothing half-made is left, and the
//! servers go on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use pim_servers::fleet::{BackupError, Fleet, ServersBackup};
use pim_servers::small_disk::SmallDisk;

/// More than the first files of a base backup have, and less than all of them.
const DISK_KB: u64 = 12 * 1024;

/// Gone with the value.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-full-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        // The user of the servers has to get in.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        Self(folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["servers", "small/new", "new"] {
            let _absent = Fleet::remove(&self.0.join(name));
        }
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn write(fleet: &Fleet, number: u64) {
    fleet.servers_of(0).unwrap().0.sql("shard-0", &format!("INSERT INTO written VALUES ({number})")).unwrap();
}

fn written(fleet: &Fleet) -> String {
    fleet.servers_of(0).unwrap().0.sql("shard-0", "SELECT count(*) FROM written").unwrap()
}

#[test]
#[ignore = "needs PostgreSQL's programs and to mount a disk: `cargo xtask test` runs it where they are"]
fn a_full_disk_makes_no_half_backup_and_no_half_servers() {
    let place = Place::new();
    let fleet = Fleet::create(&place.0.join("servers"), 1).expect("starts");
    fleet.servers_of(0).unwrap().0.sql("shard-0", "CREATE TABLE written (number bigint PRIMARY KEY)").unwrap();
    write(&fleet, 1);

    let disk = SmallDisk::mount(&place.0.join("small"), DISK_KB).expect("is mounted");
    let into = disk.folder().join("servers");
    let refusal = fleet.back_up(&into, &mut |_| {}).expect_err("there is no room");
    assert!(matches!(refusal, BackupError::Full { .. }), "{refusal}");
    assert!(!into.exists(), "half a backup is left");
    assert!(matches!(ServersBackup::check(&into, &mut |_| {}), Err(BackupError::Absent { .. })));
    write(&fleet, 2);

    let base = place.0.join("base");
    fleet.back_up(&base, &mut |_| {}).expect("there is room elsewhere");
    write(&fleet, 3);
    fleet.close_archive().expect("is archived");
    let new = disk.folder().join("new");
    let refusal = Fleet::restore(&base, &new, None, &mut |_| {}).expect_err("there is no room");
    assert!(matches!(refusal, BackupError::Full { .. }), "{refusal}");
    assert!(!new.exists(), "half of the servers are left");
    drop(disk);

    // The archive's: what is not archived stays with the server, which goes on, and is archived when there is room again.
    let archive = fleet.archive().unwrap().join("shard_0");
    let disk = SmallDisk::mount(&archive, 16).expect("is mounted");
    // More than has room: what a segment does not have takes none.
    let many = "INSERT INTO written SELECT generate_series(1001, 3000)";
    fleet.servers_of(0).unwrap().0.sql("shard-0", many).unwrap();
    let refusal = fleet.close_archive().expect_err("there is no room");
    println!("an archive without room: {refusal}");
    write(&fleet, 4);
    drop(disk);
    fleet.close_archive().expect("is archived");
    ServersBackup::check(&base, &mut |_| {}).expect("is whole, without a gap");
    let restored = Fleet::restore(&base, &place.0.join("new"), None, &mut |_| {}).expect("is restored");
    assert_eq!((written(&fleet), written(&restored.fleet)), ("2004".to_owned(), "2004".to_owned()));
}
