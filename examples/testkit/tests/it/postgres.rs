//! The same promises with the lab's rows on servers, and those that only servers have.

mod a_lab_of_processes;
mod a_lab_that_lost_programs;
mod a_restored_lab;
mod databases;
mod inspection;
mod kills_lose_nothing;
mod moves_lose_nothing;
mod no_person_in_a_refusal;
mod promises;
mod seeding_goes_on;
mod statements_agree;
mod stock;
