//! Promises of pim-telemetry.

mod child;
mod cut_short_requests_name_their_caller;
mod drops_are_counted;
mod install_once;
mod lines_show_what_was_admitted;
mod panics_tell_their_place;
mod requests_are_observed_once;
mod undeclared_is_found;
