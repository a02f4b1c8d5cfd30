//! Taking a sample's line apart: labels are quoted text that may hold anything, so marks are looked for outside of quotes.

/// The sample, and its example when it has one: `{…} value time`.
pub(crate) fn split_example(line: &str) -> (&str, Option<&str>) {
    match unquoted(line, " # ") {
        Some(at) => (&line[..at], Some(&line[at + 3..])),
        None => (line, None),
    }
}

/// The labels of a sample or an example, as they are written.
pub(crate) fn labels(sample: &str) -> impl Iterator<Item = (&str, &str)> {
    let begin = unquoted(sample, "{").map_or(sample.len(), |at| at + 1);
    let mut rest = &sample[begin..];
    std::iter::from_fn(move || {
        let (name, quoted) = rest.split_once("=\"")?;
        let end = end_of_quote(quoted)?;
        rest = &quoted[end + 1..];
        Some((name.trim_start_matches(','), &quoted[..end]))
    })
}

fn end_of_quote(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

/// Where a mark begins first, outside of quotes.
fn unquoted(line: &str, mark: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let found = line[from..].find(mark).map(|at| from + at);
        match line[from..].find('"').map(|at| from + at) {
            Some(quote) if found.is_none_or(|found| quote < found) => {
                from = quote + 1 + end_of_quote(&line[quote + 1..])? + 1;
            }
            _ => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_no_mark() {
        let line = r#"sales{what="a # {b=\"c\"}",le="0.5"} 3 # {trace_id="0a"} 0.4 1.5"#;
        let (sample, example) = split_example(line);
        assert_eq!(sample, r#"sales{what="a # {b=\"c\"}",le="0.5"} 3"#);
        assert_eq!(example, Some(r#"{trace_id="0a"} 0.4 1.5"#));
        assert_eq!(labels(sample).collect::<Vec<_>>(), [("what", r#"a # {b=\"c\"}"#), ("le", "0.5")]);
        assert_eq!(labels(example.unwrap()).collect::<Vec<_>>(), [("trace_id", "0a")]);
        assert_eq!((split_example("threads 3"), labels("threads 3").count()), (("threads 3", None), 0));
        assert_eq!(labels("threads{} 3").count(), 0);
    }
}
