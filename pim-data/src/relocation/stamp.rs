//! What tells that somebody has changed a key's rows without its number.

/// How many rows a key has on a server, and the sum of the transactions that wrote them.
///
/// Whoever changes a row leaves a transaction in it that is younger than what was there, so the sum rises; who adds or removes
/// one changes the count. Only two of the same server can be compared. The embedded engine keeps no such thing: its files are
/// one program's, which changes no row without the key's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    rows: u64,
    sum: u64,
}

impl Stamp {
    /// As [`COLUMNS`] told it; nothing of anything else.
    pub(super) fn of(text: &str) -> Self {
        let told = text.split_once(' ').and_then(|(rows, sum)| Some((rows.parse().ok()?, sum.parse().ok()?)));
        told.map_or_else(Self::default, |(rows, sum)| Self { rows, sum })
    }
}

/// The stamp of a group of rows that have their `xmin`.
pub(super) const COLUMNS: &str = "count(*)::text || ' ' || sum(xmin::text::bigint)::text";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        assert_eq!(Stamp::of("2 4294967290"), Stamp { rows: 2, sum: 4_294_967_290 });
        assert_eq!((Stamp::of(""), Stamp::of("x y")), (Stamp::default(), Stamp::default()));
    }
}
