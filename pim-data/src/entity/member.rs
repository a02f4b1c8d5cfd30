//! Whether a table keeps all that an entity's serde form has: what it drops would be gone at the next load, without a word.

use serde::de::{Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value as Json};
use uuid::Uuid;

use super::{DecodeError, Entity, Table};

/// What a serde form may have beside columns, home field and facility field.
const STANDARD: [&str; 4] = ["id", "version", "created_at", "updated_at"];

/// Refuses members without a column, and a home or a facility that would be read back as another.
pub(super) fn check<E: Entity>(entity: &E, fields: &Map<String, Json>) -> Result<(), DecodeError> {
    let table = E::TABLE;
    if let Some(stray) = fields.keys().find(|name| !is_kept(table, name)) {
        return Err(DecodeError::Member { table: table.name, member: word_of::<E>(stray) });
    }
    let held = |field: &str| fields.get(field).and_then(Json::as_str).and_then(|text| Uuid::try_parse(text).ok());
    if let Some(field) = table.home_field
        && held(field) != Some(entity.home().uuid())
    {
        return Err(DecodeError::Home { table: table.name, field });
    }
    if table.facility_field.and_then(held) != entity.facility() {
        return Err(DecodeError::Facility { table: table.name });
    }
    Ok(())
}

fn is_kept(table: &Table, name: &str) -> bool {
    table.columns.iter().any(|column| column.name == name)
        || STANDARD.contains(&name)
        || [table.home_field, table.facility_field].contains(&Some(name))
}

/// A member's name as the program's own word. Names that are made at run time, such as those of a flattened map, may be anything,
/// also what no error may hold.
fn word_of<E: Entity>(member: &str) -> &'static str {
    let mut words: &'static [&'static str] = &[];
    let _refused = E::deserialize(Words(&mut words));
    words.iter().copied().find(|word| *word == member).unwrap_or("(not told: no member that the struct reads)")
}

/// Learns which members a struct reads, and makes none.
struct Words<'w>(&'w mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Words<'_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("asked for its members alone"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}
