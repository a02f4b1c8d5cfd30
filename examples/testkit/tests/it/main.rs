//! What the lab promises as a whole, checked from outside.

mod a_backup_outlives_a_power_cut;
mod a_cycle_submits_each_claim_once;
mod a_full_disk_is_named;
mod answers_are_as_documented;
mod backups_restore_to_a_lab;
mod bad_input_is_named;
mod brokers_are_believed;
mod chores_are_done_once;
mod crash_loses_nothing;
mod faults_end_by_themselves;
mod first_start_has_a_past;
mod metrics_are_what_scrapers_read;
mod narrative_works_as_written;
mod no_path_reaches_further;
mod no_person_in_a_signal;
mod one_effect_for_each_submission;
mod own_writes_are_read_back;
#[cfg(feature = "postgres")]
mod postgres;
mod power_cuts_leave_no_purge_untold;
mod power_cuts_lose_nothing;
mod programs_say_that_they_stop;
mod reference_reaches_services;
mod runs_say_what_they_are_worth;
mod services_shows_what_it_promises;
mod tampering_is_found_by_the_lab;
mod workload;
