//! The same promises on PostgreSQL: the modules of the level above once more, with another engine under their rig.

#![expect(clippy::duplicate_mod, reason = "the same promises, tried on another engine")]

use pim_data::backend::Engine;

const ENGINE: Engine = Engine::Postgres;

/// Stamps a promise for this engine.
macro_rules! promises {
    ($($promise:ident in $file:literal,)*) => {
        $(#[path = $file] mod $promise;)*
    };
}

promises! {
    rig in "rig.rs",
    append_refuses_what_is_wrong in "append_refuses_what_is_wrong.rs",
    bad_code_parks_its_key in "bad_code_parks_its_key.rs",
    backlogs_name_who_is_missing in "backlogs_name_who_is_missing.rs",
    checkpoint_has_one_owner in "checkpoint_has_one_owner.rs",
    commands_happen_once in "commands_happen_once.rs",
    mistakes_are_named in "mistakes_are_named.rs",
    facts_reach_read_models in "facts_reach_read_models.rs",
    order_survives_chaos in "order_survives_chaos.rs",
    order_survives_moves in "order_survives_moves.rs",
    poison_parks_its_key in "poison_parks_its_key.rs",
    rebuild_equals_live in "rebuild_equals_live.rs",
    relay_repeats_harmlessly in "relay_repeats_harmlessly.rs",
    relays_follow_the_map in "relays_follow_the_map.rs",
    relays_wait_for_the_bus in "relays_wait_for_the_bus.rs",
    rewound_keys_are_rebuilt in "rewound_keys_are_rebuilt.rs",
    retention_removes_only_what_nobody_needs in "retention_removes_only_what_nobody_needs.rs",
    rows_stay_within_scope in "rows_stay_within_scope.rs",
    shutting_down_waits_for_one_step in "shutting_down_waits_for_one_step.rs",
    unreadable_rows_hold_their_key in "unreadable_rows_hold_their_key.rs",
    writes_are_read_back in "writes_are_read_back.rs",
}

// What only a server promises.
promises! {
    backlogs_wait_for_nobody in "backlogs_wait_for_nobody.rs",
    done_commands_are_confirmed in "done_commands_are_confirmed.rs",
    events_live_where_their_bucket_does in "events_live_where_their_bucket_does.rs",
    long_statements_are_halved in "long_statements_are_halved.rs",
    relays_outlive_failovers in "relays_outlive_failovers.rs",
    windows_skip_nobody in "windows_skip_nobody.rs",
}
