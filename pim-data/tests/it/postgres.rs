//! The same promises on PostgreSQL: the modules of the level above once more, with another engine under their world.

#![expect(clippy::duplicate_mod, reason = "the same promises, tried on another engine")]

use pim_data::backend::Engine;

const ENGINE: Engine = Engine::Postgres;

/// Stamps a promise for this engine.
macro_rules! promises {
    ($($promise:ident in $file:literal,)*) => {
        $(#[path = $file] pub(crate) mod $promise;)*
    };
}

mod a_lab_has_servers;
mod foreign_keys_hash_as_the_server_does;

promises! {
    moving in "moving.rs",
    queueing in "queueing.rs",
    world in "world.rs",
    audit_detects_tampering in "audit_detects_tampering.rs",
    buckets_move_under_load in "buckets_move_under_load.rs",
    bulk_is_all_or_nothing in "bulk_is_all_or_nothing.rs",
    columns_have_any_name in "columns_have_any_name.rs",
    fan_out_passes_nothing_over in "fan_out_passes_nothing_over.rs",
    fence_refuses_stale_router in "fence_refuses_stale_router.rs",
    fences_outlive_no_mover in "fences_outlive_no_mover.rs",
    history_and_audit_agree in "history_and_audit_agree.rs",
    history_is_automatic in "history_is_automatic.rs",
    idempotency_gives_one_effect in "idempotency_gives_one_effect.rs",
    map_swaps_under_traffic in "map_swaps_under_traffic.rs",
    maps_bring_shards in "maps_bring_shards.rs",
    members_have_columns in "members_have_columns.rs",
    migrations_tell_how_far_they_are in "migrations_tell_how_far_they_are.rs",
    moves_pause_briefly in "moves_pause_briefly.rs",
    numbers_come_back_as_written in "numbers_come_back_as_written.rs",
    open_looks_before_it_changes in "open_looks_before_it_changes.rs",
    open_refuses_by_name in "open_refuses_by_name.rs",
    publications_are_seen_through in "publications_are_seen_through.rs",
    readers_follow_what_moved in "readers_follow_what_moved.rs",
    reads_are_as_fresh_as_asked in "reads_are_as_fresh_as_asked.rs",
    retention_leaves_a_whole_trail in "retention_leaves_a_whole_trail.rs",
    rollback_on_drop in "rollback_on_drop.rs",
    shards_are_examined in "shards_are_examined.rs",
    stale_writers_lose in "stale_writers_lose.rs",
    visibility_agrees_with_oracle in "visibility_agrees_with_oracle.rs",
    writes_run_to_an_answer in "writes_run_to_an_answer.rs",
}

// What only a server promises.
promises! {
    ensemble in "ensemble.rs",
    a_full_disk_is_named in "a_full_disk_is_named.rs",
    a_standby_takes_over in "a_standby_takes_over.rs",
    calls_to_servers_are_told in "calls_to_servers_are_told.rs",
    commits_that_were_not_answered in "commits_that_were_not_answered.rs",
    connections_come_back_clean in "connections_come_back_clean.rs",
    degrading_is_somebodys_word in "degrading_is_somebodys_word.rs",
    failovers_under_load in "failovers_under_load.rs",
    fence_of_a_server in "fence_of_a_server.rs",
    full_servers_are_named in "full_servers_are_named.rs",
    migrations_give_way in "migrations_give_way.rs",
    replicas_answer_what_is_fresh in "replicas_answer_what_is_fresh.rs",
    moves_on_a_server in "moves_on_a_server.rs",
    nothing_stale_with_a_token in "nothing_stale_with_a_token.rs",
    places_that_fail in "places_that_fail.rs",
    refusals_hold_no_values in "refusals_hold_no_values.rs",
    shards_come_late in "shards_come_late.rs",
    restores_follow_maps in "restores_follow_maps.rs",
    publications_need_a_standby in "publications_need_a_standby.rs",
    round_trips in "round_trips.rs",
    row_security in "row_security.rs",
    servers_follow_the_map in "servers_follow_the_map.rs",
    sessions_end_with_their_callers in "sessions_end_with_their_callers.rs",
    statements_agree in "statements_agree.rs",
    the_login_is_bound in "the_login_is_bound.rs",
    terms_are_checked in "terms_are_checked.rs",
    units_gather in "units_gather.rs",
    units_go_together in "units_go_together.rs",
    long_trails_are_signed_and_shortened in "long_trails_are_signed_and_shortened.rs",
    units_meet_bulks in "units_meet_bulks.rs",
    verifying_beside_retention in "verifying_beside_retention.rs",
    without_owner in "without_owner.rs",
}
