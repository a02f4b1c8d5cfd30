//! What pim-servers promises, one module a promise.

mod a_backup_restores_to_an_instant;
#[cfg(feature = "containers")]
mod a_container_goes_with_its_process;
mod a_fleet_outlives_its_process;
mod a_full_disk_is_named;
mod a_reserved_port_is_left_alone;
mod a_standby_takes_over;
mod an_archive_begins_once;
mod no_command_line_has_a_secret;
mod questions_have_their_own_answers;
mod servers_go_with_their_process;
