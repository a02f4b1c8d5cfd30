//! Every part of the lab in one process: `cargo run --example services -- --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pim_lab::show::main()
}
