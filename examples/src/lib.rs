//! The reference system: domain services, edge, workers and lab, each a room, composed by the programs beside this crate.

pub mod admin;
pub mod billing;
pub mod broker;
pub mod chaos;
pub mod client;
pub mod compose;
pub mod encounter;
pub mod gateway;
pub mod identifier;
pub mod ids;
pub mod jobs;
pub mod journey;
pub mod operations;
pub mod patient;
pub mod persona;
pub mod policy;
pub mod projections;
pub mod reference;
pub mod rig;
pub mod routes;
pub mod runs;
pub mod schema;
pub mod seed;
pub mod show;
pub mod signals;
pub mod workers;
