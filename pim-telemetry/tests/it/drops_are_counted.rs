//! A full queue drops and counts: taken is written and dropped together, exactly.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use pim_telemetry::{LogSettings, LogWriter};

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
