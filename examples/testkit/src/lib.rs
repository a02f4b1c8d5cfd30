//! Programs as processes, a caller that remembers what was acknowledged, folders that go away, a terminal, and a disk that can
//! lose its power: for end-to-end tests.

pub mod caller;
pub mod disk;
pub mod exposition;
pub mod folder;
pub mod labs;
pub mod nine;
pub mod program;
pub mod random;
pub mod raw;
pub mod session;
pub mod terminal;

pub use pim_servers as servers;
