//! The nine programs as processes of their own, on database servers: `lab up --mode process`.
//!
//! Everything that it makes lies in `process` below the lab's folder and in the folder of the servers; `lab down` removes both.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pim_servers::fleet::Fleet;
use pim_servers::port;
use serde_json::{Value, json};

use super::api::Api;
use super::journal::{self, Running, State};
use super::process::UpArgs;
use super::{Role, ask, document, programs, servers};
use crate::exit::Failure;
use crate::shell::{pause, root};

const FIRST_TO_STOP: [&str; 2] = ["persona-simulator", "gateway"];
const SHARDS: u16 = 2;
const PATIENTS: u32 = 1000;
const GATEWAY: &str = "127.0.0.1:8080";
const ANY_PORT: &str = "127.0.0.1:0";
/// Sessions a second of the personas, unless somebody asks for others.
const RATE: &str = "2";
const READY_WITHIN: Duration = Duration::from_secs(5 * 60);
/// How long a program may take to drain.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long one that was killed may take to go: the system may be writing for it.
const KILL_MAX: Duration = Duration::from_secs(10);
/// How long what is under way may take to come to rest.
const REST_MAX: Duration = Duration::from_secs(60);

/// Starts servers and programs and waits until they are ready. When that does not succeed, nothing is left behind.
pub(super) fn up(args: &UpArgs, json: bool) -> Result<()> {
    if args.profile.is_some() {
        return Err(Failure::Usage.because("--profile is for the embedded lab"));
    }
    // Before anybody waits for a build.
    let restored = args.data_dir.as_deref().map(servers::restored).transpose()?;
    let programs = programs::build_on_servers()?;
    let fleet = match &restored {
        Some(restored) => servers::resume(restored, json)?,
        None => servers::create(args.shards.unwrap_or(SHARDS), json)?,
    };
    let begun = Start::new(args, programs, fleet).inspect_err(|_| {
        let _only_the_first_error_counts = clean_up(&[]);
    });
    let mut start = begun?;
    // What could not be noted is stopped too.
    start.all(args).inspect_err(|_| {
        let _only_the_first_error_counts = clean_up(&start.state.programs);
    })?;
    let state = start.state;
    if json {
        document::print("up", &json!({"mode": "process", "lab": state.ready}), true);
    } else {
        document::say(&format!("the lab is ready at {} after {} ms", state.gateway, state.ready["ready_ms"]));
        document::say("next: cargo xtask lab status · cargo xtask lab shard promote 0 · cargo xtask lab down");
    }
    Ok(())
}

/// What all programs are told, and what has been started so far.
struct Start {
    /// The folder of the programs.
    programs: PathBuf,
    fleet: Fleet,
    /// Their common data directory: maps, keys and the bus.
    data: PathBuf,
    begun: Instant,
    give_up: Instant,
    state: State,
}

impl Start {
    fn new(args: &UpArgs, programs: PathBuf, fleet: Fleet) -> Result<Self> {
        let folder = journal::process_folder();
        fs::create_dir_all(&folder).context("cannot create the lab's folder")?;
        File::create(journal::log_file()).context("cannot begin the lab's log")?;
        let (begun, state) = (Instant::now(), State::of_processes());
        let give_up = begun + args.wait.unwrap_or(READY_WITHIN);
        let data = match &args.data_dir {
            Some(restored) => std::path::absolute(restored)?.join("data"),
            None => folder.join("data"),
        };
        Ok(Self { programs, fleet, data, begun, give_up, state })
    }

    fn all(&mut self, args: &UpArgs) -> Result<()> {
        // From now on a second `lab up` is told that one is at it.
        self.state.keep()?;
        let seeded = if args.data_dir.is_some() { json!({"seeded_patients": 0}) } else { self.seed(args)? };
        let broker = self.edge("session-broker", &["--listen", ANY_PORT])?;
        let jwks = format!("jwks_url={broker}/jwks.json");
        let common = ["--listen", ANY_PORT, "--set", &jwks];
        let mut urls = vec![("session-broker", broker.clone())];
        for name in ["patient-service", "encounter-service", "billing-service", "outbox-processor", "projection-worker"]
        {
            urls.push((name, self.service(name, &common)?));
        }
        // These two are asked by what starts before them.
        let (inside, personas) = (port::reserve()?, port::reserve()?);
        urls.extend([("gateway", format!("http://{inside}")), ("persona-simulator", format!("http://{personas}"))]);
        let known: Vec<_> =
            urls.iter().map(|(name, url)| format!("programs.{}={url}", name.replace('-', "_"))).collect();
        let known = known.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<_> = common.into_iter().chain(known).collect();
        urls.push(("admin-service", self.service("admin-service", &arguments)?));
        let gateway = self.gateway(args, &urls, inside)?;
        self.state.gateway.clone_from(&gateway);
        self.state.broker.clone_from(&broker);
        self.state.keep()?;
        self.until_it_answers()?;
        let rate = args.traffic.as_deref().unwrap_or(RATE);
        if rate != "off" {
            let (seed, personas) = (args.seed.unwrap_or(1).to_string(), personas.to_string());
            let load = ["load", "--json", "--gateway", &gateway, "--broker", &broker, "--listen", &personas];
            let load = [&load[..], &["--rate", rate, "--seed", &seed]].concat();
            // A lab without the traffic that was asked for is not ready.
            self.start_and_await("persona-simulator", &load, &[], "ready")?;
        } else {
            urls.retain(|(name, _)| *name != "persona-simulator");
        }
        let ready_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let programs: serde_json::Map<_, _> =
            urls.into_iter().map(|(name, url)| (name.to_owned(), url.into())).collect();
        self.state.ready = json!({
            "gateway": gateway, "broker": broker, "programs": programs, "ready_ms": ready_ms,
            "shards": self.fleet.shards(), "seeded_patients": seeded["seeded_patients"],
        });
        self.state.keep()
    }

    /// Brings the schemas up to date and makes the data set.
    fn seed(&mut self, args: &UpArgs) -> Result<Value> {
        let (patients, seed) = (args.patients.unwrap_or(PATIENTS).to_string(), args.seed.unwrap_or(1).to_string());
        let arguments = ["--seed-only", "--json", "--listen", ANY_PORT, "--patients", &patients, "--seed", &seed];
        let history = args.history.map(|percent| percent.to_string());
        let history: Vec<_> = history.iter().flat_map(|percent| ["--history", percent]).collect();
        let arguments = [&arguments[..], &history].concat();
        let environment = self.places(&self.fleet.secrets());
        self.start_and_await("services", &arguments, &environment, "seeded")
    }

    /// A program with a database: its logins own nothing, but for those of the admin service, which publishes maps.
    fn service(&mut self, name: &'static str, arguments: &[&str]) -> Result<String> {
        let is_admin = name == "admin-service";
        let secrets = if is_admin { self.fleet.secrets() } else { self.fleet.service_secrets() };
        let environment = self.places(&secrets);
        self.serve(name, arguments, &environment)
    }

    /// A program without one.
    fn edge(&mut self, name: &'static str, arguments: &[&str]) -> Result<String> {
        let environment = [("PIM_DATA_DIR", self.data.clone())];
        self.serve(name, arguments, &environment)
    }

    fn gateway(&mut self, args: &UpArgs, urls: &[(&str, String)], inside: SocketAddr) -> Result<String> {
        let mut settings = vec![format!("internal_listen={inside}")];
        for (name, url) in urls {
            if let Some(room) = name.strip_suffix("-service").or(name.strip_prefix("session-")) {
                settings.push(format!("{room}_url={url}"));
            }
        }
        let listen = args.listen.as_deref().unwrap_or(GATEWAY);
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<_> = ["--listen", listen].into_iter().chain(settings).collect();
        self.edge("gateway", &arguments)
    }

    fn places(&self, secrets: &Path) -> [(&'static str, PathBuf); 3] {
        [
            ("PIM_DATA_DIR", self.data.clone()),
            ("PIM_POSTGRES__SHARD_MAP", self.fleet.shard_map()),
            ("PIM_POSTGRES__SECRETS_DIR", secrets.to_owned()),
        ]
    }

    fn serve(&mut self, name: &'static str, arguments: &[&str], environment: &[(&str, PathBuf)]) -> Result<String> {
        let ready = self.start_and_await(name, arguments, environment, "ready")?;
        Ok(ready["url"].as_str().with_context(|| format!("{name} did not say where it listens"))?.to_owned())
    }

    fn start_and_await(
        &mut self,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, PathBuf)],
        event: &str,
    ) -> Result<Value> {
        let mut child = self.start(name, arguments, environment)?;
        loop {
            // Looked at before the lines are, so that what one said that ends at once is read.
            let ended = child.try_wait()?;
            if let Some(said) = journal::event_in(&fs::read_to_string(printed_by(name))?, event) {
                return Ok(said);
            }
            if let Some(status) = ended {
                let failure = Failure::of_code(status.code().unwrap_or_default());
                return Err(failure.because(format!("{name} ended ({status}):\n{}", journal::log_tail(20))));
            }
            if Instant::now() > self.give_up {
                let fix = "more time: `--wait 10m`; fewer `--patients`";
                let log = journal::log_tail(20);
                return Err(Failure::Precondition.because(format!("{name} was not ready in time ({fix}):\n{log}")));
            }
            pause();
        }
    }

    /// In a group of its own, so that Ctrl-C in this terminal does not stop it.
    fn start(&mut self, name: &str, arguments: &[&str], environment: &[(&str, PathBuf)]) -> Result<Child> {
        let mut command = Command::new(self.programs.join(name));
        command.args(arguments).envs(environment.iter().cloned()).current_dir(root());
        let log = OpenOptions::new().append(true).open(journal::log_file())?;
        command.process_group(0).stdin(Stdio::null()).stdout(File::create(printed_by(name))?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        // One that has ended already says so when its line is waited for.
        self.state.programs.extend(Running::of(name, child.id()));
        self.state.keep()?;
        Ok(child)
    }

    fn until_it_answers(&self) -> Result<()> {
        loop {
            match Api::of(Role::Sre).and_then(|api| api.get("/v1/admin/shards")) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > self.give_up => return Err(error),
                Err(_) => pause(),
            }
        }
    }
}

/// Where a program's own lines go.
fn printed_by(name: &str) -> PathBuf {
    journal::process_folder().join(format!("{name}.jsonl"))
}

/// Stops the personas, waits until everything has come to rest, sums the run up, stops the rest and removes all of it.
pub(super) fn down(state: &State, json: bool) -> Result<()> {
    let missing = missing(state);
    let personas = state.programs.iter().find(|program| program.name == "persona-simulator");
    let mut killed = Vec::new();
    let traffic = personas.and_then(|personas| {
        // Whoever does not end is told below.
        killed.extend(stop_all(&[personas]).ok()?);
        journal::event_in(&fs::read_to_string(printed_by(&personas.name)).ok()?, "summary")
    });
    let run = at_rest();
    killed.extend(clean_up(&state.programs)?);
    let faults = faults(&missing, &killed);
    // Who would have told may be among those.
    let mut run = run.map_err(|error| {
        let faults = if faults.is_empty() { "" } else { &format!("; {faults}") };
        Failure::Threshold.because(format!("nothing is left, and nothing is known: {error:#}{faults}"))
    })?;
    let verdict = verdict(&run, faults.is_empty(), personas.is_some(), traffic.as_ref());
    run["traffic"] = traffic.unwrap_or(Value::Null);
    run["killed"] = killed.into();
    run["verdict"] = verdict.into();
    document::print("down", &run, json);
    if !faults.is_empty() {
        return Err(Failure::Threshold.because(faults));
    }
    match verdict {
        "ok" => Ok(()),
        "invalid" => Err(Failure::RunInvalid.because("the traffic run is invalid, or has left no summary")),
        _ => Err(Failure::Threshold.because("an invariant of the run did not hold")),
    }
}

/// What no program may do: end by itself, or go on when it is told to end.
fn faults(missing: &[&str], killed: &[String]) -> String {
    let ended = (!missing.is_empty()).then(|| format!("ended before they were told to: {}", missing.join(", ")));
    let killed = (!killed.is_empty()).then(|| format!("did not end in time, and were killed: {}", killed.join(", ")));
    ended.into_iter().chain(killed).collect::<Vec<_>>().join("; ")
}

/// What the run came to. Personas that say nothing of theirs have shown nothing.
fn verdict(run: &Value, is_sound: bool, has_personas: bool, traffic: Option<&Value>) -> &'static str {
    let is_valid = traffic.map_or(!has_personas, |it| it["valid"] == true);
    match (run["holds"] == true && is_quiet(run) && is_sound, is_valid) {
        (false, _) => "broken",
        (true, true) => "ok",
        (true, false) => "invalid",
    }
}

/// The summary of the run when nothing is under way any more, or when patience has ended.
fn at_rest() -> Result<Value> {
    let give_up = Instant::now() + REST_MAX;
    let mut last = Value::Null;
    loop {
        match ask::run_summary() {
            Ok(run) if is_still(&last, &run) => return Ok(run),
            outcome if Instant::now() > give_up => return outcome,
            Ok(run) => {
                last = run;
                pause();
            }
            // A gateway that is gone does not come back.
            Err(error) if !State::load().is_ok_and(|state| state.is_alive()) => return Err(error),
            _ => pause(),
        }
    }
}

/// Whether two summaries in a row are quiet and of the same facts: what was still being done at the first is told by the second.
fn is_still(before: &Value, run: &Value) -> bool {
    is_quiet(before) && is_quiet(run) && before["facts"] == run["facts"]
}

fn is_quiet(run: &Value) -> bool {
    run["outbox_backlog"] == 0 && run["consumer_lag"] == 0
}

/// Ends programs and servers, callers before those whom they call, and removes what they had. Names whoever had to be killed.
fn clean_up(noted: &[Running]) -> Result<Vec<String>> {
    let programs = [noted, &unnoted(noted)].concat();
    let (edge, rest): (Vec<_>, Vec<_>) = programs.iter().partition(|it| FIRST_TO_STOP.contains(&it.name.as_str()));
    let (services, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|it| it.name.ends_with("-service"));
    let stopped = [edge, services, rest].map(|programs| stop_all(&programs));
    // Whoever goes on writes to the servers, and is found again by what is noted.
    let killed = stopped.into_iter().collect::<Result<Vec<_>>>()?.concat();
    servers::remove_if_any()?;
    let folder = journal::process_folder();
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    State::forget();
    Ok(killed)
}

/// Programs that print into this lab's files, and are not among these: whoever started them was broken off, or could not write.
fn unnoted(noted: &[Running]) -> Vec<Running> {
    let files = fs::read_dir(journal::process_folder()).into_iter().flatten().flatten();
    let running = files.flat_map(|file| Running::printing_into(&file.path()));
    running.filter(|program| !noted.contains(program)).collect()
}

/// Lets them drain; who does not end in time is killed, and named. Fails when one does not end even so.
fn stop_all(programs: &[&Running]) -> Result<Vec<String>> {
    stop_within([("-TERM", DRAIN_MAX), ("-KILL", KILL_MAX)], programs, Running::signal)
}

/// Sends one signal after the other, each once, and waits as long for what it does. Names those that needed the last.
fn stop_within(
    signals: [(&str, Duration); 2],
    programs: &[&Running],
    mut send: impl FnMut(&Running, &str) -> Result<()>,
) -> Result<Vec<String>> {
    let mut last = Vec::new();
    for (signal, patience) in signals {
        last = programs.iter().filter(|program| program.is_alive()).map(|program| program.name.clone()).collect();
        // Everybody, also where one cannot be told.
        let told: Vec<_> = programs.iter().map(|program| send(program, signal)).collect();
        told.into_iter().collect::<Result<()>>()?;
        let give_up = Instant::now() + patience;
        while programs.iter().any(|program| program.is_alive()) && Instant::now() < give_up {
            pause();
        }
    }
    let left = programs.iter().filter(|program| program.is_alive());
    let left: Vec<_> = left.map(|program| format!("{} (process {})", program.name, program.pid)).collect();
    if left.is_empty() {
        return Ok(last);
    }
    Err(Failure::Threshold
        .because(format!("killed, and has not ended: {}; look at it, and say it again", left.join(", "))))
}

/// What is wrong with a lab that should be running.
pub(super) fn missing(state: &State) -> Vec<&str> {
    let ended = state.programs.iter().filter(|program| program.should_run() && !program.is_alive());
    ended.map(|program| program.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{Running, faults, is_still, stop_within, verdict};

    /// Guard: nobody is waited for without a bound, nor told the same twice.
    #[test]
    fn whoever_does_not_end_is_named() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("starts");
        let running = Running::of("patient-service", child.id()).expect("runs");
        let mut told = Vec::new();
        let moment = Duration::from_millis(200);
        let signals = [("-TERM", moment), ("-KILL", moment)];
        let outcome = stop_within(signals, &[&running], |_, signal| {
            told.push(signal.to_owned());
            Ok(())
        });
        let patient = [("-TERM", 50 * moment), ("-KILL", moment)];
        let of_one_that_goes = stop_within(patient, &[&running], |it, _| it.signal("-KILL"));
        child.wait().expect("ends");
        let sentence = outcome.expect_err("it goes on").to_string();
        assert!(sentence.contains(&format!("patient-service (process {})", running.pid)), "{sentence}");
        assert_eq!(told, ["-TERM", "-KILL"]);
        assert_eq!(of_one_that_goes.expect("has ended"), [""; 0], "the first signal was enough");
    }

    /// Guard: what a program that had to be killed had still to do is not done.
    #[test]
    fn whoever_had_to_be_killed_is_named() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("starts");
        let running = Running::of("patient-service", child.id()).expect("runs");
        let moment = Duration::from_millis(200);
        let outcome = stop_within([("-CONT", moment), ("-KILL", 50 * moment)], &[&running], Running::signal);
        child.wait().expect("ends");
        let killed = outcome.expect("has ended");
        assert_eq!(killed, ["patient-service"]);
        assert!(faults(&[], &killed).contains("patient-service") && faults(&[], &[]).is_empty());
        let run = json!({"holds": true, "outbox_backlog": 0, "consumer_lag": 0});
        assert_eq!(verdict(&run, false, false, None), "broken");
    }

    /// Guard: personas that say nothing of their run have shown nothing.
    #[test]
    fn a_run_without_a_summary_of_its_traffic_is_invalid() {
        let run = |holds: bool| json!({"holds": holds, "outbox_backlog": 0, "consumer_lag": 0});
        assert_eq!(verdict(&run(true), true, false, None), "ok", "nobody asked for traffic");
        assert_eq!(verdict(&run(true), true, true, None), "invalid");
        assert_eq!(verdict(&run(true), true, true, Some(&json!({"valid": true}))), "ok");
        assert_eq!(verdict(&run(true), true, true, Some(&json!({"valid": false}))), "invalid");
        assert_eq!(verdict(&run(false), true, true, None), "broken");
    }

    /// Guard: one quiet moment between two cycles of a worker is no rest.
    #[test]
    fn at_rest_is_what_is_quiet_twice_with_the_same_facts() {
        let run = |facts: u64, backlog: u64, lag: u64| json!({"facts": facts, "outbox_backlog": backlog, "consumer_lag": lag});
        assert!(is_still(&run(7, 0, 0), &run(7, 0, 0)));
        assert!(!is_still(&Value::Null, &run(7, 0, 0)), "the first");
        assert!(!is_still(&run(7, 1, 0), &run(7, 0, 0)));
        assert!(!is_still(&run(7, 0, 0), &run(7, 0, 1)));
        assert!(!is_still(&run(7, 0, 0), &run(8, 0, 0)), "something was written in between");
    }
}
