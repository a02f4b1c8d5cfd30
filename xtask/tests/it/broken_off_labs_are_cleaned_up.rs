//! `lab up` may be killed at any point, or find the disk full: what it has started is stopped, then or by `lab down`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};

use super::led::Led;
use super::stand_in;
use super::xtask::{Ended, Folder, xtask, xtask_with};

/// A process that goes with the value, unless somebody has stopped it sooner.
struct Started(Child);

impl Started {
    fn printing_into(file: &Path) -> Self {
        let output = File::options().create(true).append(true).open(file).unwrap();
        Self(Command::new("tail").args(["-f", "/dev/null"]).stdout(output).spawn().expect("runs"))
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn down(folder: &Folder) -> Ended {
    xtask(&["lab", "--folder", &folder.join(""), "down"])
}

/// Guard: a lab of processes whose state was never written, or not to its end, goes all the same.
#[test]
fn whose_state_cannot_be_read() {
    for state in [None, Some(""), Some("{\"pid\": 1, \"bir")] {
        let folder = Folder::new("broken-off");
        for made in ["process/data", "servers/secrets"] {
            fs::create_dir_all(folder.path().join(made)).unwrap();
        }
        if let Some(text) = state {
            fs::write(folder.path().join("state.json"), text).unwrap();
        }
        let up = xtask(&["lab", "--folder", &folder.join(""), "up"]);
        assert_eq!((up.code, up.err.contains("lab down")), (Some(3), true), "{up:?}");
        let down = down(&folder);
        assert_eq!((down.code, down.err.contains("nothing is left")), (Some(4), true), "{down:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something is left: {state:?}");
    }
}

/// Guard: whoever is killed between starting a program and noting it leaves one that `lab down` stops, and nobody else's.
#[test]
fn with_a_program_that_nobody_noted() {
    let folder = Folder::new("unnoted");
    fs::create_dir(folder.path().join("process")).unwrap();
    let mut programs = ["services", "gateway"]
        .map(|name| Started::printing_into(&folder.path().join("process").join(format!("{name}.jsonl"))));
    let mut other = Started::printing_into(&folder.path().join("other.jsonl"));
    let down = down(&folder);
    assert_eq!((down.code, down.err.contains("nothing is left")), (Some(4), true), "{down:?}");
    assert!(programs.iter_mut().all(Started::has_ended), "a program goes on");
    assert!(!other.has_ended(), "it is none of the lab's");
}

/// Guard: so does whoever is killed while the embedded lab starts, and no second one is started beside it.
#[test]
fn with_a_lab_in_one_process_that_nobody_noted() {
    let folder = Folder::new("unnoted");
    let mut services = Started::printing_into(&folder.path().join("events.jsonl"));
    let up = xtask(&["lab", "--folder", &folder.join(""), "up"]);
    assert_eq!((up.code, up.err.contains("lab down")), (Some(3), true), "{up:?}");
    let down = down(&folder);
    assert_eq!((down.code, down.err.contains("without a summary")), (Some(4), true), "{down:?}");
    assert!(services.has_ended(), "it goes on");
}

/// Guard: signals are the shell's to send: a slim machine has no other `kill`.
#[test]
fn where_no_kill_is_installed() {
    let folder = Folder::new("no-kill");
    let mut services = Started::printing_into(&folder.path().join("events.jsonl"));
    let nowhere = [("PATH", folder.join("bin"))].into_iter();
    let down = xtask_with(nowhere, &["lab", "--folder", &folder.join(""), "down"]);
    assert_eq!((down.code, down.err.contains("without a summary")), (Some(4), true), "{down:?}");
    assert!(services.has_ended(), "it goes on");
}

/// What a program of the lab does: tells its id, says that it is ready, and goes on. `{}` is for what it does before.
const SERVES: &str = "echo $$ >>\"$0.pids\"; {}; echo '{\"event\":\"ready\",\"url\":\"http://127.0.0.1:1\",\"pid\":'$$',\
                      \"gateway\":\"http://127.0.0.1:1\",\"broker\":\"\"}'; exec sleep 60";

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|fields| !fields.is_empty() && !fields.starts_with(" Z"))
}

fn none_of(led: &Led, name: &str) {
    let pids = fs::read_to_string(led.folder.path().join("bin").join(format!("{name}.pids"))).expect("it was started");
    assert!(pids.lines().all(|pid| !is_alive(pid)), "{name} goes on: {pids}");
}

/// Guard: a lab whose state cannot be written any more is stopped by the `up` that has started it.
#[test]
fn when_the_state_cannot_be_written() {
    let led = Led::new("exit 0");
    fs::remove_file(led.link()).unwrap();
    fs::create_dir(led.folder.path().join("new/data")).unwrap();
    let state = led.folder.join("lab/state.json");
    // Nothing is written between its number and the next program's.
    let breaks = format!("until grep -qw $$ '{state}'; do sleep 0.01; done; rm '{state}'; mkdir '{state}'");
    led.program("session-broker", &SERVES.replace("{}", &breaks));
    led.program("patient-service", &SERVES.replace("{}", ":"));
    let up = led.run(&["up", "--mode", "process", "--data-dir", &led.folder.join("new")]);
    assert_eq!((up.code, up.err.contains("cannot write the state")), (Some(4), true), "{up:?}");
    none_of(&led, "session-broker");
    none_of(&led, "patient-service");
    assert!(!led.leads_there() && !led.folder.path().join("lab/process").exists());
}

/// Guard: the embedded lab too.
#[test]
fn when_the_state_of_one_process_cannot_be_written() {
    let led = Led::new("exit 0");
    fs::create_dir(led.folder.path().join("lab/state.json")).unwrap();
    led.program("services", &SERVES.replace("{}", ":"));
    let up = led.run(&["up"]);
    assert_eq!((up.code, up.err.contains("cannot write the state")), (Some(4), true), "{up:?}");
    none_of(&led, "services");
}

/// Guard: a lab whose personas do not start is not ready, and its `up` ends as they did.
#[test]
fn when_the_personas_do_not_start() {
    let led = Led::new("exit 0");
    fs::remove_file(led.link()).unwrap();
    fs::create_dir(led.folder.path().join("new/data")).unwrap();
    let gateway = stand_in::gateway(200, r#"{"items": []}"#).to_string();
    let serves = SERVES.replace("{}", ":").replace("127.0.0.1:1", &gateway);
    let services = ["patient-service", "encounter-service", "billing-service", "admin-service", "gateway"];
    for name in services.into_iter().chain(["session-broker", "outbox-processor", "projection-worker"]) {
        led.program(name, &serves);
    }
    led.program("persona-simulator", "echo 'error: no such mix' >&2; exit 2");
    let up = led.run(&["up", "--mode", "process", "--data-dir", &led.folder.join("new")]);
    assert_eq!((up.code, up.err.contains("no such mix")), (Some(2), true), "{up:?}");
    none_of(&led, "gateway");
    assert!(!led.leads_there() && !led.folder.path().join("lab/process").exists());
}

/// Guard: nobody takes the state, or the servers, of a lab that somebody is starting or stopping.
#[test]
fn and_not_while_somebody_is_at_it() {
    let folder = Folder::new("claimed");
    let claim = File::open(folder.path()).unwrap();
    claim.lock().unwrap();
    let servers = ["down", "add", "remove", "up"].map(|verb| ["servers", verb]);
    let lab = [&["up"][..], &["up", "--mode", "process"], &["down"]];
    let shard = [&["shard", "promote", "0"][..], &["shard", "rejoin", "0"], &DEGRADE];
    for verb in lab.into_iter().chain(servers.iter().map(|verb| &verb[..])).chain(shard) {
        refuses(&folder, verb);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was made");
    fs::create_dir(folder.path().join("process")).unwrap();
    refuses(&folder, &["backup", "create"]);
}

/// Guard: nor those of a lab that somebody copies; who copies too is let in, and who has lost a primary.
#[test]
fn and_not_while_somebody_copies_it() {
    let folder = Folder::new("copied");
    fs::create_dir(folder.path().join("process")).unwrap();
    let claim = File::open(folder.path()).unwrap();
    claim.lock_shared().unwrap();
    for verb in [&["down"][..], &["up"], &["servers", "add"]] {
        refuses(&folder, verb);
    }
    for verb in [&["backup", "create"][..], &["shard", "promote", "0"], &["shard", "rejoin", "0"]] {
        let let_in = xtask(&[&["lab", "--folder", &folder.join("")], verb].concat());
        assert!(let_in.err.contains("lab servers up"), "there are no servers: {let_in:?}");
    }
    let let_in = xtask(&[&["lab", "--folder", &folder.join("")], &DEGRADE[..]].concat());
    assert!(let_in.err.contains("no lab is running"), "{let_in:?}");
}

/// Guard: one is at the servers of a shard, and the other shards wait for nobody, who may copy for hours.
#[test]
fn and_one_shard_keeps_no_other_waiting() {
    let folder = Folder::new("shards");
    let servers = folder.path().join("servers");
    fs::create_dir(&servers).unwrap();
    let of = |shard| {
        let degrade = ["shard", "degrade", shard, "--reason", "drill"];
        let verbs = [&["shard", "promote", shard][..], &["shard", "rejoin", shard], &degrade];
        verbs.map(|verb| xtask(&[&["lab", "--folder", &folder.join("")], verb].concat()))
    };
    let is_refused = |ended: Ended| {
        // There are no servers, and no lab.
        if ["lab servers up", "no lab is running"].iter().any(|it| ended.err.contains(it)) {
            return false;
        }
        assert_eq!((ended.code, ended.err.contains("shard 0 in")), (Some(3), true), "{ended:?}");
        let named = format!("process {} is promoting", std::process::id());
        assert!(ended.err.contains(&named) || !Path::new("/proc/locks").exists(), "{ended:?}");
        true
    };
    // Who copies keeps nobody from degrading the shard meanwhile.
    for (lock, refused) in [("shard-0.lock", [true, false, true]), ("shard-0.copy.lock", [true, true, false])] {
        let claim = File::create(servers.join(lock)).unwrap();
        // Whoever would take it shared too would be let in.
        claim.lock_shared().unwrap();
        assert_eq!(of("0").map(is_refused), refused, "promote, rejoin and degrade beside {lock}");
        assert_eq!(of("1").map(is_refused), [false; 3], "another shard beside {lock}");
    }
}

const DEGRADE: [&str; 5] = ["shard", "degrade", "0", "--reason", "drill"];

/// Says who is at it, where the kernel tells.
fn refuses(folder: &Folder, verb: &[&str]) {
    let refused = xtask(&[&["lab", "--folder", &folder.join("")], verb].concat());
    assert_eq!((refused.code, refused.err.contains("starting or stopping")), (Some(3), true), "{refused:?}");
    let named = format!("process {} is", std::process::id());
    assert!(refused.err.contains(&named) || !Path::new("/proc/locks").exists(), "{refused:?}");
}
