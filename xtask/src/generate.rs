//! Generated references: written from the code, committed, and compared in CI.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::artifacts::Artifact;
use crate::exit::Failure;
use crate::shell::{output_of, root};

/// Each reference, and the argument of the `generate` example that prints it.
const REFERENCES: &[(&str, &str)] = &[("docs/rbac-matrix.md", "rbac-matrix"), ("docs/signals.md", "signals")];

/// Arguments of `cargo xtask generate`.
#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    /// Compares with what is committed and writes nothing.
    #[arg(long)]
    check: bool,
}

/// Writes or compares.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    if args.check { check() } else { write() }
}

/// Fails when a committed reference is not what the code says.
pub(crate) fn check() -> Result<()> {
    for (file, name) in REFERENCES {
        let committed = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        if committed != rendered(name)? {
            let sentence = format!("{file} is not what the code says: run `cargo xtask generate` and commit it");
            return Err(Failure::Threshold.because(sentence));
        }
    }
    println!("generate: {} references are up to date", REFERENCES.len());
    Ok(())
}

fn write() -> Result<()> {
    for (file, name) in REFERENCES {
        std::fs::write(root().join(file), rendered(name)?).with_context(|| format!("cannot write {file}"))?;
        println!("wrote {file}");
    }
    Ok(())
}

fn rendered(name: &str) -> Result<String> {
    // As the tests are built, features and all: otherwise everything would be built anew.
    let built = Artifact::build(&["build", "--quiet", "--profile", "test", "--workspace", "--example", "generate"])?;
    output_of(Command::new(&Artifact::example(&built, "generate")?.path).arg(name))
}
