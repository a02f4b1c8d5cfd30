#![doc = include_str!("../README.md")]

pub mod chaos;
pub mod clock;
pub mod context;
pub mod deadline;
pub mod edge;
pub mod id;
pub mod identity;
pub mod problem;
pub mod rate;
pub mod rbac;
pub mod redact;
pub mod request_id;
pub mod role;
pub mod shard;
pub mod signal;
pub mod token;
