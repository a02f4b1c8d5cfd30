//! Which of two forms a scraper prefers, by its `Accept` header.

use super::Format;

/// Weights are in thousandths, as RFC 9110 writes them.
const WEIGHT_MAX: u32 = 1000;

/// OpenMetrics when it is named and plain text is not named with a higher weight; a wildcard names neither.
pub(super) fn preferred(header: &str) -> Format {
    let (mut open, mut plain) = (0, 0);
    for range in header.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut weight, mut is_known) = (WEIGHT_MAX, true);
        for part in parts {
            match part.split_once('=').map(|(name, value)| (name.trim(), value.trim().trim_matches('"'))) {
                Some((name, value)) if name.eq_ignore_ascii_case("q") => weight = thousandths(value),
                // Both versions are read by the same rules.
                Some((name, value)) if name.eq_ignore_ascii_case("version") && is_open(kind) => {
                    is_known = matches!(value, "1.0.0" | "0.0.1");
                }
                _ => {}
            }
        }
        if is_known && is_open(kind) {
            open = open.max(weight);
        } else if kind.eq_ignore_ascii_case("text/plain") {
            plain = plain.max(weight);
        }
    }
    if open > 0 && open >= plain { Format::OpenMetrics } else { Format::Plain }
}

fn is_open(kind: &str) -> bool {
    kind.eq_ignore_ascii_case("application/openmetrics-text")
}

/// A weight that is none counts as the lowest: what a scraper says badly is not preferred.
fn thousandths(value: &str) -> u32 {
    match value.split_once('.').unwrap_or((value, "")) {
        ("1", rest) if rest.bytes().all(|b| b == b'0') => WEIGHT_MAX,
        ("0", rest) if rest.len() <= 3 && rest.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{rest:0<3}").parse().unwrap_or(0)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_for_openmetrics_gets_it() {
        for header in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "text/plain;q=0.5, application/openmetrics-text;q=0.5",
        ] {
            assert_eq!(preferred(header), Format::OpenMetrics, "{header}");
        }
    }

    #[test]
    fn everybody_else_gets_plain_text() {
        for header in [
            "",
            "*/*",
            "text/plain",
            "text/html, */*;q=0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.2, text/plain;q=0.25",
            "application/openmetrics-text; version=2.0.0",
            "application/openmetrics-text;q=nonsense",
            "application/openmetrics-text;q=1.5, text/plain;q=0.1",
            "application/openmetrics-textual",
        ] {
            assert_eq!(preferred(header), Format::Plain, "{header}");
        }
    }
}
