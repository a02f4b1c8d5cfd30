//! Which tables a query reads: as its engine's parser reads it, and not as its words look.

use std::borrow::Cow;
use std::ops::ControlFlow;

use sqlparser::ast::{
    Ident, ObjectName, Query, SetExpr, Statement, TableFactor, Value, ValueWithSpan, Visit as _, Visitor,
};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, Tokenizer, Whitespace};

use super::{ScopeError, ScopedTable};
use crate::backend::{Engine, numbered};

/// Functions in a table's place that make rows of their arguments alone. Others may read a table, and on the embedded engine
/// a table may be called as a function is.
const OF_ARGUMENTS: [&str; 13] = [
    "generate_series",
    "json_array_elements",
    "json_array_elements_text",
    "json_each",
    "json_each_text",
    "json_tree",
    "jsonb_array_elements",
    "jsonb_array_elements_text",
    "jsonb_each",
    "jsonb_each_text",
    "regexp_split_to_table",
    "string_to_table",
    "unnest",
];

/// Refuses what is no query over these tables alone, and what cannot be told.
pub(super) fn check(text: &str, engine: Engine, tables: &[ScopedTable]) -> Result<(), ScopeError> {
    let dialect: &dyn Dialect = match engine {
        Engine::Postgres => &PostgreSqlDialect {},
        Engine::Sqlite => &SQLiteDialect {},
    };
    let sent = match engine {
        Engine::Postgres if tokens(text, dialect)?.iter().any(is_parameter) => return Err(ScopeError::Form),
        Engine::Postgres => Cow::from(numbered(text)),
        Engine::Sqlite => Cow::from(text),
    };
    let tokens = tokens(&sent, dialect)?;
    if engine == Engine::Postgres && !are_numbered(&tokens) {
        return Err(ScopeError::Form);
    }
    let statements = Parser::new(dialect).with_tokens(tokens).parse_statements().map_err(|_| ScopeError::Form)?;
    let [Statement::Query(query)] = &statements[..] else { return Err(ScopeError::Form) };
    query.visit(&mut Reader { tables, engine }).break_value().map_or(Ok(()), Err)
}

/// Whether each parameter has the number that it was given: a digit behind its `?` would make it another.
fn are_numbered(tokens: &[Token]) -> bool {
    let parameters = tokens.iter().filter(|token| is_parameter(token));
    (1..).zip(parameters).all(|(number, token)| *token == Token::Placeholder(format!("${number}")))
}

const fn is_parameter(token: &Token) -> bool {
    matches!(token, Token::Placeholder(_))
}

/// What it is written in. Refused is what an engine reads as another thing: comments, which this one sees in no operator, and
/// signs that are a word's here and a space to the engine.
fn tokens(text: &str, dialect: &dyn Dialect) -> Result<Vec<Token>, ScopeError> {
    let tokens = Tokenizer::new(dialect, text).tokenize().map_err(|_| ScopeError::Form)?;
    let is_strange = |token: &Token| match token {
        Token::SemiColon => true,
        Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)) => true,
        Token::CustomBinaryOperator(operator) => operator.contains("--") || operator.contains("/*"),
        Token::Word(word) => word.quote_style.is_none() && !word.value.is_ascii(),
        _ => false,
    };
    if tokens.iter().any(is_strange) { Err(ScopeError::Form) } else { Ok(tokens) }
}

struct Reader<'t> {
    tables: &'t [ScopedTable],
    engine: Engine,
}

impl Reader<'_> {
    fn is_ours(&self, name: &ObjectName) -> Result<(), ScopeError> {
        if self.tables.iter().any(|table| is_name(name, table.name)) { Ok(()) } else { Err(other(name)) }
    }

    fn is_ours_or_of_arguments(&self, name: &ObjectName) -> Result<(), ScopeError> {
        let is_of_arguments = OF_ARGUMENTS.iter().any(|known| is_name(name, known));
        if is_of_arguments { Ok(()) } else { self.is_ours(name) }
    }

    /// What is there in a table's place.
    fn reads(&self, factor: &TableFactor) -> Result<(), ScopeError> {
        match factor {
            TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } | TableFactor::UNNEST { .. } => Ok(()),
            TableFactor::Table { name, args: None, inheritance: None, json_path: None, version: None, .. } => {
                self.is_ours(name)
            }
            TableFactor::Table { args: Some(_), .. } => Ok(()),
            TableFactor::Function { name, .. } => self.is_ours_or_of_arguments(name),
            _ => Err(ScopeError::Form),
        }
    }
}

impl Visitor for Reader<'_> {
    type Break = ScopeError;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<ScopeError> {
        // Names that a query gives by itself would hide what a table's name stands for.
        let is_plain = query.with.is_none()
            && query.locks.is_empty()
            && query.for_clause.is_none()
            && query.settings.is_none()
            && query.format_clause.is_none()
            && query.pipe_operators.is_empty();
        if is_plain && is_reading(&query.body) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(ScopeError::Form)
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<ScopeError> {
        flow(self.reads(factor))
    }

    /// Wherever the language has a table's name, also behind IN, or a function's that stands for one.
    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<ScopeError> {
        flow(self.is_ours_or_of_arguments(name))
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<ScopeError> {
        // What stands before the query would move what any other form means.
        let is_ours = |name: &str| match self.engine {
            Engine::Postgres => name.starts_with('$'),
            Engine::Sqlite => name == "?",
        };
        match &value.value {
            Value::Placeholder(name) if !is_ours(name) => ControlFlow::Break(ScopeError::Form),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn flow(told: Result<(), ScopeError>) -> ControlFlow<ScopeError> {
    told.map_or_else(ControlFlow::Break, ControlFlow::Continue)
}

fn is_reading(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.into.is_none() && select.lateral_views.is_empty(),
        SetExpr::SetOperation { left, right, .. } => is_reading(left) && is_reading(right),
        // Its own visit looks at it.
        SetExpr::Query(_) | SetExpr::Values(_) => true,
        _ => false,
    }
}

/// Names without quotes are the same in any case; those with a schema are none of ours.
fn is_name(name: &ObjectName, ours: &str) -> bool {
    let [part] = &name.0[..] else { return false };
    let Some(Ident { value, quote_style, .. }) = part.as_ident() else { return false };
    match ours.strip_prefix('"').and_then(|quoted| quoted.strip_suffix('"')) {
        Some(quoted) => *quote_style == Some('"') && value == quoted,
        None => quote_style.is_none() && value.eq_ignore_ascii_case(ours),
    }
}

fn other(name: &ObjectName) -> ScopeError {
    ScopeError::Table { name: name.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &[ScopedTable] = &[
        ScopedTable { name: "card", home: None, facility: None },
        ScopedTable { name: "\"Loan\"", home: None, facility: None },
    ];

    fn on_both(text: &str) -> [Result<(), ScopeError>; 2] {
        [Engine::Postgres, Engine::Sqlite].map(|engine| check(text, engine, TABLES))
    }

    #[test]
    fn a_query_over_its_tables_is_one() {
        for text in [
            "SELECT 1",
            "select a, b from Card c where a = ? or b in (1, 2) order by a, b limit 5",
            "SELECT extract(day FROM at), count(*) FROM card GROUP BY 1, 2 HAVING count(*) > 1",
            "SELECT * FROM card WHERE a IS DISTINCT FROM b AND 'FROM other; --' <> a",
            "SELECT * FROM card c JOIN \"Loan\" AS l ON l.card = c.id, card d LEFT JOIN (SELECT 1 FROM card) x ON true",
            "SELECT * FROM (card JOIN \"Loan\" USING (a, b)), json_each(?) j",
            "SELECT (SELECT max(a) FROM card) FROM (SELECT a FROM \"Loan\" UNION ALL SELECT a FROM card) x",
            "SELECT * FROM card WHERE (a, b) > (?, ?) UNION SELECT * FROM (VALUES (1, 2)) v",
            "SELECT a FROM card WHERE b = ? LIMIT ? OFFSET ?",
            "SELECT a FROM card WHERE a>? AND b<>? AND c LIKE ?||'%' AND d-?>=?",
        ] {
            assert_eq!(on_both(text), [Ok(()), Ok(())], "{text}");
        }
        let lateral =
            "SELECT * FROM card c LEFT JOIN LATERAL (SELECT 1 FROM \"Loan\") x ON true, LATERAL unnest(c.tags) t";
        assert_eq!(check(lateral, Engine::Postgres, TABLES), Ok(()));
    }

    /// Guard: a table that is not told of is read nowhere in a query.
    #[test]
    fn another_table_is_found_wherever_it_stands() {
        for text in [
            "SELECT * FROM other",
            "SELECT * FROM card, other",
            "SELECT * FROM card AS c, card d, other o",
            "SELECT * FROM card JOIN other ON true",
            "SELECT * FROM card c LEFT JOIN (card d CROSS JOIN other) ON true",
            "SELECT * FROM (SELECT 1) x, other",
            "SELECT * FROM main.card",
            "SELECT * FROM card.other",
            "SELECT * FROM \"card\"",
            "SELECT * FROM Loan",
            "SELECT * FROM fts('hello')",
            "SELECT * FROM card WHERE a IN (SELECT a FROM other)",
            "SELECT (SELECT max(a) FROM other) FROM card",
            "SELECT * FROM card UNION SELECT * FROM other",
            "SELECT 1 FROM card ORDER BY (SELECT a FROM other)",
            "SELECT 1 AS distinct FROM other",
            // Without arguments it is a table's name.
            "SELECT * FROM json_each",
        ] {
            for told in on_both(text) {
                assert!(matches!(told, Err(ScopeError::Table { .. })), "{text}: {told:?}");
            }
        }
    }

    /// Guard: neither by what an engine allows besides, nor where a name looks like a word of the language.
    #[test]
    fn nor_is_it_by_how_an_engine_reads() {
        for text in [
            "SELECT * FROM ONLY (other)",
            "SELECT * FROM ONLY other",
            "SELECT * FROM ((other))",
            "SELECT * FROM [card]",
            "SELECT * FROM 'other'",
            "SELECT number FROM card WHERE number IN other",
            "SELECT 50 IN main.sums",
            "SELECT 3 IN other()",
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM card, LATERAL other)",
            "SELECT 1 FROM card s JOIN card x ON x.order = s.order JOIN other o ON true",
            "SELECT 1 FROM card s LEFT JOIN card y ON y.order = s.order, other o",
            "SELECT o.values FROM other o",
            "SELECT values FROM other",
            "SELECT 1 FROM card fetch JOIN other",
            "SELECT 1 FROM card offset JOIN other",
            "SELECT 1 FROM card AS window JOIN other",
            "SELECT 1 FROM card x JOIN card y ON x.offset = 1 JOIN other",
            "SELECT 1 AS `a'` FROM other AS `b'`",
            "SELECT 1 AS [a'] FROM other AS [b']",
            "SELECT 1. FROM other",
            "SELECT 'x' ||-- '\n a FROM other WHERE a <> '' -- '",
            "SELECT ?-- '\n , a FROM other WHERE a <> '' -- '",
            "SELECT 'x' ||/* ' */ a FROM other WHERE a <> '' -- '",
            "SELECT * FROM card \u{feff}JOIN (other)",
            "SELECT 1 FROM card where\u{20ac} JOIN other",
            "SELECT 1 FROM card\u{a0}, other",
        ] {
            for told in on_both(text) {
                assert!(told.is_err(), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_query_or_cannot_be_told_is_refused() {
        for text in [
            "",
            "DELETE FROM card",
            "WITH card AS (SELECT 1) SELECT * FROM card",
            "SELECT 1; SELECT * FROM card",
            "SELECT 1;",
            "SELECT * FROM card -- WHERE",
            "SELECT * FROM /* card */ card",
            "SELECT * FROM card WHERE a = $1",
            "SELECT * FROM card WHERE a = ?1",
            "SELECT * FROM card WHERE a = :a",
            "SELECT 1 UNION TABLE other",
            "TABLE other",
            "SELECT * INTO copy FROM card",
            "SELECT * FROM card FOR UPDATE",
            "SELECT 'open",
            "SELECT * FROM card WHERE a IN (WITH x AS (SELECT 1) SELECT * FROM x)",
            "SELECT * FROM",
            "SELECT (1",
            "SELECT 1)",
        ] {
            assert_eq!(on_both(text), [Err(ScopeError::Form), Err(ScopeError::Form)], "{text}");
        }
    }
}
