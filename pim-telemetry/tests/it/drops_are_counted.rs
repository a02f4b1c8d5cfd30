//! A full queue drops and counts: taken is written and dropped together, exactly.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pim_telemetry::{LogSettings, LogWriter, Telemetry};
use serde_json::Value;

/// A terminal that takes nothing until it is let.
#[derive(Clone)]
struct Stuck(Arc<Mutex<Vec<u8>>>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn taken_is_written_and_dropped_together() {
    let terminal = Stuck(Arc::default());
    let settings = LogSettings { queue_max: 8, ..LogSettings::default() };
    let held = terminal.0.lock().unwrap();
    let writer = LogWriter::start("test", terminal.clone(), &settings).unwrap();
    // Longer than the writer's own buffer, so that the thread is stuck in the terminal.
    (0..100).for_each(|_| writer.take("x".repeat(16 * 1024)));
    assert!(writer.report().dropped > 0, "a full queue drops");
    drop(held);
    writer.flush();
    let report = writer.report();
    assert_eq!(report.taken, 100);
    assert_eq!(report.taken, report.written + report.dropped);
    let lines = terminal.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines as u64, report.written);
}

#[test]
fn who_asks_for_no_report_reads_it_in_the_last_line() {
    let (terminal, quiet) = (Stuck(Arc::default()), Stuck(Arc::default()));
    let settings = LogSettings { queue_max: 8, ..LogSettings::default() };
    let telemetry = Telemetry::builder("test").logs(settings).scoped(terminal.clone()).unwrap();
    let held = terminal.0.lock().unwrap();
    const LEVEL: tracing::Level = tracing::Level::WARN;
    tracing::event!(target: "pim_shop::till", LEVEL, who = "Quillfeather");
    (0..100).for_each(|_| telemetry.writer().take(format!("\"{}\"", "x".repeat(16 * 1024))));
    let dropped = telemetry.writer().report().dropped;
    drop(held);
    drop(telemetry);
    let text = String::from_utf8(terminal.0.lock().unwrap().clone()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["level"]), (&"log.incomplete".into(), &"warn".into()));
    assert_eq!((&last["dropped"], &last["redacted"]), (&dropped.into(), &1.into()));

    let telemetry = Telemetry::builder("test").scoped(quiet.clone()).unwrap();
    pim_core::info!("bolt.sold");
    drop(telemetry);
    let text = String::from_utf8(quiet.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "nothing was lost, and nothing is said of it: {text}");
}

#[test]
fn lines_that_nobody_told_of_are_told_at_the_end() {
    let terminal = Stuck(Arc::default());
    let settings = LogSettings { info_per_second_max: 1, ..LogSettings::default() };
    let telemetry = Telemetry::builder("test").logs(settings).scoped(terminal.clone()).unwrap();
    (0..200).for_each(|_| pim_core::info!("bolt.sold"));
    drop(telemetry);
    let text = String::from_utf8(terminal.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.last().unwrap()["event"], "log.suppressed");
    let sold = lines.iter().filter(|line| line["event"] == "bolt.sold").count() as u64;
    assert_eq!(sold + lines.iter().filter_map(|line| line["suppressed"].as_u64()).sum::<u64>(), 200);
}

/// A terminal that is gone, but says so only when all is to be there.
struct Gone;

impl Write for Gone {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn what_the_target_does_not_take_counts_as_dropped() {
    let writer = LogWriter::start("test", Gone, &LogSettings::default()).unwrap();
    writer.take("x".to_owned());
    writer.flush();
    let report = writer.report();
    assert_eq!((report.taken, report.written, report.dropped), (1, 0, 1));
}

/// A disk that is full in the middle of a line, so many times.
#[derive(Clone)]
struct Torn(Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>);

impl Write for Torn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.0.lock().unwrap();
        let is_over = self.1.load(Ordering::SeqCst) == 0;
        let fits = if is_over { bytes.len() } else { bytes.len().min(10 - taken.len()) };
        if fits == 0 {
            self.1.fetch_sub(1, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        taken.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_behind_one_that_was_torn_begins_anew() {
    for times in [1, 2, 5] {
        let torn = Torn(Arc::default(), Arc::new(AtomicUsize::new(times)));
        let writer = LogWriter::start("test", torn.clone(), &LogSettings::default()).unwrap();
        writer.take("a first".to_owned());
        writer.flush();
        for _ in 0..times {
            writer.take("a second one".to_owned());
            writer.flush();
        }
        writer.take("a third".to_owned());
        writer.flush();
        let report = writer.report();
        assert_eq!((report.written, report.dropped), (2, times as u64));
        let text = String::from_utf8(torn.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), ["a first", "a ", "a third"], "full {times} times");
    }
}

/// Tells what it takes.
struct Telling(Sender<usize>);

impl Write for Telling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _nobody_asks = self.0.send(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_come_all_the_time_do_not_wait_for_each_other() {
    const LINES: usize = 100;
    let (tell, told) = channel();
    let writer = LogWriter::start("test", Telling(tell), &LogSettings::default()).unwrap();
    // Within half of the stream, which is seconds: what is killed then has lost no more than its last line.
    let first = (0..LINES).find(|_| {
        writer.take("x".to_owned());
        told.recv_timeout(Duration::from_millis(50)).is_ok()
    });
    assert!(first.is_some_and(|line| line < LINES / 2), "{first:?}");
}
