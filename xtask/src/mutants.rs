//! Source patches that remove one guard each; a named test must go red for every one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use pim_servers::guard::Guard;
use serde::Deserialize;

use crate::exit::Failure;
use crate::shell::{cargo, must, root, target_dir};

/// What goes when this process does, be it by Ctrl-C: whoever is in the same group.
const END_GROUP: &str = "kill -KILL 0";

/// Where the patches are.
pub(crate) const CATALOGUE: &str = "examples/testkit/mutants.toml";

/// Longest build or run of one test. Without its guard a test may well wait for ever, and has noticed then.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// What the verdict on a mutant begins with whose test noticed.
const CAUGHT: &str = "caught";

/// The verdict on a mutant whose test does not pass without it any more.
const RED_BY_NOW: &str = "RED WITHOUT THE MUTANT BY NOW";

/// A package and the features that it is built with.
type Build<'m> = (&'m str, Option<&'m str>);

/// The feature with which programs speak to servers; one that a test has is no good without that of the programs it starts.
const SERVERS: &str = "postgres";

/// Where a test may be. Only that is built again for its mutants.
const TARGETS: [&str; 3] = ["--lib", "--test=it", "--bins"];

/// What is built over and over is built quickly: what has optimisations in the workspace has none here.
const QUICKLY: [&str; 3] = [
    "profile.dev.debug=false",
    "profile.dev.package.pim-data.opt-level=0",
    "profile.dev.package.pim-events.opt-level=0",
];

/// One mutant: which line to change, and which test must notice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    area: String,
    file: PathBuf,
    find: String,
    replace: String,
    package: String,
    /// Features that the test needs beside the default ones; a server's tests find it as `cargo xtask test` does.
    #[serde(default)]
    features: Option<String>,
    test: String,
}

impl Mutant {
    /// What is built for it.
    fn build(&self) -> Build<'_> {
        (&self.package, self.features.as_deref())
    }

    fn is_asked_for(&self, by: &str) -> bool {
        by == "all" || self.area == by || self.name.contains(by)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    mutant: Vec<Mutant>,
}

fn catalogue() -> Result<Vec<Mutant>> {
    let text = std::fs::read_to_string(root().join(CATALOGUE)).with_context(|| format!("cannot read {CATALOGUE}"))?;
    let catalogue: Catalogue = toml::from_str(&text).context(CATALOGUE)?;
    Ok(catalogue.mutant)
}

/// What is wrong with a mutant before it is tried: a patch that fits no source any more proves nothing.
pub(crate) fn unfit(sources: &[PathBuf]) -> Result<Vec<String>> {
    let mut texts = BTreeMap::new();
    for source in sources {
        texts.insert(source.clone(), std::fs::read_to_string(root().join(source)).unwrap_or_default());
    }
    let mut unfit = Vec::new();
    for mutant in catalogue()? {
        let found = texts.get(&mutant.file).map_or(0, |text| text.matches(&mutant.find).count());
        if found != 1 {
            unfit.push(format!("the patch `{}` fits {} {found} times, not once", mutant.name, mutant.file.display()));
        }
        if !texts.iter().any(|(source, text)| holds(source, text, &mutant.test)) {
            unfit.push(format!("the test of `{}` does not exist: {}", mutant.name, mutant.test));
        }
    }
    Ok(unfit)
}

/// Whether a source has the test of this path. Its innermost module is the file, or stands in it.
fn holds(source: &Path, text: &str, test: &str) -> bool {
    let mut path = test.rsplit("::");
    let function = path.next().unwrap_or(test);
    let module = path.find(|module| *module != "tests");
    let is_there = module.map_or_else(
        || source.ends_with("lib.rs") || source.ends_with("main.rs"),
        |module| is_module(source, module) || text.contains(&format!("mod {module} {{")),
    );
    is_there && text.contains(&format!("fn {function}("))
}

/// Whether a source is this module, or has its tests.
fn is_module(source: &Path, module: &str) -> bool {
    let file = if source.ends_with("tests.rs") { source.parent().unwrap_or(source) } else { source };
    file.file_stem().is_some_and(|stem| stem == module)
}

/// Applies the mutants of an area, or those whose name contains the text, one after the other and prints the table.
pub(crate) fn run(asked: &str) -> Result<()> {
    let catalogue = catalogue()?;
    // Package by package, so that each is built healthy once and not anew for every mutant.
    let mut packages: BTreeMap<Build<'_>, Vec<&Mutant>> = BTreeMap::new();
    for mutant in catalogue.iter().filter(|mutant| mutant.is_asked_for(asked)) {
        packages.entry(mutant.build()).or_default().push(mutant);
    }
    if packages.is_empty() {
        let areas: BTreeSet<_> = catalogue.iter().map(|mutant| mutant.area.as_str()).collect();
        let areas = areas.into_iter().collect::<Vec<_>>().join(", ");
        let refusal = format!("no mutant belongs to the area `{asked}` or has it in its name; areas: {areas}");
        return Err(Failure::Usage.because(refusal));
    }
    let scratch = target_dir().join("mutants");
    let worktree = Worktree::add(&scratch)?;
    let (mut survivors, mut tried) = (0, 0);
    println!("{:<54} {:<84} verdict", "mutant", "test");
    for (package, mutants) in packages {
        let healthy = worktree.healthy(package, &mutants)?;
        let mut caught = Vec::new();
        for mutant in &mutants {
            let verdict = worktree.verdict_on(mutant, healthy.get(mutant.test.as_str()).copied())?;
            tried += 1;
            survivors += usize::from(!verdict.starts_with(CAUGHT));
            if verdict.starts_with(CAUGHT) {
                caught.push(*mutant);
            }
            println!("{:<54} {:<84} {verdict}", mutant.name, mutant.test);
        }
        // Where disk or server were gone by then, each test was red, and would have been for a mutant that does no harm.
        let healthy = worktree.healthy(package, &caught)?;
        for mutant in uncaught(&caught, &healthy) {
            survivors += 1;
            println!("{:<54} {:<84} {RED_BY_NOW}", mutant.name, mutant.test);
        }
    }
    println!("{tried} mutants, {} caught", tried - survivors);
    if survivors == 0 {
        return Ok(());
    }
    Err(Failure::Threshold.because(format!("{survivors} mutants were not caught")))
}

/// Those whose test is red without them too by now.
fn uncaught<'m>(caught: &[&'m Mutant], healthy: &BTreeMap<&str, &str>) -> Vec<&'m Mutant> {
    caught.iter().filter(|mutant| !healthy.contains_key(mutant.test.as_str())).copied().collect()
}

/// A scratch checkout of HEAD that goes away with the value.
struct Worktree {
    path: PathBuf,
    _claim: File,
}

/// Refuses a scratch checkout in which somebody else tries mutants: each would judge the other's patches.
fn claim(scratch: &Path) -> Result<File> {
    let path = scratch.with_extension("lock");
    std::fs::create_dir_all(scratch.parent().unwrap_or(scratch))?;
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        let sentence = format!("mutants are being tried already in {}: wait until that has ended", scratch.display());
        return Err(Failure::Precondition.because(sentence));
    }
    Ok(file)
}

impl Worktree {
    fn add(path: &Path) -> Result<Self> {
        let (path, claim) = (path.to_path_buf(), claim(path)?);
        let _stale = git(&["worktree", "remove", "--force"], &path).output();
        must(git(&["worktree", "add", "--detach", "--force"], &path).arg("HEAD"))?;
        Ok(Self { path, _claim: claim })
    }

    /// Where each of the tests is that pass without any mutant.
    fn healthy<'m>(&self, package: Build<'_>, mutants: &[&'m Mutant]) -> Result<BTreeMap<&'m str, &'static str>> {
        let mut healthy = BTreeMap::new();
        if mutants.is_empty() {
            // Nothing is built for nobody.
            return Ok(healthy);
        }
        for target in TARGETS {
            let is_built = self.builds(package, target)?;
            for mutant in mutants {
                if is_built
                    && !healthy.contains_key(mutant.test.as_str())
                    && self.tries(mutant, target)? == Outcome::Green
                {
                    healthy.insert(mutant.test.as_str(), target);
                }
            }
        }
        Ok(healthy)
    }

    fn verdict_on(&self, mutant: &Mutant, healthy_in: Option<&str>) -> Result<&'static str> {
        let file = self.path.join(&mutant.file);
        let read = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", mutant.file.display()));
        let healthy = read?;
        if healthy.matches(&mutant.find).count() != 1 {
            return Ok("STALE: the patch does not fit the source any more");
        }
        let Some(target) = healthy_in else { return Ok("RED WITHOUT THE MUTANT") };
        std::fs::write(&file, healthy.replace(&mutant.find, &mutant.replace))?;
        let compiles = self.builds(mutant.build(), target)?;
        let outcome = if compiles { Some(self.tries(mutant, target)?) } else { None };
        std::fs::write(&file, healthy)?;
        Ok(outcome.map_or("STALE: the mutant does not compile", Outcome::verdict))
    }

    /// Builds tests of a package; the end-to-end suites start the programs as they are then.
    fn builds(&self, (package, features): Build<'_>, target: &str) -> Result<bool> {
        if package == "pim-testkit" {
            let mut programs = self.cargo(&["build", "--locked", "-p", "pim-lab", "--examples"]);
            if features.is_some_and(|features| features.split(',').any(|feature| feature == SERVERS)) {
                programs.args(["--features", SERVERS]);
            }
            if !run_bounded(programs)?.is_well() {
                return Ok(false);
            }
        }
        let mut tests = self.test_of((package, features), target);
        tests.arg("--no-run");
        Ok(run_bounded(tests)?.is_well())
    }

    /// How the named test ends.
    fn tries(&self, mutant: &Mutant, target: &str) -> Result<Outcome> {
        let mut command = self.test_of(mutant.build(), target);
        command.args(["--", "--include-ignored", "--exact", &mutant.test]);
        Ok(Outcome::of(&run_bounded(command)?, &mutant.test))
    }

    fn test_of(&self, (package, features): Build<'_>, target: &str) -> Command {
        let mut tests = self.cargo(&["test", "--locked", "-p", package, target]);
        if let Some(features) = features {
            tests.args(["--features", features]);
        }
        tests
    }

    fn cargo(&self, args: &[&str]) -> Command {
        let mut command = cargo(args);
        command.args(QUICKLY.iter().flat_map(|setting| ["--config", setting])).env("CARGO_INCREMENTAL", "1");
        command.current_dir(&self.path);
        // A directory of its own, so that a mutant's build never replaces a healthy program.
        command.env("CARGO_TARGET_DIR", self.path.with_extension("target"));
        command.env("RUST_TEST_THREADS", "2");
        command
    }
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Green,
    Red,
    /// Not at all.
    Endless,
    /// The program of the test went away, or has no such test: it says nothing of the guard.
    Untold,
}

impl Outcome {
    fn of(ended: &Ended, test: &str) -> Self {
        let tells = |text: &str, word: &str| text.contains(&format!("test {test} ... {word}"));
        match ended {
            Ended::Well(text) if tells(text, "ok") => Self::Green,
            Ended::Badly(text) if tells(text, "FAILED") => Self::Red,
            Ended::Late => Self::Endless,
            Ended::Well(_) | Ended::Badly(_) => Self::Untold,
        }
    }

    const fn verdict(self) -> &'static str {
        match self {
            Self::Green => "SURVIVED",
            Self::Red => CAUGHT,
            Self::Endless => "caught: waits for ever",
            Self::Untold => "UNTOLD: the test's program ended without a word of it",
        }
    }
}

/// How a command ended, with what it printed.
#[derive(Debug)]
enum Ended {
    Well(String),
    Badly(String),
    Late,
}

impl Ended {
    const fn is_well(&self) -> bool {
        matches!(self, Self::Well(_))
    }
}

fn run_bounded(mut command: Command) -> Result<Ended> {
    // In one group, so that a test that hangs goes with the programs it has started.
    let guard = Guard::arm(END_GROUP, &[])?;
    command.process_group(guard.group()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start cargo")?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.read_to_end(&mut bytes).is_ok();
        // Nobody listens any more when it took too long.
        let _late = sender.send(if read { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() });
    });
    let Ok(text) = ended.recv_timeout(PATIENCE) else {
        drop(guard);
        child.wait()?;
        return Ok(Ended::Late);
    };
    let status = child.wait()?;
    guard.disarm()?;
    Ok(if status.success() { Ended::Well(text) } else { Ended::Badly(text) })
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let _gone = git(&["worktree", "remove", "--force"], &self.path).output();
    }
}

fn git(args: &[&str], path: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(root()).args(args).arg(path);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &str = "postgres::fence::nobody_passes";
    /// Tells the child that it is one.
    const HOLD: &str = "LAB_TEST_HOLD";

    /// Guard: two that try mutants in one checkout would judge each other's patches.
    #[test]
    fn a_checkout_is_one_run_s_at_a_time() {
        let scratch = std::env::temp_dir().join(format!("xtask-mutants-{}", std::process::id()));
        let held = claim(&scratch).expect("nobody is at it");
        let refused = claim(&scratch).expect_err("somebody is at it");
        assert!(Failure::Precondition.is(&refused) && refused.to_string().contains("tried already"), "{refused}");
        drop(held);
        // A process that another test is starting has every file open for a moment.
        let is_free = (0..1_000).any(|_| {
            crate::shell::pause();
            claim(&scratch).is_ok()
        });
        assert!(is_free);
        std::fs::remove_file(scratch.with_extension("lock")).expect("is there");
    }

    /// Guard: a test that never ends goes with whoever tries it, however that ends.
    #[test]
    fn what_is_tried_ends_with_who_tries_it() {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "mutants::tests::a_child_tries_something_endless", "--nocapture"])
            .env(HOLD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("its output")));
        let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holds ").map(str::to_owned));
        let process = PathBuf::from(format!("/proc/{}/exe", pid.expect("is told")));
        let is_there = || std::fs::read_link(&process).is_ok();
        assert!(is_there());
        child.kill().and_then(|()| child.wait()).expect("is killed");
        let is_gone = (0..200).any(|_| {
            crate::shell::pause();
            !is_there()
        });
        assert!(is_gone, "{} goes on", process.display());
    }

    /// The child of the test above; does nothing when nobody asks for it.
    #[test]
    fn a_child_tries_something_endless() {
        if std::env::var_os(HOLD).is_some() {
            let mut endless = Command::new("sh");
            // Standard output is the caller's to read.
            endless.args(["-c", r"printf '\nholds %s\n' $$ >/proc/$PPID/fd/1; exec sleep 600"]);
            run_bounded(endless).expect("never ends");
        }
    }

    #[test]
    fn a_mutant_is_caught_by_its_test_and_by_nothing_else() {
        let told = |word: &str| format!("running 1 test\ntest {TEST} ... {word}\n");
        let verdict = |ended| Outcome::of(&ended, TEST).verdict();
        assert_eq!(verdict(Ended::Badly(told("FAILED"))), CAUGHT);
        assert!(verdict(Ended::Late).starts_with(CAUGHT));
        assert_eq!(verdict(Ended::Well(told("ok"))), "SURVIVED");
        // No server was to be had, memory was short, the test has another name by now.
        for ended in
            [Ended::Badly(String::new()), Ended::Badly(told("ok")), Ended::Well("running 0 tests\n".to_owned())]
        {
            assert!(!verdict(ended).starts_with(CAUGHT));
        }
    }

    /// Guard: what broke in the middle of a run must not look like a test that noticed.
    #[test]
    fn whoever_is_red_without_the_mutant_by_now_caught_nothing() {
        let mutant = |test: &str| Mutant {
            name: test.to_owned(),
            area: String::new(),
            file: PathBuf::new(),
            find: String::new(),
            replace: String::new(),
            package: String::new(),
            features: None,
            test: test.to_owned(),
        };
        let (one, other) = (mutant("one"), mutant("other"));
        let healthy = BTreeMap::from([("one", "--lib")]);
        let uncaught = uncaught(&[&one, &other], &healthy);
        assert_eq!(uncaught.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn a_test_is_known_by_its_whole_path() {
        let (source, text) = (Path::new("pim-data/tests/it/postgres/fence.rs"), "async fn nobody_passes() {}");
        assert!(holds(source, text, TEST));
        assert!(holds(source, text, "postgres::fence::tests::nobody_passes"));
        assert!(holds(Path::new("pim-data/src/fence/tests.rs"), text, "fence::tests::nobody_passes"));
        assert!(!holds(source, text, "nobody_passes"), "by its bare name none is run");
        assert!(!holds(source, text, "postgres::fences::nobody_passes"));
        assert!(!holds(source, text, "postgres::fence::somebody_passes"));
        assert!(holds(Path::new("a/src/lib.rs"), "mod fence { fn nobody_passes() {} }", "fence::nobody_passes"));
    }
}
