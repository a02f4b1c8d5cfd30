//! Servers that `lab restore` has made and `lab up --data-dir` was led to, without a lab on them: they are stopped, and all
//! that they have stays.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::led::{Led, Running};

/// Guard: `servers down`, which is what the refusals below name, removes nothing of what was restored.
#[test]
fn when_they_are_stopped_without_a_lab() {
    let led = Led::new("exit 0");
    let refused = led.run(&["servers", "up", "--shards", "1"]);
    assert_eq!((refused.code, refused.err.contains("servers down")), (Some(3), true), "{refused:?}");
    let down = led.run(&["servers", "down"]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert!(led.servers().join("secrets/fleet").exists(), "what was restored is gone");
    assert_eq!(down.document("servers-down")["kept"], led.servers().display().to_string());
    assert!(fs::symlink_metadata(led.link()).is_err(), "nothing leads there any more");
    assert_eq!(led.run(&["servers", "down"]).code, Some(3), "there are none");
}

/// Guard: nothing is made behind a link that leads nowhere, and `servers down` takes it away.
#[test]
fn and_none_come_about_where_they_were() {
    let led = Led::new("exit 0");
    fs::remove_dir_all(led.servers()).unwrap();
    let refused = led.run(&["servers", "up", "--shards", "1"]);
    assert_eq!((refused.code, refused.err.contains("servers down")), (Some(3), true), "{refused:?}");
    assert!(!led.servers().exists());
    assert_eq!(led.run(&["servers", "down"]).code, Some(0));
    assert!(fs::symlink_metadata(led.link()).is_err());
}

/// Guard: a server that does not end is not lost sight of, and keeps no other from ending.
#[test]
fn and_are_found_again_when_one_does_not_end() {
    let led = Led::new(
        "case \"$*\" in *shard_0_a*) echo 'does not shut down' >&2; exit 1;; esac; echo told: \"$@\" >>\"$0.told\"",
    );
    let told = led.folder.path().join("bin/pg_ctl.told");
    fs::write(&told, "").unwrap();
    // Whoever runs servers is not whoever runs tests, where that is root.
    fs::set_permissions(&told, fs::Permissions::from_mode(0o666)).unwrap();
    let of = |server: &str| led.servers().join(server);
    let (one, other) = (Running::on(&of("shard_0_a/data")), Running::on(&of("unsharded/data")));
    let failed = led.run(&["servers", "down"]);
    assert_eq!((failed.code, failed.err.contains("does not shut down")), (Some(4), true), "{failed:?}");
    assert!(led.leads_there() && of("secrets/fleet").exists());
    let told = fs::read_to_string(told).unwrap();
    let is_told = told.lines().any(|it| it.contains("told: stop") && it.contains("/unsharded/"));
    assert!(is_told, "the other one goes on: {told}");
    drop((one, other));
    assert_eq!(led.run(&["servers", "down"]).code, Some(0), "they have ended");
    assert!(!led.leads_there());
}

/// Guard: a lab elsewhere keeps its servers, and nobody who is refused stops them.
#[test]
fn and_are_nobody_else_s_while_they_run() {
    let led = Led::new("echo told: \"$@\" >>\"$0.told\"");
    let told = led.folder.path().join("bin/pg_ctl.told");
    fs::write(&told, "").unwrap();
    fs::set_permissions(&told, fs::Permissions::from_mode(0o666)).unwrap();
    fs::create_dir(led.folder.path().join("new/data")).unwrap();
    let up = ["up", "--mode", "process", "--data-dir", &led.folder.join("new")];
    fs::remove_file(led.link()).unwrap();
    // Spelled otherwise they are the same servers.
    let alias = led.folder.path().join("alias");
    symlink(led.folder.path().join("new"), &alias).unwrap();
    let running = Running::on(&led.servers().join("unsharded/data"));
    for place in [led.folder.join("new"), led.folder.join("alias")] {
        let refused = led.run(&["up", "--mode", "process", "--data-dir", &place]);
        assert_eq!((refused.code, refused.err.contains("run already: unsharded")), (Some(3), true), "{refused:?}");
    }
    assert!(fs::symlink_metadata(led.link()).is_err(), "it leads to another's servers");
    drop(running);

    let other = led.folder.path().join("other");
    fs::create_dir(&other).unwrap();
    symlink(alias.join("servers"), other.join("servers")).unwrap();
    let note = led.folder.path().join("new/used-by");
    fs::write(&note, other.join("servers").display().to_string()).unwrap();
    // Broken off before its programs came, and behind that.
    for verb in ["servers down", "down"] {
        let refused = led.run(&up);
        let names = refused.err.contains(&format!("`cargo xtask lab --folder {} {verb}`", other.display()));
        assert_eq!((refused.code, names), (Some(3), true), "{refused:?}");
        fs::create_dir_all(other.join("process")).unwrap();
    }
    assert_eq!(fs::read_to_string(told).unwrap(), "", "somebody was started or stopped");

    // That lab has gone: its note says nothing any more.
    fs::remove_file(other.join("servers")).unwrap();
    let begun = led.run(&up);
    assert!(begun.err.contains("cannot start session-broker"), "{begun:?}");
    assert!(!note.exists() && !led.leads_there(), "they are nobody's now");
}

/// Guard: what was restored may be moved to a larger disk, and led to from where it was.
#[test]
fn and_may_be_moved_to_another_disk() {
    let led = Led::new("exit 0");
    fs::remove_file(led.link()).unwrap();
    fs::create_dir(led.folder.path().join("new/data")).unwrap();
    let moved = led.folder.path().join("moved");
    fs::rename(led.servers(), &moved).unwrap();
    symlink(&moved, led.servers()).unwrap();
    let begun = led.run(&["up", "--mode", "process", "--data-dir", &led.folder.join("new")]);
    assert!(begun.err.contains("cannot start session-broker"), "{begun:?}");
    assert!(moved.join("secrets/fleet").exists() && !led.leads_there());
}
