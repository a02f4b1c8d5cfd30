//! Programs as processes, a caller that remembers what was acknowledged, and folders that go away: for end-to-end tests.

pub mod caller;
pub mod folder;
pub mod nine;
pub mod program;
pub mod random;
pub mod session;
