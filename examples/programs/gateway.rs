//! The gateway as a program of its own.

use std::process::ExitCode;

use pim_lab::gateway::GatewayProgram;
use pim_lab::rig::launch;

fn main() -> ExitCode {
    launch(8080, GatewayProgram::run)
}
