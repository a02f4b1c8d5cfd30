//! What the process itself uses, read from the operating system when it is asked for.

use pim_core::signal::{Catalog, Descriptor, GaugeFamily, Kind, Purpose, SignalError, SignalRegistry};

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Descriptor {
    Descriptor {
        name,
        kind: Kind::Gauge,
        unit,
        help,
        labels: &[],
        purpose: Purpose::Use,
        buckets: &[],
        owner: "pim-telemetry",
        runbook: "",
    }
}

/// Memory in use.
pub const RESIDENT: Descriptor = gauge("process_resident_memory_bytes", "bytes", "Resident memory of the process");
/// Open files and sockets.
pub const OPEN_FILES: Descriptor = gauge("process_open_fds", "", "Open file descriptors of the process");
/// Threads.
pub const THREADS: Descriptor = gauge("process_threads", "", "Threads of the process");

/// The signals of this room.
pub const CATALOG: Catalog = Catalog { owner: "pim-telemetry", descriptors: &[&RESIDENT, &OPEN_FILES, &THREADS] };

/// Handles of the process's own signals.
#[derive(Clone, Debug)]
pub struct ProcessSignals {
    resident: GaugeFamily<()>,
    open_files: GaugeFamily<()>,
    threads: GaugeFamily<()>,
}

impl ProcessSignals {
    /// Binds them.
    ///
    /// # Errors
    /// [`SignalError`] when they have been bound already.
    pub fn bind(registry: &mut SignalRegistry) -> Result<Self, SignalError> {
        Ok(Self {
            resident: registry.gauge(&RESIDENT)?,
            open_files: registry.gauge(&OPEN_FILES)?,
            threads: registry.gauge(&THREADS)?,
        })
    }

    /// Reads them anew; what the system does not tell stays as it was.
    pub fn read(&self) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        if let Some(kib) = number("VmRSS:") {
            self.resident.get(()).set(kib * 1024);
        }
        if let Some(threads) = number("Threads:") {
            self.threads.get(()).set(threads);
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.get(()).set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
    }
}
