//! One install a program.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use crate::awake::stay_awake;
use crate::log::{JsonLayer, LogSettings, LogWriter};
use crate::panic::tell_places;

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Where an install begins.
#[derive(Debug)]
pub struct Telemetry;

/// Collects what to install.
#[derive(Debug)]
#[must_use = "a builder does nothing until install()"]
pub struct TelemetryBuilder {
    service: &'static str,
    logs: LogSettings,
}

/// An install that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// Telemetry is installed once in a program.
    #[error("telemetry is installed already")]
    Twice,
    /// Another subscriber has been installed without this crate.
    #[error("another tracing subscriber is installed already")]
    Foreign,
    /// The filter is none.
    #[error("the log filter is not of the form of tracing_subscriber::EnvFilter")]
    Filter,
    /// The writer's thread cannot be started.
    #[error("the log writer cannot be started")]
    Writer,
}

/// What was shown and what was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Lines that were taken.
    pub taken: u64,
    /// Lines that were written and flushed.
    pub written: u64,
    /// Lines that were dropped because the queue was full, or that the target did not take. Taken is written and dropped together.
    pub dropped: u64,
    /// Lines that were not taken because their event had its share of the second.
    pub suppressed: u64,
    /// Values of other crates' events that were not shown.
    pub redacted: u64,
}

/// Keeps telemetry alive. Dropping it flushes within two seconds, and the last lines tell what was lost.
#[derive(Debug)]
pub struct TelemetryGuard(Ending);

/// A writer whose end is told, by its last lines or to who asks for the report.
#[derive(Debug)]
struct Ending {
    writer: LogWriter,
    is_reported: bool,
}

impl Ending {
    const fn of(writer: LogWriter) -> Self {
        Self { writer, is_reported: false }
    }

    fn report(mut self) -> ShutdownReport {
        self.writer.tell_suppressed();
        self.writer.flush();
        self.is_reported = true;
        self.writer.report()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.is_reported {
            self.writer.close();
        }
    }
}

impl Telemetry {
    /// Begins; `service` names the program in every line.
    pub fn builder(service: &'static str) -> TelemetryBuilder {
        TelemetryBuilder { service, logs: LogSettings::default() }
    }
}

impl TelemetryBuilder {
    /// How lines are logged.
    pub fn logs(mut self, settings: LogSettings) -> Self {
        self.logs = settings;
        self
    }

    /// Sets telemetry up for the events of this thread alone, with lines going to `target`.
    ///
    /// # Errors
    /// [`InstallError`] when the filter is none or the writer cannot be started.
    pub fn scoped(self, target: impl Write + Send + 'static) -> Result<ScopedTelemetry, InstallError> {
        let filter = EnvFilter::try_new(&self.logs.filter).map_err(|_| InstallError::Filter)?;
        let writer = LogWriter::start(self.service, target, &self.logs).map_err(|_| InstallError::Writer)?;
        let subscriber = Registry::default().with(JsonLayer::new(writer.clone()).with_filter(filter));
        stay_awake();
        Ok(ScopedTelemetry { ending: Ending::of(writer), _scope: tracing::subscriber::set_default(subscriber) })
    }

    /// Installs. From then on a panic is one line with its place and without its message, which may hold what somebody sent:
    /// the hook that would write it to standard error is replaced.
    ///
    /// # Errors
    /// [`InstallError::Twice`] when it has been installed; one that failed may be tried again.
    pub fn install(self) -> Result<TelemetryGuard, InstallError> {
        let filter = EnvFilter::try_new(&self.logs.filter).map_err(|_| InstallError::Filter)?;
        if INSTALLED.swap(true, Ordering::SeqCst) {
            return Err(InstallError::Twice);
        }
        self.installed(filter).inspect_err(|_| INSTALLED.store(false, Ordering::SeqCst))
    }

    fn installed(&self, filter: EnvFilter) -> Result<TelemetryGuard, InstallError> {
        let writer = LogWriter::start(self.service, std::io::stderr(), &self.logs).map_err(|_| InstallError::Writer)?;
        let subscriber = Registry::default().with(JsonLayer::new(writer.clone()).with_filter(filter));
        tracing::subscriber::set_global_default(subscriber).map_err(|_| InstallError::Foreign)?;
        tell_places(writer.clone());
        Ok(TelemetryGuard(Ending::of(writer)))
    }
}

/// Telemetry of one thread, for tests and for programs that have a subscriber of their own. It ends with the value, as
/// [`TelemetryGuard`] does. Panics stay as they are.
#[derive(Debug)]
#[must_use = "it ends with the value"]
pub struct ScopedTelemetry {
    ending: Ending,
    _scope: tracing::subscriber::DefaultGuard,
}

impl ScopedTelemetry {
    /// Where access lines go.
    #[must_use]
    pub fn writer(&self) -> LogWriter {
        self.ending.writer.clone()
    }

    /// Writes what is queued, within two seconds, and says what became of all lines.
    pub fn shutdown(self) -> ShutdownReport {
        self.ending.report()
    }
}

impl TelemetryGuard {
    /// Where access lines go.
    #[must_use]
    pub fn writer(&self) -> LogWriter {
        self.0.writer.clone()
    }

    /// Writes what is queued, within two seconds, and says what became of all lines.
    pub fn shutdown(self) -> ShutdownReport {
        self.0.report()
    }
}
