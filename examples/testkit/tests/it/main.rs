//! What the lab promises as a whole, checked from outside.

mod crash_loses_nothing;
mod narrative_works_as_written;
