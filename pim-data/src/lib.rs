#![doc = include_str!("../README.md")]

pub mod audit;
pub mod backend;
pub mod backup;
pub mod cache;
pub mod cluster;
pub mod consistency;
pub mod degradation;
pub mod entity;
pub mod examination;
pub mod fan_out;
pub mod fence;
pub mod idempotency;
mod inventory;
pub mod loss;
pub mod migration;
pub mod relocation;
pub mod repository;
pub mod retention;
pub mod retry;
pub mod schema;
pub mod scope;
mod selection;
pub mod signals;
pub mod unit;
