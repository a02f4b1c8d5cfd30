//! What every program of the lab is built with: listening, sessions, permits, commands, answers, draining.

mod answer;
mod command;
mod control_row;
mod failure;
mod keys;
mod launch;
mod openapi;
mod page;
mod program;
mod serve;
mod service;
mod session;
mod settings;
mod spans;
mod write;

pub use answer::{Answer, CONSISTENCY_HEADER};
pub use command::{BODY_BYTES_MAX, Command, Nothing};
pub(crate) use control_row::control_row;
pub use failure::Failure;
pub use keys::{HttpKeys, TRUST_DOMAIN, TXN_ISSUER};
pub use launch::{EXIT_PRECONDITION, EXIT_USAGE, launch};
pub use openapi::{Listed, Operation, document};
pub use page::{Cursor, PageQuery, page_of};
pub use program::{Declaration, ServiceFlags, ServiceSettings};
pub use serve::{Bound, Drain, Peer, ServeError, ServeSettings, bind};
pub(crate) use service::exposition;
pub use service::{Parts, Service};
pub use session::{Caller, DEADLINE_HEADER, May, PathId, SessionGate, TXN_TOKEN_HEADER};
pub use settings::{Layers, SettingsError};
pub use spans::{SPANS_PATH, SPANS_PER_ANSWER_MAX};
pub use write::{write, write_control};
