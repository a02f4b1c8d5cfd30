//! Which tables a query reads, as far as its text says.

use super::{ScopeError, ScopedTable};

/// What stands where a table may, or ends the tables of a query.
const ENDS: [&str; 11] =
    ["WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", "OFFSET", "FETCH", "UNION", "INTERSECT", "EXCEPT"];

/// Between two parentheses.
#[derive(Clone, Copy, Default)]
struct Level {
    is_query: bool,
    /// Among the tables of a query.
    is_from: bool,
    /// What comes next is a table.
    is_table: bool,
}

/// Refuses what is no query over these tables alone.
pub(super) fn check(text: &str, tables: &[ScopedTable]) -> Result<(), ScopeError> {
    let words = words(text)?;
    if !words.first().is_some_and(|first| first.eq_ignore_ascii_case("SELECT")) {
        return Err(ScopeError::Form);
    }
    let (mut outer, mut here) = (Vec::new(), Level::default());
    for (place, word) in words.iter().enumerate() {
        let next = words.get(place + 1).copied().unwrap_or_default();
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        if is("(") {
            outer.push(here);
            // A sub-select, or tables in parentheses.
            here = Level { is_query: false, is_from: here.is_table, is_table: here.is_table };
        } else if is(")") {
            here = outer.pop().ok_or(ScopeError::Form)?;
            here.is_table = false;
        } else if is("SELECT") {
            here = Level { is_query: true, ..Level::default() };
        } else if is("VALUES") {
            here = Level::default();
        } else if here.is_table && !is("LATERAL") {
            // A function's rows are its own.
            let is_ours = next == "(" || tables.iter().any(|table| is_name(word, table.name));
            if !is_ours || next == "." {
                return Err(ScopeError::Table { name: (*word).to_owned() });
            }
            here.is_table = false;
        } else if is("FROM") && here.is_query && !words[place - 1].eq_ignore_ascii_case("DISTINCT") {
            (here.is_from, here.is_table) = (true, true);
        } else if here.is_from && (is("JOIN") || is(",")) {
            here.is_table = true;
        } else if ENDS.iter().any(|end| is(end)) {
            here.is_from = false;
        } else if is("TABLE") || is("WITH") || is("INTO") {
            return Err(ScopeError::Form);
        }
    }
    if outer.is_empty() && !here.is_table { Ok(()) } else { Err(ScopeError::Form) }
}

/// Names without quotes are the same in any case.
fn is_name(word: &str, name: &str) -> bool {
    word == name || (!name.starts_with('"') && !word.starts_with('"') && word.eq_ignore_ascii_case(name))
}

/// Stands for whatever is in single quotes.
const TEXT: &str = "''";

/// Words, names in double quotes, texts, and single signs.
fn words(text: &str) -> Result<Vec<&str>, ScopeError> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let is_of_word = |sign: char| sign.is_alphanumeric() || sign == '_';
        let length = match first {
            '\'' | '"' => 2 + rest[1..].find(first).ok_or(ScopeError::Form)?,
            sign if is_of_word(sign) => rest.find(|sign| !is_of_word(sign)).unwrap_or(rest.len()),
            sign => sign.len_utf8(),
        };
        let (word, behind) = rest.split_at(length);
        let is_comment = rest.starts_with("--") || rest.starts_with("/*");
        // Escapes, and quotes within quotes, say where a text ends; nothing here reads them.
        let is_escaped = first == '\'' && words.last().is_some_and(|last: &&str| last.eq_ignore_ascii_case("E"));
        let is_doubled = first == '"' && behind.starts_with('"');
        if [";", "$"].contains(&word) || is_comment || is_escaped || is_doubled {
            return Err(ScopeError::Form);
        }
        words.push(if first == '\'' { TEXT } else { word });
        rest = behind.trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &[ScopedTable] = &[
        ScopedTable { name: "card", home: None, facility: None },
        ScopedTable { name: "\"Loan\"", home: None, facility: None },
    ];

    #[test]
    fn a_query_over_its_tables_is_one() {
        for text in [
            "SELECT 1",
            "select a, b from Card c where a = ? or b in (1, 2) order by a, b limit 5",
            "SELECT extract(day FROM at), count(*) FROM card GROUP BY 1, 2 HAVING count(*) > 1",
            "SELECT * FROM card WHERE a IS DISTINCT FROM b AND 'FROM other; --' <> a",
            "SELECT * FROM card c JOIN \"Loan\" AS l ON l.card = c.id, card d LEFT JOIN LATERAL (SELECT 1 FROM card) x ON true",
            "SELECT * FROM (card JOIN \"Loan\" USING (a, b)), json_each(?) j",
            "SELECT (SELECT max(a) FROM card) FROM (SELECT a FROM \"Loan\" UNION ALL SELECT a FROM card) x",
            "SELECT * FROM card WHERE (a, b) > (?, ?) UNION SELECT * FROM (VALUES (1, 2)) v",
        ] {
            assert_eq!(check(text, TABLES), Ok(()), "{text}");
        }
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
            "SELECT * FROM ((other))",
            "SELECT * FROM main.card",
            "SELECT * FROM card.other",
            "SELECT * FROM \"card\"",
            "SELECT * FROM Loan",
            "SELECT * FROM [card]",
            "SELECT * FROM 'other'",
            "SELECT * FROM card WHERE a IN (SELECT a FROM other)",
            "SELECT (SELECT max(a) FROM other) FROM card",
            "SELECT * FROM card UNION SELECT * FROM other",
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM card, LATERAL other)",
        ] {
            assert!(matches!(check(text, TABLES), Err(ScopeError::Table { .. })), "{text}");
        }
    }

    #[test]
    fn what_is_no_query_or_cannot_be_told_is_refused() {
        for text in [
            "",
            "DELETE FROM card",
            "WITH card AS (SELECT 1) SELECT * FROM card",
            "SELECT 1; SELECT * FROM card",
            "SELECT * FROM card -- WHERE",
            "SELECT * FROM /* card */ card",
            "SELECT * FROM card WHERE a = $1",
            "SELECT 1 UNION TABLE other",
            "SELECT * INTO copy FROM card",
            "SELECT 'open",
            "SELECT E'\\' FROM card",
            "SELECT * FROM card WHERE a IN (WITH x AS (SELECT 1) SELECT * FROM x)",
            "SELECT * FROM \"Loan\"\"s\"",
            "SELECT * FROM",
            "SELECT (1",
            "SELECT 1)",
        ] {
            assert_eq!(check(text, TABLES), Err(ScopeError::Form), "{text}");
        }
    }
}
