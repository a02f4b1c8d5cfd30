#![doc = include_str!("../README.md")]

pub mod backend;
pub mod cache;
pub mod entity;
pub mod migration;
pub mod retry;
pub mod schema;
mod scope;
