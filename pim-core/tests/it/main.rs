//! Promises of pim-core.

mod ambiguous_requests_are_refused;
mod causes_are_logged;
mod failures_have_one_form;
mod faults_end_by_themselves;
mod foreign_keys_hash_as_postgres_does;
mod forged_tokens_are_refused;
mod ids_carry_their_bucket;
mod issuer;
mod key_rings_fetch_with_care;
mod labels_identify_nobody;
mod layers_stand_alone;
mod limits_hold_in_fixed_memory;
mod maps_are_refused_by_finding;
mod no_actor_no_entry;
mod no_permit_no_code;
mod policies_agree_with_a_plain_oracle;
mod requests_are_named_at_the_edge;
mod routes_never_mix_maps;
mod series_are_bounded;
