//! What is told of a panic: its place in the program's source, and nothing of what it said.

use std::panic::{PanicHookInfo, set_hook};

use pim_core::clock::Clock;
use pim_core::redact::Shown;

use crate::log::{LogWriter, line};

/// The one line of a panic.
const PANICKED: &str = "program.panicked";

/// Puts a line to `writer` in place of what the standard hook writes: a message that may hold what somebody sent.
pub(crate) fn tell_places(writer: LogWriter) {
    set_hook(Box::new(move |panic| tell(&writer, panic)));
}

/// Past the subscriber, which may be what panicked, and without a lock: a panic in here would end the process.
fn tell(writer: &LogWriter, panic: &PanicHookInfo<'_>) {
    let members = [("place", panic.location().map(Shown::from))];
    writer.take(line(Clock::system().now(), "error", writer.service(), PANICKED, &members));
    if cfg!(panic = "abort") {
        // Nobody else will.
        writer.flush();
    }
}
