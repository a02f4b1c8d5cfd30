//! Statements over many keys or rows: one each on the embedded engine, all at once on a server, which is a trip away.

use uuid::Uuid;

use super::layout::marks;
use crate::audit::hex;
use crate::backend::{Engine, Row, SqlPair, Statement, Value};

/// Rows that one statement of the embedded engine removes.
const IDS_PER_STATEMENT: usize = 64;

pub(super) fn generated(text: String) -> Statement {
    Statement::of(SqlPair::generated(text))
}

/// Statements for a server as one, which is a transaction. Each has at most one parameter, which is JSON.
pub(super) fn together(statements: Vec<Statement>) -> Statement {
    let one = |statement: Statement| {
        let given = match statement.binds() {
            [Value::Json(given)] => given.clone(),
            _ => "null".to_owned(),
        };
        let text = statement.into_pair().text(Engine::Postgres).unwrap_or_default();
        format!("[{},{given}]", serde_json::Value::from(text))
    };
    let work = statements.into_iter().map(one).collect::<Vec<_>>().join(",");
    Statement::of(SqlPair::postgres("SELECT pim_do(?)")).bind(Value::Json(format!("[{work}]")))
}

/// Ids as one parameter.
pub(super) fn list_of_ids(ids: &[Uuid]) -> Value {
    let list = ids.iter().map(|id| format!("\"{}\"", id.as_hyphenated())).collect::<Vec<_>>().join(",");
    Value::Json(format!("[{list}]"))
}

/// A condition that holds for these ids, and what it binds. On a server always the same text, however many they are.
fn among(engine: Engine, column: &str, ids: &[Uuid]) -> (String, Vec<Value>) {
    if engine == Engine::Sqlite {
        return (format!("{column} IN ({})", marks(ids.len())), ids.iter().map(|id| Value::from(*id)).collect());
    }
    let condition = format!("{column} = ANY (ARRAY(SELECT value::uuid FROM jsonb_array_elements_text(?)))");
    (condition, vec![list_of_ids(ids)])
}

/// Reads what some ids have.
pub(super) fn select(
    engine: Engine,
    what: &str,
    table: &str,
    (column, ids): (&str, &[Uuid]),
    order: &str,
) -> Statement {
    let (condition, binds) = among(engine, column, ids);
    generated(format!("SELECT {what} FROM {table} WHERE {condition} ORDER BY {order}")).bind_all(binds)
}

/// Removes what some ids have.
pub(super) fn remove(engine: Engine, table: &str, column: &str, ids: &[Uuid]) -> Vec<Statement> {
    let most = if engine == Engine::Sqlite { IDS_PER_STATEMENT } else { ids.len().max(1) };
    let of_some = |some: &[Uuid]| {
        let (condition, binds) = among(engine, column, some);
        generated(format!("DELETE FROM {table} WHERE {condition}")).bind_all(binds)
    };
    ids.chunks(most).map(of_some).collect()
}

/// Writes rows, whose values begin at `from`. On a server a row may refer to any other of them.
pub(super) fn insert(engine: Engine, table: &str, columns: &[String], rows: &[&Row], from: usize) -> Vec<Statement> {
    let names = columns.join(", ");
    if engine == Engine::Sqlite {
        let text = format!("INSERT INTO {table} ({names}) VALUES ({})", marks(columns.len()));
        let of_row =
            |row: &&Row| generated(text.clone()).bind_all((from..row.len()).map(|index| row.get(index).clone()));
        return rows.iter().map(of_row).collect();
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let text = format!("INSERT INTO {table} ({names}) SELECT {names} FROM {}", given(table));
    vec![generated(text).bind(list_of_rows(columns, rows, from))]
}

/// Writes rows of a server over those that have their ids: others may refer to these, so they cannot go and come again.
pub(super) fn overwrite(table: &str, columns: &[String], rows: &[&Row], from: usize) -> Vec<Statement> {
    if rows.is_empty() {
        return Vec::new();
    }
    let (names, sets) = (columns.join(", "), columns.iter().filter(|column| *column != "id"));
    let sets = sets.map(|column| format!("{column} = excluded.{column}")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "INSERT INTO {table} ({names}) SELECT {names} FROM {} ON CONFLICT (id) DO UPDATE SET {sets}",
        given(table)
    );
    vec![generated(text).bind(list_of_rows(columns, rows, from))]
}

/// A row that was read of a server is JSON already.
fn list_of_rows(columns: &[String], rows: &[&Row], from: usize) -> Value {
    let of_row = |row: &&Row| match row.get(from) {
        Value::Json(whole) if columns.len() > row.len() - from => whole.clone(),
        _ => object(columns, (from..row.len()).map(|index| row.get(index))),
    };
    Value::Json(format!("[{}]", rows.iter().map(of_row).collect::<Vec<_>>().join(",")))
}

/// Reads records by what tells them apart.
pub(super) fn fetch(engine: Engine, what: &str, table: &str, columns: &[&str], of: &[&Vec<Value>]) -> Vec<Statement> {
    by_identity(engine, &format!("SELECT {what} FROM {table}"), table, columns, of)
}

/// Removes records by what tells them apart.
pub(super) fn drop_records(engine: Engine, table: &str, columns: &[&str], of: &[&Vec<Value>]) -> Vec<Statement> {
    by_identity(engine, &format!("DELETE FROM {table}"), table, columns, of)
}

fn by_identity(engine: Engine, verb: &str, table: &str, columns: &[&str], of: &[&Vec<Value>]) -> Vec<Statement> {
    if engine == Engine::Sqlite {
        let same = columns.iter().map(|column| format!("{column} = ?")).collect::<Vec<_>>().join(" AND ");
        let of_one = |values: &&Vec<Value>| generated(format!("{verb} WHERE {same}")).bind_all(values.iter().cloned());
        return of.iter().map(of_one).collect();
    }
    if of.is_empty() {
        return Vec::new();
    }
    let names = columns.join(", ");
    let text = format!("{verb} WHERE ({names}) IN (SELECT {names} FROM {})", given(table));
    let list = of.iter().map(|values| object(columns, values.iter())).collect::<Vec<_>>().join(",");
    vec![generated(text).bind(Value::Json(format!("[{list}]")))]
}

/// Rows of a table that a statement is given as one parameter.
fn given(table: &str) -> String {
    format!("jsonb_populate_recordset(NULL::{table}, ?)")
}

/// As JSON text. What is JSON already goes as it is: a number in it may be more exact than any of ours.
fn object<'v, C: AsRef<str>>(columns: &[C], values: impl Iterator<Item = &'v Value>) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let member = |(column, value): (&C, &Value)| {
        let value = match value {
            Value::Null => "null".to_owned(),
            Value::Int(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Text(text) => quoted(text),
            Value::Json(text) => text.clone(),
            Value::Bytes(bytes) => format!("\"\\\\x{}\"", hex(bytes)),
            Value::Uuid(uuid) => format!("\"{}\"", uuid.as_hyphenated()),
        };
        format!("{}:{value}", quoted(column.as_ref()))
    };
    format!("{{{}}}", columns.iter().zip(values).map(member).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_becomes_json_without_losing_anything() {
        let values = [
            Value::Null,
            Value::Int(i64::MAX),
            Value::Text("a \"b\" \\c".to_owned()),
            Value::Json("{\"exact\": 1.00000000000000000001}".to_owned()),
            Value::Bytes(vec![0, 255]),
        ];
        let made = object(&["a", "b", "c", "d", "e"], values.iter());
        let wanted = r#"{"a":null,"b":9223372036854775807,"c":"a \"b\" \\c","d":{"exact": 1.00000000000000000001},"e":"\\x00ff"}"#;
        assert_eq!(made, wanted);
    }

    #[test]
    fn a_server_gets_one_statement_with_one_parameter_however_many_rows_there_are() {
        let ids: Vec<Uuid> = (0..5000).map(Uuid::from_u128).collect();
        for statements in [remove(Engine::Postgres, "t", "id", &ids), remove(Engine::Postgres, "t", "id", &ids[..1])] {
            assert_eq!((statements.len(), statements[0].binds().len()), (1, 1));
        }
        assert_eq!(remove(Engine::Sqlite, "t", "id", &ids).len(), ids.len().div_ceil(IDS_PER_STATEMENT));
        let rows: Vec<Row> = (0..5000).map(|number| Row::new(vec![Value::Int(number)])).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let written = insert(Engine::Postgres, "t", &["a".to_owned()], &rows, 0);
        assert_eq!((written.len(), written[0].binds().len()), (1, 1));
        assert!(insert(Engine::Postgres, "t", &["a".to_owned()], &[], 0).is_empty());
    }
}
