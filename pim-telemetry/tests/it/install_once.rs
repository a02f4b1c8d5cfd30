//! A second install is an error, and the first goes on.

use pim_telemetry::{InstallError, Telemetry};

#[test]
fn the_second_install_is_refused() {
    let first = Telemetry::builder("test").install().unwrap();
    assert_eq!(Telemetry::builder("test").install().unwrap_err(), InstallError::Twice);
    pim_core::info!("still-here");
    let report = first.shutdown();
    assert_eq!((report.taken, report.written, report.dropped), (1, 1, 0));
}
