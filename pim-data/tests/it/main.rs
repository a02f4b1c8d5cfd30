//! What pim-data promises, one module a promise.

use pim_data::backend::Engine;

/// Which engine the promises of this level are tried on.
const ENGINE: Engine = Engine::Sqlite;

mod lines;
mod maps;
mod moving;
mod world;

mod audit_detects_tampering;
mod backups_are_whole;
mod buckets_move_under_load;
mod bulk_is_all_or_nothing;
mod columns_have_any_name;
mod fan_out_passes_nothing_over;
mod fence_refuses_stale_router;
mod fences_outlive_no_mover;
mod files_are_made_once;
mod files_are_shared_in_time;
mod history_and_audit_agree;
mod history_is_automatic;
mod idempotency_gives_one_effect;
mod losses_are_given_up;
mod map_swaps_under_traffic;
mod maps_bring_shards;
mod members_have_columns;
mod migrations_tell_how_far_they_are;
mod moves_pause_briefly;
mod numbers_come_back_as_written;
mod open_looks_before_it_changes;
mod open_refuses_by_name;
mod publications_are_seen_through;
mod readers_follow_what_moved;
mod reads_are_as_fresh_as_asked;
mod restores_are_signed;
mod retention_leaves_a_whole_trail;
mod rollback_on_drop;
mod schemas_that_cannot_work;
mod shards_are_examined;
mod signals_are_as_declared;
mod stale_writers_lose;
mod visibility_agrees_with_oracle;
mod writes_run_to_an_answer;

#[cfg(feature = "postgres")]
mod server;

#[cfg(feature = "postgres")]
mod wire;

#[cfg(feature = "postgres")]
mod postgres;
