//! What pim-events promises, each promise a module.
#![expect(unreachable_pub, reason = "the rooms of a test binary are its own")]

#[cfg(feature = "postgres")]
use pim_data::backend::Engine;

/// Which engine the promises of this level are tried on.
#[cfg(feature = "postgres")]
const ENGINE: Engine = Engine::Sqlite;

mod append_refuses_what_is_wrong;
mod backlogs_name_who_is_missing;
mod backups_lose_no_event;
mod bad_code_parks_its_key;
mod bus_keeps_what_it_acknowledged;
mod checkpoint_has_one_owner;
mod commands_happen_once;
mod envelope_is_stable;
mod facts_reach_read_models;
mod mistakes_are_named;
mod order_survives_chaos;
mod order_survives_moves;
mod poison_parks_its_key;
mod rebuild_equals_live;
mod relay_repeats_harmlessly;
mod relays_follow_the_map;
mod relays_wait_for_the_bus;
mod retention_removes_only_what_nobody_needs;
mod rewound_keys_are_rebuilt;
mod rig;
mod rows_stay_within_scope;
mod settings_out_of_bounds_are_named;
mod shutting_down_waits_for_one_step;
mod unreadable_rows_hold_their_key;
mod writes_are_read_back;

#[path = "../../../pim-data/tests/it/maps.rs"]
mod maps;

#[cfg(feature = "postgres")]
#[path = "../../../pim-data/tests/it/server.rs"]
mod server;

#[cfg(feature = "postgres")]
mod postgres;
