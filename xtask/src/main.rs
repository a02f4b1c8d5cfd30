//! `cargo xtask`: drives cargo and the built programs as processes; knows none of the library crates, only `pim-servers`.

mod artifacts;
mod bench;
mod ci;
mod exit;
mod generate;
mod lab;
mod mutants;
mod shell;
mod suite;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs every test that this machine can run, and says which it cannot.
    Test(suite::TestArgs),
    /// Runs what decides whether work lands: test, tidy, clippy, rustdoc, deny.
    Ci(ci::CiArgs),
    /// Checks the rules of the repository: budgets, docs, names, the crate graph, patches that fit.
    Tidy,
    /// Writes the generated references; with --check only compares.
    Generate(generate::GenerateArgs),
    /// Measures against peers in one run and prints ratios.
    Bench(bench::BenchArgs),
    /// Starts, watches and questions a running lab.
    Lab(lab::LabArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Test(args) => suite::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Tidy => tidy::run(),
        Task::Generate(args) => generate::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Lab(args) => lab::run(&args),
    };
    exit::code_of(outcome)
}
