//! The outbox processor as a program of its own.

use std::process::ExitCode;

use pim_lab::rig::launch;
use pim_lab::workers::{Worker, WorkerSettings};

fn main() -> ExitCode {
    launch(8086, |settings: WorkerSettings, drain| Worker::OutboxProcessor.run(settings, drain))
}
