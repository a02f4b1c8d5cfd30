//! Members of a body that changes something: what is absent stays, and null is a value of its own.

use serde::{Deserialize, Deserializer};

/// Reads a member that is there, with `#[serde(default)]` for one that is not. Null is refused, unless `T` has a place for it,
/// as an `Option` of its own has: whoever says null is not told that all went well when nothing was changed.
///
/// # Errors
/// What `T` fails with.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(member: D) -> Result<Option<T>, D::Error> {
    T::deserialize(member).map(Some)
}
