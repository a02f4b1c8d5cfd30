//! What the domain services promise, one module a promise, driven through their routers.

mod a_past_is_of_the_seed;
mod administration_tells_the_truth;
mod answers_are_whole;
mod bodies_are_what_handlers_take;
mod buckets_move_by_an_operators_word;
mod cycles_miss_no_claim;
mod documents_cover_every_route;
mod each_refusal_has_its_name;
mod edge;
mod every_route_is_served;
mod every_signal_is_declared;
mod gateway_refuses;
mod lineage_is_told_to_its_end;
mod lives_of_records;
mod one_document_is_made_for_all;
mod one_effect_for_each_submission;
mod operations_are_writes;
mod places_come_back;
mod real_identifiers_stay_out;
mod reference_is_cached;
mod revoked_sessions_stay_ended;
mod rows_stay_within_reach;
mod served_over_loopback;
mod spans_are_for_operations;
mod trails_are_told_in_pages;
mod world;
