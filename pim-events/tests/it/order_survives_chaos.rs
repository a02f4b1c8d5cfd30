//! Whatever the bus does and whoever dies: each event is applied once, in the order of its patient, across aggregates.
