//! The session broker as a program of its own.

use std::process::ExitCode;

use pim_lab::broker::BrokerProgram;
use pim_lab::rig::launch;

fn main() -> ExitCode {
    launch(8081, BrokerProgram::run)
}
