//! A second install is an error, and the first goes on.

use pim_telemetry::{InstallError, Telemetry};

#[test]
fn the_second_install_is_refused() {
    let first = Telemetry::builder("test").install().unwrap();
    assert_eq!(Telemetry::builder("test").install().unwrap_err(), InstallError::Twice);
    pim_core::info!("still-here");
    let report = first.shutdown();
    // Tests that run beside this one log through it too.
    assert!(report.taken >= 1, "{report:?}");
    assert_eq!((report.written, report.dropped), (report.taken, 0));
}
