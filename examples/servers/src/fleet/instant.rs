//! An instant as people write it (RFC 3339), and as the servers and a manifest have it.

use std::str::FromStr;

const RULE: &str = "must be an instant such as 2026-03-02T09:00:00Z or 2026-03-02T10:00:00.25+01:00";

/// Microseconds since 1970, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub i64);

impl Instant {
    /// By this machine's clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "servers stamp their commits by this clock")]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }
}

impl FromStr for Instant {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(|it| Self(it.as_microsecond())).map_err(|_| RULE)
    }
}

impl std::fmt::Display for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What a manifest says may be any number.
        let at = jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{at:.6}")
    }
}

#[cfg(test)]
mod tests {
    use super::Instant;

    #[test]
    fn an_instant_is_read_and_written() {
        let read = |text: &str| text.parse::<Instant>().map(|it| it.0);
        assert_eq!(read("1970-01-01T00:00:00Z"), Ok(0));
        assert_eq!(read("2026-03-02T10:00:00.25+01:00"), read("2026-03-02T09:00:00.250000Z"));
        for text in ["2026-11-26T19:20:01.123456Z", "1969-12-31T23:59:59.000001Z", "2024-02-29T00:00:00.000000Z"] {
            assert_eq!(text.parse::<Instant>().map(|it| it.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "yesterday", "2026-02-29T00:00:00Z", "2026-03-02T09:00:00", "2026-03-02'T09:00:00Z"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(Instant(i64::MAX).to_string().starts_with("9999-"));
    }
}
