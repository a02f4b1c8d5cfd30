//! Tests that nobody runs: built for a suite that chooses by name, and not of that name.

use std::collections::BTreeSet;

use anyhow::Result;

use super::built::{Built, Test};
use super::{Of, Suite};
use crate::exit::Failure;

/// Refuses tests that neither the workspace's run nor any suite chooses, be it one that can run here or not.
///
/// Where no programs on servers are built, their tests are not looked at.
pub(super) fn refuse(of_workspace: &Built, on_servers: Option<&Built>, suites: &[Suite]) -> Result<()> {
    let mut run = of_workspace.chosen(None, &[])?;
    let mut all = all_of(of_workspace)?;
    if let Some(on_servers) = on_servers {
        all.extend(all_of(on_servers)?);
    }
    for suite in suites {
        let built = if suite.of == Of::Servers { on_servers.unwrap_or(of_workspace) } else { of_workspace };
        run.extend(built.chosen(Some(suite.package), &suite.arguments(None))?);
    }
    let forgotten: Vec<_> =
        all.difference(&run).map(|(folder, name)| format!("{}: {name}", folder.display())).collect();
    if forgotten.is_empty() {
        return Ok(());
    }
    let forgotten = forgotten.join("\n  ");
    Err(Failure::Threshold.because(format!("tests that nobody runs, as no suite chooses their names:\n  {forgotten}")))
}

fn all_of(built: &Built) -> Result<BTreeSet<Test>> {
    let mut all = built.chosen(None, &[])?;
    all.extend(built.chosen(None, &["--ignored"])?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::built::tests::this_program;
    use super::super::{SUITES, Server};
    use super::*;

    /// Guard: a test whose name no suite chooses is run by nobody, and nothing else would say so.
    #[test]
    fn tests_that_no_suite_chooses_are_named() {
        let built = this_program();
        refuse(&built, None, SUITES).expect("each is chosen");
        let refused = refuse(&built, None, &[]).expect_err("its ignored ones are no suite's");
        assert!(Failure::Threshold.is(&refused), "{refused}");
        let named = refused.to_string();
        assert!(named.contains("what_programs_have_to_know_is_said"), "{named}");
        assert!(!named.contains("tests_that_no_suite_chooses_are_named"), "the workspace's run has it: {named}");
    }

    /// Guard: a suite that does not ask for ignored tests lists them, and does not run them.
    #[test]
    fn a_suite_runs_what_is_ignored_only_when_it_says_so() {
        let suite = |flags| Suite {
            server: Server::Postgres,
            what: "a suite",
            lacks: || Ok(()),
            package: "xtask",
            of: Of::Workspace,
            flags,
            tests: &["what_programs_have_to_know_is_said"],
        };
        let named =
            |suite| refuse(&this_program(), None, &[suite]).map_err(|it| it.to_string()).err().unwrap_or_default();
        assert!(named(suite(&[])).contains("what_programs_have_to_know_is_said"));
        assert!(!named(suite(&["--ignored"])).contains("what_programs_have_to_know_is_said"));
    }
}
