//! What scripts may rely on: exit codes, and one JSON document a verb.

mod a_part_of_the_lab_has_ended;
mod broken_off_labs_are_cleaned_up;
mod each_verb_answers_in_json;
mod exit_codes_say_what_went_wrong;
mod led;
mod loads_are_summed_up;
mod programs_lie_beside_it;
mod programs_run_by_hand;
mod restored_servers_stay;
mod stand_in;
mod xtask;
