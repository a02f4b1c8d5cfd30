//! The persona simulator as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    pim_lab::persona::main()
}
