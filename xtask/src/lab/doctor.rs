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
    /// Whether the lab does without it, and only suites that are asked for want it.
    is_optional: bool,
}

const NEEDS: &[Need] = &[
    Need {
        name: "a C compiler",
        purpose: "every build",
        look: || version_of("cc", "--version"),
        install: "apt-get install gcc libc6-dev",
        is_optional: false,
    },
    Need {
        name: "curl",
        purpose: "the commands that the lab prints",
        look: || version_of("curl", "--version"),
        install: "apt-get install curl",
        is_optional: false,
    },
    Need {
        name: "PostgreSQL 15 or later",
        purpose: "`lab up --mode process`, lab servers, and the suites that kill servers",
        look: || Programs::find().map(|found| found.bin().display().to_string()).map_err(|why| why.to_string()),
        install: "apt-get install postgresql",
        is_optional: false,
    },
    Need {
        name: "a Docker engine",
        purpose: "suites in containers",
        look: || if docker_answers() { Ok("answers".to_owned()) } else { Err("no engine answers".to_owned()) },
        install: "apt-get install docker.io && dockerd &",
        is_optional: false,
    },
    Need {
        name: "an image of PostgreSQL",
        purpose: "suites in containers, without a registry",
        look: || if docker_answers() { image::POSTGRES.find() } else { Err("no engine answers".to_owned()) },
        install: "bash .ci/setup",
        is_optional: false,
    },
    Need {
        name: "Redis 7 or later",
        purpose: "no suite needs it yet",
        look: || version_of("redis-server", "--version"),
        install: "apt-get install redis-server",
        is_optional: true,
    },
    Need {
        name: "Apache Kafka",
        purpose: "no suite needs it yet",
        look: kafka,
        install: "apt-get install openjdk-17-jre-headless maven && mvn -q dependency:get \
                  -Dartifact=org.apache.kafka:kafka_2.13:4.3.1",
        is_optional: true,
    },
    Need {
        name: "a certified OIDC provider",
        purpose: "no suite needs it yet",
        look: oidc,
        install: "apt-get install nodejs npm && npm install --prefix target/oidc oidc-provider@9",
        is_optional: true,
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
    let missing = findings.iter().filter(|finding| finding.found.is_err() && !finding.need.is_optional).count();
    if json {
        print("doctor", &json!({"needs": findings.iter().map(Finding::document).collect::<Value>()}), true);
    } else {
        for finding in &findings {
            say(&finding.line());
        }
    }
    if missing == 0 {
        return Ok(());
    }
    let needed = NEEDS.iter().filter(|need| !need.is_optional).count();
    Err(Failure::Precondition.because(format!("{missing} of {needed} are missing")))
}

impl Finding {
    fn document(&self) -> Value {
        let Need { name, purpose, install, .. } = self.need;
        match &self.found {
            Ok(found) => json!({"name": name, "for": purpose, "is_there": true, "found": found}),
            Err(why) => json!({
                "name": name, "for": purpose, "is_there": false, "why": why, "install": install,
                "is_optional": self.need.is_optional,
            }),
        }
    }

    fn line(&self) -> String {
        let Need { name, purpose, install, .. } = self.need;
        match &self.found {
            Ok(found) => format!("ok       {name} ({purpose}): {found}"),
            Err(why) => {
                let verdict = if self.need.is_optional { "absent " } else { "missing" };
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
    use super::{Finding, NEEDS, version_of};

    #[test]
    fn what_is_missing_is_named_with_the_command_that_installs_it() {
        for need in NEEDS {
            let finding = Finding { need, found: Err("gone".to_owned()) };
            assert!(finding.line().contains(need.name) && finding.line().contains(need.install));
            assert_eq!(finding.line().starts_with("missing"), !need.is_optional);
            assert_eq!(finding.document()["is_optional"], need.is_optional);
            assert_eq!(finding.document()["install"], need.install);
            let finding = Finding { need, found: Ok("here".to_owned()) };
            assert!(!finding.line().contains(need.install), "nothing to install");
            assert_eq!(finding.document()["install"], serde_json::Value::Null);
        }
        assert!(version_of("no-such-program", "--version").is_err());
    }
}
