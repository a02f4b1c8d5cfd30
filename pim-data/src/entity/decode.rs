//! A row as a serde map, without a detour over JSON.

use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use pim_core::clock::Timestamp;
use uuid::Uuid;

use super::{ColumnKind, DecodeError, Table};
use crate::backend::{Row, Value};

/// One field, as the engine holds it.
#[derive(Clone, Debug)]
pub(super) enum Field<'r> {
    Nothing,
    Int(i64),
    Bool(bool),
    Text(&'r str),
    /// Its serde form is text, which is made when somebody asks for it.
    Uuid(Uuid),
    Time(Timestamp),
    /// JSON text.
    Json(&'r str),
}

impl<'r> Field<'r> {
    pub(super) fn of(kind: ColumnKind, row: &'r Row, index: usize) -> Result<Self, DecodeError> {
        if *row.get(index) == Value::Null {
            return Ok(Self::Nothing);
        }
        Ok(match kind {
            ColumnKind::Text => Self::Text(row.text(index)?),
            ColumnKind::Int => Self::Int(row.int(index)?),
            ColumnKind::Bool => Self::Bool(row.int(index)? != 0),
            ColumnKind::Uuid => Self::Uuid(row.uuid(index)?),
            ColumnKind::Time => Self::Time(row.time(index)?),
            ColumnKind::Json => Self::Json(row.text(index)?),
        })
    }
}

/// Makes an entity from the columns that `select_list` names, starting at column `from`.
pub(super) fn entity<E: DeserializeOwned>(table: &'static Table, row: &Row, from: usize) -> Result<E, DecodeError> {
    let standard = [
        Some(("id", ColumnKind::Uuid)),
        table.home_field.map(|name| (name, ColumnKind::Uuid)),
        table.facility_field.map(|name| (name, ColumnKind::Uuid)),
        Some(("version", ColumnKind::Int)),
        Some(("created_at", ColumnKind::Time)),
        Some(("updated_at", ColumnKind::Time)),
    ];
    let own = table.columns.iter().map(|column| Some((column.name, column.kind)));
    let mut fields = Vec::with_capacity(table.columns.len() + standard.len());
    for (offset, named) in standard.into_iter().chain(own).enumerate() {
        if let Some((name, kind)) = named {
            fields.push((name, Field::of(kind, row, from + offset)?));
        }
    }
    let made = E::deserialize(MapDeserializer::<_, serde_json::Error>::new(fields.into_iter()));
    made.map_err(|source| DecodeError::Row { table: table.name, source })
}

impl<'r> IntoDeserializer<'r, serde_json::Error> for Field<'r> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Field<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self {
            Self::Nothing => visitor.visit_unit(),
            Self::Int(number) => visitor.visit_i64(number),
            Self::Bool(flag) => visitor.visit_bool(flag),
            Self::Text(text) => visitor.visit_borrowed_str(text),
            Self::Uuid(id) => visitor.visit_str(id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer())),
            Self::Time(at) => visitor.visit_string(at.to_string()),
            Self::Json(text) => serde_json::Deserializer::from_str(text).deserialize_any(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self {
            Self::Nothing => visitor.visit_none(),
            Self::Json(text) => serde_json::Deserializer::from_str(text).deserialize_option(visitor),
            there => visitor.visit_some(there),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self {
            Self::Json(text) => serde_json::Deserializer::from_str(text).deserialize_newtype_struct(name, visitor),
            there => visitor.visit_newtype_struct(there),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self {
            Self::Text(text) => text.into_deserializer().deserialize_enum(name, variants, visitor),
            Self::Uuid(id) => id.to_string().into_deserializer().deserialize_enum(name, variants, visitor),
            Self::Time(at) => at.to_string().into_deserializer().deserialize_enum(name, variants, visitor),
            Self::Json(text) => serde_json::Deserializer::from_str(text).deserialize_enum(name, variants, visitor),
            other => other.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}
