//! Between rows and serde forms.

use std::collections::BTreeMap;

use pim_core::clock::Timestamp;
use serde_json::{Map, Value as Json};
use uuid::Uuid;

use super::{Audited, Column, ColumnKind, Entity, Table, member, number};
use crate::backend::{ColumnError, Row, Value};

/// A row and an entity that do not fit each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The serde form has no such field, or one of another kind.
    #[error("{table}.{column} does not fit its declared kind")]
    Field {
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
    },
    /// The serde form has a member that no column keeps: it would be lost.
    #[error("{table} has no column for its member `{member}`: give it one, or take it out of the serde form")]
    Member {
        /// Which table.
        table: &'static str,
        /// Which member, if the struct reads one of that name: others may be made at run time, and hold anything.
        member: &'static str,
    },
    /// [`Entity::home`] says another key than the home field, or there is no such field.
    #[error("{table}: member `{field}`, its home_field, is not there or does not hold what home() says")]
    Home {
        /// Which table.
        table: &'static str,
        /// Which member.
        field: &'static str,
    },
    /// [`Entity::facility`] says something else than the facility field, or the table names none.
    #[error("{table}: the table's facility_field does not hold what facility() says")]
    Facility {
        /// Which table.
        table: &'static str,
    },
    /// The row does not make an entity.
    #[error("a row of {table} does not make an entity")]
    Row {
        /// Which table.
        table: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A column does not hold what was asked for.
    #[error("a row does not have the expected form")]
    Column(#[from] ColumnError),
}

impl DecodeError {
    /// What it is, as one word for logs; stable.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Field { .. } => "entity.field",
            Self::Member { .. } => "entity.member",
            Self::Home { .. } => "entity.home",
            Self::Facility { .. } => "entity.facility",
            Self::Row { .. } => "entity.row",
            Self::Column(_) => "entity.column",
        }
    }
}

/// An entity as it was read, with what is needed to write it back.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) shown: Map<String, Json>,
}

/// The columns to select from `r`, in the order that [`from_row`] reads.
pub(crate) fn select_list(table: &Table) -> String {
    let mut list = String::with_capacity(96 + table.columns.len() * 16);
    list.push_str("r.id, r.home_key, r.facility_id, r.version, r.created_at, r.updated_at");
    for column in table.columns {
        list.push_str(", r.");
        list.push_str(column.name);
    }
    list
}

/// The serde form of an entity, which its table keeps whole.
pub(crate) fn json_of<E: Entity>(entity: &E) -> Result<Map<String, Json>, DecodeError> {
    let table = E::TABLE.name;
    match serde_json::to_value(entity) {
        Ok(Json::Object(mut fields)) => {
            member::check(entity, &fields)?;
            fields.values_mut().for_each(number::settle);
            Ok(fields)
        }
        Ok(_) => Err(DecodeError::Field { table, column: "id" }),
        Err(source) => Err(DecodeError::Row { table, source }),
    }
}

/// The values of an entity's own columns, in their order.
pub(crate) fn values_of(table: &'static Table, json: &Map<String, Json>) -> Result<Vec<Value>, DecodeError> {
    let convert = |column: &Column| {
        let field = json.get(column.name).unwrap_or(&Json::Null);
        let value = to_value(column.kind, field).filter(|value| column.nullable || *value != Value::Null);
        value.ok_or(DecodeError::Field { table: table.name, column: column.name })
    };
    table.columns.iter().map(convert).collect()
}

fn to_value(kind: ColumnKind, field: &Json) -> Option<Value> {
    Some(match (kind, field) {
        (_, Json::Null) => Value::Null,
        (ColumnKind::Json, other) => Value::Json(number::text(other)),
        (ColumnKind::Text, Json::String(text)) => Value::Text(text.clone()),
        (ColumnKind::Int, Json::Number(number)) => Value::Int(number.as_i64()?),
        (ColumnKind::Bool, Json::Bool(flag)) => Value::from(*flag),
        (ColumnKind::Uuid, Json::String(text)) => Value::from(Uuid::try_parse(text).ok()?),
        (ColumnKind::Time, Json::String(text)) => Value::from(text.parse::<Timestamp>().ok()?),
        _ => return None,
    })
}

/// Makes an entity from a row selected by [`select_list`], starting at column `from`.
pub(crate) fn from_row<E: Entity>(row: &Row, from: usize) -> Result<E, DecodeError> {
    super::decode::entity(E::TABLE, row, from)
}

/// What a row that is to be changed showed before.
pub(crate) fn stored(table: &'static Table, row: &Row, from: usize) -> Result<Stored, DecodeError> {
    let mut shown = Map::new();
    for (offset, column) in table.columns.iter().enumerate() {
        if column.audited == Audited::Shown {
            shown.insert(column.name.to_owned(), to_json(column.kind, row, from + 6 + offset, table.name)?);
        }
    }
    Ok(Stored { shown })
}

/// The digest of all columns of a row, of which its own begin at `own`, as [`Table::digest`] makes it of what was written.
pub(crate) fn digest_of(table: &'static Table, row: &Row, own: usize) -> Result<[u8; 32], DecodeError> {
    let mut all = Map::new();
    for (offset, column) in table.columns.iter().enumerate() {
        all.insert(column.name.to_owned(), to_json(column.kind, row, own + offset, table.name)?);
    }
    Ok(table.digest(&all))
}

/// The same of a row that is about to be written with these members.
pub(crate) fn stored_as(table: &'static Table, after: &Map<String, Json>) -> Stored {
    let shown = table.columns.iter().filter(|column| column.audited == Audited::Shown);
    let member = |name: &str| (name.to_owned(), after.get(name).cloned().unwrap_or(Json::Null));
    Stored { shown: shown.map(|column| member(column.name)).collect() }
}

fn to_json(kind: ColumnKind, row: &Row, index: usize, table: &'static str) -> Result<Json, DecodeError> {
    if *row.get(index) == Value::Null {
        return Ok(Json::Null);
    }
    Ok(match kind {
        ColumnKind::Text => Json::from(row.text(index)?),
        ColumnKind::Int => Json::from(row.int(index)?),
        ColumnKind::Bool => Json::from(row.int(index)? != 0),
        ColumnKind::Uuid => text_of(row.uuid(index)?),
        ColumnKind::Time => Json::from(row.time(index)?.to_string()),
        ColumnKind::Json => {
            serde_json::from_str(row.text(index)?).map_err(|source| DecodeError::Row { table, source })?
        }
    })
}

fn text_of(uuid: Uuid) -> Json {
    Json::from(uuid.as_hyphenated().to_string())
}

impl Table {
    /// The fields of a serde form that may stand in the audit trail.
    pub(crate) fn shown(&self, json: &Map<String, Json>) -> Map<String, Json> {
        let shown = self.columns.iter().filter(|column| column.audited == Audited::Shown);
        shown.filter_map(|column| Some((column.name.to_owned(), json.get(column.name)?.clone()))).collect()
    }

    /// SHA-256 over the canonical form of all columns, masked ones too.
    pub(crate) fn digest(&self, json: &Map<String, Json>) -> [u8; 32] {
        use sha2::{Digest as _, Sha256};
        let member = |column: &Column| (column.name, json.get(column.name).unwrap_or(&Json::Null));
        // The members are sorted, which makes this text canonical.
        let all: BTreeMap<&str, &Json> = self.columns.iter().map(member).collect();
        Sha256::digest(serde_json::to_string(&all).unwrap_or_default().as_bytes()).into()
    }
}
