#![doc = include_str!("../README.md")]

pub mod backend;
pub mod entity;
pub mod migration;
pub mod schema;
mod scope;
