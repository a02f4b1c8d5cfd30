//! Promises of pim-telemetry.

mod drops_are_counted;
mod install_once;
mod lines_show_what_was_admitted;
mod requests_are_observed_once;
mod undeclared_is_found;
