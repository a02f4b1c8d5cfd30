//! `cargo xtask lab doctor`: which modes can run here, what is missing, and the command that installs it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use pim_servers::image;
use pim_servers::programs::Programs;
use pim_servers::shared::docker_answers;
use serde_json::{Value, json};

use super::document::{print, say};
use crate::exit::Failure;
use crate::shell::root;

/// Something that the lab or its suites use.
struct Need {
    name: &'static str,
    /// What cannot be done without it.
    purpose: &'static str,
    /// Where it is, or why it cannot be used.
    look: fn() -> Result<String, String>,
    install: &'static str,
    /// The modes of the lab that do not run without it.
    modes: &'static [&'static str],
}

impl Need {
    /// Whether the lab does without it in every mode: a walk by hand wants it, or suites that are asked for.
    const fn is_optional(&self) -> bool {
        self.modes.is_empty()
    }
}

/// As `lab up --mode` takes them.
const MODES: [&str; 2] = ["embedded", "process"];
/// The first one that has all that the walk of the README asks of it: `%header{}` came with it, and `--json` with 7.82.
const CURL_MIN: (u32, u32) = (7, 84);

const NEEDS: &[Need] = &[
    Need {
        name: "a C compiler",
        purpose: "every build",
        look: || version_of("cc", "--version"),
        install: "apt-get install gcc libc6-dev",
        modes: &MODES,
    },
    Need {
        name: "curl 7.84 or later",
        purpose: "the commands that the lab prints, and the walk of the README",
        look: || version_of("curl", "--version").and_then(|told| recent(&told).map(|()| told)),
        install: "apt-get install curl",
        modes: &[],
    },
    Need {
        name: "PostgreSQL 15 or later",
        purpose: "`lab up --mode process`, lab servers, and the suites that kill servers",
        look: || Programs::find().map(|found| found.bin().display().to_string()).map_err(|why| why.to_string()),
        install: "apt-get install postgresql",
        modes: &["process"],
    },
    Need {
        name: "a Docker engine",
        purpose: "suites in containers",
        look: || if docker_answers() { Ok("answers".to_owned()) } else { Err("no engine answers".to_owned()) },
        install: "apt-get install docker.io && dockerd &",
        modes: &[],
    },
    Need {
        name: "an image of PostgreSQL",
        purpose: "suites in containers, without a registry",
        look: || if docker_answers() { image::POSTGRES.find() } else { Err("no engine answers".to_owned()) },
        install: "bash .ci/setup",
        modes: &[],
    },
    Need {
        name: "Redis 7 or later",
        purpose: "no suite needs it yet",
        look: || version_of("redis-server", "--version"),
        install: "apt-get install redis-server",
        modes: &[],
    },
    Need {
        name: "Apache Kafka",
        purpose: "no suite needs it yet",
        look: kafka,
        install: "apt-get install openjdk-17-jre-headless maven && mvn -q dependency:get \
                  -Dartifact=org.apache.kafka:kafka_2.13:4.3.1",
        modes: &[],
    },
    Need {
        name: "a certified OIDC provider",
        purpose: "no suite needs it yet",
        look: oidc,
        install: "apt-get install nodejs npm && npm install --prefix target/oidc oidc-provider@9",
        modes: &[],
    },
];

/// What one look found.
struct Finding {
    need: &'static Need,
    found: Result<String, String>,
}

/// Prints what is there and what is not; fails when something is missing that the lab cannot do without.
pub(super) fn run(json: bool) -> Result<()> {
    let findings: Vec<_> = NEEDS.iter().map(|need| Finding { need, found: (need.look)() }).collect();
    let missing = findings.iter().filter(|finding| finding.found.is_err() && !finding.need.is_optional()).count();
    if json {
        let modes = MODES.iter().map(|mode| json!({"name": mode, "lacks": lacks(mode, &findings)})).collect::<Value>();
        let needs = findings.iter().map(Finding::document).collect::<Value>();
        print("doctor", &json!({"modes": modes, "needs": needs}), true);
    } else {
        for mode in MODES {
            say(&verdict_on(mode, &lacks(mode, &findings)));
        }
        for finding in &findings {
            say(&finding.line());
        }
    }
    if missing == 0 {
        return Ok(());
    }
    let needed = NEEDS.iter().filter(|need| !need.is_optional()).count();
    Err(Failure::Precondition.because(format!("{missing} of {needed} are missing")))
}

/// What a mode of the lab does not find here.
fn lacks(mode: &str, findings: &[Finding]) -> Vec<&'static str> {
    let of_it = findings.iter().filter(|it| it.found.is_err() && it.need.modes.contains(&mode));
    of_it.map(|finding| finding.need.name).collect()
}

fn verdict_on(mode: &str, lacks: &[&str]) -> String {
    if lacks.is_empty() {
        return format!("runs     `lab up --mode {mode}`");
    }
    format!("cannot   `lab up --mode {mode}`: without {}", lacks.join(", "))
}

/// Whether a curl of this account of itself, `curl 7.88.1 (…`, has what is asked of it.
fn recent(told: &str) -> Result<(), String> {
    let version = told.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = version.split('.').map(|it| it.parse().unwrap_or(0));
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= CURL_MIN { Ok(()) } else { Err(format!("it is {version}")) }
}

impl Finding {
    fn document(&self) -> Value {
        let Need { name, purpose, install, .. } = self.need;
        match &self.found {
            Ok(found) => json!({"name": name, "for": purpose, "is_there": true, "found": found}),
            Err(why) => json!({
                "name": name, "for": purpose, "is_there": false, "why": why, "install": install,
                "is_optional": self.need.is_optional(),
            }),
        }
    }

    fn line(&self) -> String {
        let Need { name, purpose, install, .. } = self.need;
        match &self.found {
            Ok(found) => format!("ok       {name} ({purpose}): {found}"),
            Err(why) => {
                let verdict = if self.need.is_optional() { "absent " } else { "missing" };
                format!("{verdict}  {name} ({purpose}): {why}\n         {install}")
            }
        }
    }
}

/// Its archive in the local repository of Maven, and a Java that runs it.
fn kafka() -> Result<String, String> {
    let java = version_of("java", "--version")?;
    let home = std::env::var_os("HOME").unwrap_or_default();
    let archive = Path::new(&home).join(".m2/repository/org/apache/kafka/kafka_2.13");
    if archive.is_dir() { Ok(format!("{} with {java}", archive.display())) } else { Err(absent(&archive)) }
}

/// Its package below the target directory.
fn oidc() -> Result<String, String> {
    let node = version_of("node", "--version")?;
    let package = root().join("target/oidc/node_modules/oidc-provider");
    if package.is_dir() { Ok(format!("{} with node {node}", package.display())) } else { Err(absent(&package)) }
}

fn absent(path: &Path) -> String {
    format!("{} is not there", path.display())
}

fn version_of(program: &str, flag: &str) -> Result<String, String> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output();
    let output = output.map_err(|why| format!("`{program}` cannot be run: {why}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Finding, MODES, NEEDS, lacks, recent, verdict_on, version_of};

    #[test]
    fn what_is_missing_is_named_with_the_command_that_installs_it() {
        for need in NEEDS {
            let finding = Finding { need, found: Err("gone".to_owned()) };
            assert!(finding.line().contains(need.name) && finding.line().contains(need.install));
            assert_eq!(finding.line().starts_with("missing"), !need.is_optional());
            assert_eq!(finding.document()["is_optional"], need.is_optional());
            assert_eq!(finding.document()["install"], need.install);
            let finding = Finding { need, found: Ok("here".to_owned()) };
            assert!(!finding.line().contains(need.install), "nothing to install");
            assert_eq!(finding.document()["install"], serde_json::Value::Null);
        }
        assert!(version_of("no-such-program", "--version").is_err());
    }

    /// Guard: what no mode needs fails no machine, and what a mode needs is named with it.
    #[test]
    fn a_mode_runs_where_all_is_that_it_needs() {
        let without = |gone: &str| {
            let found = |need: &super::Need| {
                if need.name.contains(gone) { Err("gone".to_owned()) } else { Ok("here".to_owned()) }
            };
            let findings: Vec<_> = NEEDS.iter().map(|need| Finding { need, found: found(need) }).collect();
            MODES.map(|mode| verdict_on(mode, &lacks(mode, &findings)).starts_with("runs"))
        };
        assert_eq!(without("C compiler"), [false, false]);
        assert_eq!(without("PostgreSQL 15"), [true, false]);
        // Ubuntu 22.04 comes with curl 7.81, which is too old for the README's walk alone.
        for no_mode_s in ["curl", "Docker", "image", "Redis", "Kafka", "OIDC"] {
            assert_eq!(without(no_mode_s), [true, true], "{no_mode_s}");
            assert!(NEEDS.iter().any(|need| need.name.contains(no_mode_s) && need.is_optional()), "{no_mode_s}");
        }
        assert_eq!(NEEDS.iter().filter(|need| !need.is_optional()).count(), 2, "compiler and PostgreSQL");
    }

    #[test]
    fn a_curl_that_is_too_old_for_the_walk_is_named() {
        for told in ["curl 7.84.0 (x86_64-pc-linux-gnu) libcurl/7.84.0", "curl 8.5.0", "curl 10.0"] {
            recent(told).expect(told);
        }
        assert_eq!(recent("curl 7.83.1 (x86_64)"), Err("it is 7.83.1".to_owned()));
        recent("").expect_err("says nothing");
    }
}
