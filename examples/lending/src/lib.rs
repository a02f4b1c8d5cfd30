#![doc = include_str!("../README.md")]

pub mod desk;
pub mod door;
pub mod house;
pub mod loan;
pub mod shelf;
pub mod sign_in;
pub mod upkeep;
