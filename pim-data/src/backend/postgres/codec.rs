//! Values on the wire, in the form that this server declares for them.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Arguments as _, Column as _, Decode, Encode, Postgres, Row as _, Type, TypeInfo as _, ValueRef as _};
use uuid::Uuid;

use crate::backend::{ColumnError, DbError, Row, Statement, Value};

/// No value, of a type that the server finds out by itself.
struct Nothing;

impl Type<Postgres> for Nothing {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0))
    }
}

impl Encode<'_, Postgres> for Nothing {
    fn encode_by_ref(&self, _buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::Yes)
    }
}

/// JSON text as `jsonb`: a version byte and the text.
struct JsonText<'v>(&'v str);

impl Type<Postgres> for JsonText<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(3802))
    }
}

impl Encode<'_, Postgres> for JsonText<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.push(1);
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

pub(super) fn arguments(statement: &Statement) -> Result<PgArguments, DbError> {
    let mut arguments = PgArguments::default();
    for value in statement.binds() {
        let added = match value {
            Value::Null => arguments.add(Nothing),
            Value::Int(number) => arguments.add(*number),
            Value::Bool(flag) => arguments.add(*flag),
            Value::Text(text) => arguments.add(text.as_str()),
            Value::Json(text) => arguments.add(JsonText(text)),
            Value::Bytes(bytes) => arguments.add(bytes.as_slice()),
            Value::Uuid(uuid) => arguments.add(*uuid),
        };
        added.map_err(|source| super::refusal::explain(sqlx::Error::Encode(source), ""))?;
    }
    Ok(arguments)
}

pub(super) fn row_of(row: &PgRow, place: &str) -> Result<Row, DbError> {
    let mut values = Vec::with_capacity(row.len());
    for column in row.columns() {
        let index = column.ordinal();
        let raw = row.try_get_raw(index).map_err(|error| super::refusal::explain(error, place))?;
        values.push(value_of(raw).map_err(|_| ColumnError { index, wanted: "of a type that is read here" })?);
    }
    Ok(Row::new(values))
}

fn value_of(raw: PgValueRef<'_>) -> Result<Value, BoxDynError> {
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().into_owned();
    Ok(match kind.name() {
        "INT8" => Value::Int(decoded::<i64>(raw)?),
        "INT4" => Value::Int(decoded::<i32>(raw)?.into()),
        "INT2" => Value::Int(decoded::<i16>(raw)?.into()),
        "BOOL" => Value::Bool(decoded::<bool>(raw)?),
        "BYTEA" => Value::Bytes(decoded::<Vec<u8>>(raw)?),
        "UUID" => Value::Uuid(decoded::<Uuid>(raw)?),
        "JSONB" if raw.format() == PgValueFormat::Binary => {
            Value::Json(String::from_utf8(raw.as_bytes()?.get(1..).unwrap_or_default().to_vec())?)
        }
        "JSON" | "JSONB" => Value::Json(raw.as_str()?.to_owned()),
        "NUMERIC" if raw.format() == PgValueFormat::Binary => Value::Int(whole(raw.as_bytes()?)?),
        "VOID" => Value::Null,
        "TEXT" | "VARCHAR" | "NAME" | "\"CHAR\"" | "CHAR" | "NUMERIC" | "UNKNOWN" => {
            Value::Text(raw.as_str()?.to_owned())
        }
        other => return Err(format!("type {other}").into()),
    })
}

fn decoded<'r, T: Decode<'r, Postgres>>(raw: PgValueRef<'r>) -> Result<T, BoxDynError> {
    T::decode(raw)
}

/// A whole `numeric`, such as the sum of whole numbers: a head of four 16-bit words, then digits of base 10,000.
fn whole(bytes: &[u8]) -> Result<i64, BoxDynError> {
    let word = |at: usize| -> Result<i64, BoxDynError> {
        let two = bytes.get(at * 2..at * 2 + 2).ok_or("a numeric that ends too early")?;
        Ok(i64::from(i16::from_be_bytes([two[0], two[1]])))
    };
    let (digits, weight, sign) = (word(0)?, word(1)?, word(2)?);
    if word(3)? != 0 {
        return Err("a numeric with a fraction".into());
    }
    let mut number = 0_i64;
    for position in 0..=weight {
        let digit = if position < digits { word(4 + usize::try_from(position)?)? } else { 0 };
        number = number.checked_mul(10_000).and_then(|it| it.checked_add(digit)).ok_or("a numeric above 2^63")?;
    }
    Ok(if sign == 0 { number } else { -number })
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn whole_numerics_are_read_and_others_refused() {
        let of = |words: &[i16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
        assert_eq!(whole(&of(&[0, 0, 0, 0])).ok(), Some(0));
        assert_eq!(whole(&of(&[2, 1, 0, 0, 12, 3456])).ok(), Some(123_456));
        assert_eq!(whole(&of(&[1, 1, 0x4000, 0, 5])).ok(), Some(-50_000));
        assert!(whole(&of(&[1, -1, 0, 2, 5000])).is_err());
        assert!(whole(&of(&[1, 0, 0])).is_err());
    }
}
