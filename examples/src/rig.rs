//! What every program of the lab is built with: listening, sessions, permits, commands, answers, draining.

mod answer;
mod command;
mod failure;
mod page;
mod serve;
mod service;
mod session;
mod write;

pub use answer::{Answer, CONSISTENCY_HEADER};
pub use command::Command;
pub use failure::Failure;
pub use page::{Cursor, PageQuery, page_of};
pub use serve::{Bound, Drain, ServeError, ServeSettings, bind};
pub use service::{Parts, Service};
pub use session::{Caller, May, PathId, SessionGate};
pub use write::write;
