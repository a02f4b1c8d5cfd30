//! An instant as people write it (RFC 3339), and as the servers and a manifest have it.

use std::str::FromStr;

/// Microseconds since 1970, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub i64);

const DAY: i64 = 86_400;
const SECOND: i64 = 1_000_000;
const RULE: &str = "must be an instant such as 2026-03-02T09:00:00Z or 2026-03-02T10:00:00.25+01:00";

impl Instant {
    /// By this machine's clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "servers stamp their commits by this clock")]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

impl FromStr for Instant {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or(RULE)
    }
}

impl std::fmt::Display for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, micros) = (self.0.div_euclid(SECOND), self.0.rem_euclid(SECOND));
        let (year, month, day) = date_of(seconds.div_euclid(DAY));
        let second = seconds.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

fn parse(text: &str) -> Option<Instant> {
    let (date, time) = text.split_once('T')?;
    let digits = |text: &str, len: usize| {
        let is_number = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { text.parse::<i64>().ok() } else { None }
    };
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let at = time.find(['Z', '+', '-'])?;
    let (clock, zone) = time.split_at(at);
    let offset = match zone {
        "Z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.splitn(3, ':');
    let (hour, minute, second) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let micros = digits(fraction, fraction.len()).filter(|_| (1..=6).contains(&fraction.len()))?;
    let micros = (fraction.len()..6).fold(micros, |micros, _| micros * 10);
    let is_day = (1..=12).contains(&month) && day >= 1 && date_of(days_to(year, month, day)) == (year, month, day);
    if !is_day || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = days_to(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
    Some(Instant(seconds * SECOND + micros))
}

/// Days since 1970, in the Gregorian calendar; a year begins in March, so that the leap day is its last.
fn days_to(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::Instant;

    #[test]
    fn an_instant_is_read_and_written() {
        let read = |text: &str| text.parse::<Instant>().map(|it| it.0);
        assert_eq!(read("1970-01-01T00:00:00Z"), Ok(0));
        assert_eq!(read("2026-03-02T10:00:00.25+01:00"), read("2026-03-02T09:00:00.250000Z"));
        assert_eq!(read("2000-02-29T23:59:59Z"), Ok(951_868_799_000_000));
        for text in ["2026-11-26T19:20:01.123456Z", "1969-12-31T23:59:59.000001Z", "2024-02-29T00:00:00.000000Z"] {
            assert_eq!(text.parse::<Instant>().map(|it| it.to_string()).as_deref(), Ok(text));
        }
        for bad in [
            "",
            "yesterday",
            "2026-02-29T00:00:00Z",
            "2026-03-02T24:00:00Z",
            "2026-03-02T09:00:00",
            "2026-03-02'T09:00:00Z",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
