//! The projection worker as a program of its own.

use std::process::ExitCode;

use pim_lab::rig::launch;
use pim_lab::workers::{Worker, WorkerSettings};

fn main() -> ExitCode {
    launch(8087, |settings: WorkerSettings, drain| Worker::ProjectionWorker.run(settings, drain))
}
