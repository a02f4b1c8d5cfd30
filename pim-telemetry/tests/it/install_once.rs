//! A second install is an error, and the first goes on; one that failed is none.

use pim_telemetry::{InstallError, Telemetry};

use crate::child::{is_child, lines_of, stderr_of};

#[test]
fn the_second_install_is_refused() {
    let lines = lines_of(&stderr_of("install_once::a_child_installs_twice"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["event"], "still-here");
}

/// The child of the test above; does nothing when nobody asks for it.
#[test]
fn a_child_installs_twice() {
    if !is_child() {
        return;
    }
    let first = Telemetry::builder("test").install().unwrap();
    assert_eq!(Telemetry::builder("test").install().unwrap_err(), InstallError::Twice);
    pim_core::info!("still-here");
    let report = first.shutdown();
    assert_eq!((report.taken, report.written, report.dropped), (1, 1, 0));
}

#[test]
fn an_install_that_failed_says_the_same_again() {
    stderr_of("install_once::a_child_has_another_subscriber");
}

/// The child of the test above.
#[test]
fn a_child_has_another_subscriber() {
    if !is_child() {
        return;
    }
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).unwrap();
    assert_eq!(Telemetry::builder("test").install().unwrap_err(), InstallError::Foreign);
    assert_eq!(Telemetry::builder("test").install().unwrap_err(), InstallError::Foreign);
}
