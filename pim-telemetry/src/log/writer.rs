//! The writer's thread and its bounded queue.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use pim_core::clock::Clock;

use super::LogSettings;
use super::pace::{Origin, Pace, Verdict};
use crate::install::ShutdownReport;

const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// Lines go to the target together while more of them wait, up to about so many bytes.
const BATCH_BYTES: usize = 8 * 1024;

enum Item {
    Line(String),
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    taken: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
    suppressed: AtomicU64,
    redacted: AtomicU64,
}

/// Takes lines and never blocks.
#[derive(Clone)]
pub struct LogWriter {
    service: &'static str,
    queue: SyncSender<Item>,
    counts: Arc<Counts>,
    pace: Arc<Pace>,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("service", &self.service).field("counts", &self.counts).finish()
    }
}

impl LogWriter {
    /// Starts the thread that writes to `target`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        service: &'static str,
        target: impl Write + Send + 'static,
        settings: &LogSettings,
    ) -> io::Result<Self> {
        let (queue, items) = sync_channel(settings.queue_max.max(1));
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        thread::Builder::new().name("telemetry".to_owned()).spawn(move || write_all(&items, target, &counted))?;
        let pace = Arc::new(Pace::new(settings.info_per_second_max));
        Ok(Self { service, queue, counts, pace })
    }

    /// The program that it writes for.
    #[must_use]
    pub const fn service(&self) -> &'static str {
        self.service
    }

    /// Takes a line, or drops and counts it when the queue is full.
    pub fn take(&self, line: String) {
        self.counts.taken.fetch_add(1, Ordering::Relaxed);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(Item::Line(line)) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether one more line of an event of level INFO or below is written.
    pub(crate) fn verdict(&self, origin: Origin, now: Instant) -> Verdict {
        let verdict = self.pace.verdict(origin, now);
        if verdict == Verdict::Suppress {
            self.counts.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    pub(crate) fn count_redacted(&self, values: u64) {
        self.counts.redacted.fetch_add(values, Ordering::Relaxed);
    }

    /// Tells of lines that were suppressed and that no later line of their event has told of.
    pub(crate) fn tell_suppressed(&self) {
        let untold = self.pace.untold();
        if untold > 0 {
            let members = [("suppressed", Some(untold.into()))];
            self.take(super::line(Clock::system().now(), "info", self.service, "log.suppressed", &members));
        }
    }

    /// Tells what was lost and what was not shown, when there is any of it.
    fn tell_incomplete(&self) {
        let ShutdownReport { dropped, redacted, .. } = self.report();
        if dropped + redacted > 0 {
            let told = |count: u64| (count > 0).then(|| count.into());
            let members = [("dropped", told(dropped)), ("redacted", told(redacted))];
            self.take(super::line(Clock::system().now(), "warn", self.service, "log.incomplete", &members));
        }
    }

    /// The end for who asks for no report: what is queued is written, then told what is missing; two seconds at most.
    pub(crate) fn close(&self) {
        let give_up = Instant::now() + FLUSH_WITHIN;
        // First, so that a full queue has room for what is told, and has dropped all that it will.
        self.flush_until(give_up);
        self.tell_suppressed();
        self.tell_incomplete();
        self.flush_until(give_up);
    }

    /// Waits until what is queued has been written, two seconds at most.
    pub fn flush(&self) {
        self.flush_until(Instant::now() + FLUSH_WITHIN);
    }

    fn flush_until(&self, give_up: Instant) {
        let (done, waiting) = sync_channel(1);
        let mut item = Item::Flush(done);
        // The queue may be full: what is in it goes first.
        while let Err(TrySendError::Full(again)) = self.queue.try_send(item) {
            if Instant::now() > give_up {
                return;
            }
            item = again;
            #[expect(clippy::disallowed_methods, reason = "at the end of a program, when nothing else is left to run")]
            thread::sleep(Duration::from_millis(1));
        }
        let _late = waiting.recv_timeout(give_up.saturating_duration_since(Instant::now()));
    }

    /// What became of all lines.
    #[must_use]
    pub fn report(&self) -> ShutdownReport {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let counts = &self.counts;
        ShutdownReport {
            taken: read(&counts.taken),
            written: read(&counts.written),
            dropped: read(&counts.dropped),
            suppressed: read(&counts.suppressed),
            redacted: read(&counts.redacted),
        }
    }
}

fn write_all(items: &Receiver<Item>, target: impl Write, counts: &Counts) {
    let mut batch = Batch { target, bytes: Vec::new(), lines: 0, is_behind_torn: false, counts };
    loop {
        let item = items.try_recv().or_else(|empty| match empty {
            TryRecvError::Empty => {
                // Nothing waits: whoever is killed while it is idle has said everything.
                batch.send();
                items.recv().map_err(drop)
            }
            TryRecvError::Disconnected => Err(()),
        });
        match item {
            Ok(Item::Line(line)) => batch.add(&line),
            Ok(Item::Flush(done)) => {
                batch.send();
                let _nobody_waits = done.send(());
            }
            Err(()) => return batch.send(),
        }
    }
}

/// Lines on their way, of which nobody knows yet whether the target takes them.
struct Batch<'a, W> {
    target: W,
    bytes: Vec<u8>,
    lines: u64,
    /// Whether the target has the beginning of a line and not its end, from whichever batch. What is sent next ends it first.
    is_behind_torn: bool,
    counts: &'a Counts,
}

impl<W: Write> Batch<'_, W> {
    fn add(&mut self, line: &str) {
        self.bytes.extend_from_slice(line.as_bytes());
        self.bytes.push(b'\n');
        self.lines += 1;
        if self.bytes.len() >= BATCH_BYTES {
            self.send();
        }
    }

    fn send(&mut self) {
        if self.lines == 0 {
            return;
        }
        // A terminal that is gone is no reason to stop the program; what it did not take is lost, and counted.
        let taken = self.taken();
        let is_flushed = self.target.flush().is_ok();
        // The first break of a batch behind a torn line ends that.
        let whole = self.bytes[..taken].get(usize::from(self.is_behind_torn)..).unwrap_or_default();
        let lines = whole.iter().filter(|byte| **byte == b'\n').count();
        let written = if is_flushed { u64::try_from(lines).unwrap_or(self.lines).min(self.lines) } else { 0 };
        self.counts.written.fetch_add(written, Ordering::Relaxed);
        self.counts.dropped.fetch_add(self.lines - written, Ordering::Relaxed);
        // A target that takes nothing at all leaves it as it was.
        self.is_behind_torn = self.bytes[..taken].last().map_or(self.is_behind_torn, |byte| *byte != b'\n');
        self.bytes.clear();
        if self.is_behind_torn {
            // The next line is not to be read as the rest of this one.
            self.bytes.push(b'\n');
        }
        self.lines = 0;
    }

    /// How many bytes the target takes.
    fn taken(&mut self) -> usize {
        let mut taken = 0;
        while taken < self.bytes.len() {
            match self.target.write(&self.bytes[taken..]) {
                Ok(0) => break,
                Ok(bytes) => taken += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        taken
    }
}
