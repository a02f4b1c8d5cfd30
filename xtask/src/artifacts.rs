//! What cargo says that it has built, and where.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::Value as Json;

use crate::shell::{cargo, output_of};

/// A program that cargo has made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// The folder of its package.
    pub(crate) folder: PathBuf,
    /// Whether it runs tests instead of what its target does.
    pub(crate) is_test: bool,
    /// The program.
    pub(crate) path: PathBuf,
}

impl Artifact {
    /// Runs cargo with these arguments and gives the programs that there are then, whether they were there before or not.
    pub(crate) fn build(arguments: &[&str]) -> Result<Vec<Self>> {
        let mut build = cargo(arguments);
        build.args(["--locked", "--message-format", "json-render-diagnostics"]);
        let told = output_of(build.stderr(Stdio::inherit()))?;
        Ok(told.lines().filter_map(Self::told).collect())
    }

    /// The example of this name, as whoever starts it finds it.
    pub(crate) fn example<'a>(built: &'a [Self], name: &str) -> Result<&'a Self> {
        let mut examples = built.iter().filter(|it| !it.is_test && it.path.ends_with(Path::new("examples").join(name)));
        examples.next().with_context(|| format!("cargo did not build the example {name}"))
    }

    fn told(line: &str) -> Option<Self> {
        let told: Json = serde_json::from_str(line).ok()?;
        Some(Self {
            folder: Path::new(told["manifest_path"].as_str()?).parent()?.to_path_buf(),
            is_test: told["profile"]["test"].as_bool()?,
            path: told["executable"].as_str()?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(test: bool, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/w/pim-data/Cargo.toml","profile":{{"test":{test}}},"executable":{executable}}}"#
        )
    }

    #[test]
    fn programs_are_told_from_everything_else() {
        let program = Artifact { folder: "/w/pim-data".into(), is_test: true, path: "/w/target/it-1".into() };
        assert_eq!(Artifact::told(&line(true, r#""/w/target/it-1""#)), Some(program));
        for other in [line(true, "null"), r#"{"reason":"build-finished"}"#.to_owned(), "warning".to_owned()] {
            assert_eq!(Artifact::told(&other), None, "{other}");
        }
    }

    #[test]
    fn an_example_is_the_program_and_not_its_tests() {
        // With a choice of targets `cargo test` makes only these of an example.
        let tests = Artifact::told(&line(true, r#""/w/target/debug/examples/services-1""#)).expect("a program");
        let program = Artifact::told(&line(false, r#""/w/target/debug/examples/services""#)).expect("a program");
        assert!(Artifact::example(std::slice::from_ref(&tests), "services").is_err());
        assert_eq!(
            Artifact::example(&[tests, program], "services").expect("is there").path,
            Path::new("/w/target/debug/examples/services")
        );
    }
}
