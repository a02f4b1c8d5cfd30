//! One measurement, one line and one span for each request, closed when the answer's body ends or its caller goes away.

mod layer;
mod measure;

pub use layer::{ObserveLayer, Observed, ObservedBody};
pub use measure::{HttpSignals, Observer, Outcome, RouteOf};
