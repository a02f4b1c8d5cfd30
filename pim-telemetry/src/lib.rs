#![doc = include_str!("../README.md")]

mod awake;
pub mod capture;
pub mod convention;
pub mod exposition;
mod install;
mod log;
pub mod observe;
mod panic;
pub mod process;
pub mod trace;

pub use install::{InstallError, ScopedTelemetry, ShutdownReport, Telemetry, TelemetryBuilder, TelemetryGuard};
pub use log::{LogSettings, LogWriter, line};
