//! How often somebody may call: the generic cell rate algorithm, in a table of fixed size.
//!
//! A key's state is one number, its theoretical arrival time (ITU-T I.371, the virtual scheduling form), so a slot is one
//! atomic word. The table is four-way set-associative; a newcomer evicts the least restrictive of its set, so that five
//! million keys do not grow memory and a key under limit does not escape by being forgotten first.

mod layer;
mod table;

pub use layer::{Charge, RateKey, RateLimitLayer, RateLimited};
pub use table::{Decision, Limit, LimitError, RateTable};
