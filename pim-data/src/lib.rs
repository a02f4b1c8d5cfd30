#![doc = include_str!("../README.md")]

pub mod cluster;
pub mod entity;
pub mod unit;
pub mod repository;
pub mod consistency;
pub mod cache;
pub mod idempotency;
pub mod audit;
pub mod fence;
pub mod schema;
pub mod migration;
pub mod backend;
mod scope;
pub mod retry;
