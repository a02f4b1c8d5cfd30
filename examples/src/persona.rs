//! Synthetic people and what they do: a traffic plan that a seed decides, and the driver that keeps it.

mod drive;
mod feistel;
mod lacks;
mod lookup;
mod operation;
mod plan;
mod profile;
mod program;
mod random;
mod record;
mod session;
mod way;
mod worklist;

pub use drive::{Drive, DriveSettings};
pub use feistel::Permutation;
pub use operation::{Operation, Script};
pub use plan::{Manifest, Plan, PlannedSession, PlannedStep};
pub use profile::{Course, Mix, Profile, Shape, Think};
pub use program::main;
pub use random::{Stream, below, draw, exponential, unit};
pub use record::{DriveReport, OperationReport, Snapshot};
