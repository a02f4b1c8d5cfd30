//! How fresh a read must be, and the token that carries what its holder has seen.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

/// Most home keys that a token remembers; what falls out is read from the primary.
pub const ENTRIES_MAX: usize = 16;

/// How fresh a read must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The newest commit.
    #[default]
    Strong,
    /// At least what the token's holder has seen.
    ReadYourWrites(ConsistencyToken),
    /// At most this old.
    Bounded(Duration),
    /// Whatever is near.
    Eventual,
}

impl From<ConsistencyToken> for Consistency {
    fn from(token: ConsistencyToken) -> Self {
        Self::ReadYourWrites(token)
    }
}

/// A list of (home key, n): a read that carries it sees at least these writes.
///
/// ```
/// use pim_data::consistency::ConsistencyToken;
/// use uuid::Uuid;
///
/// let key = Uuid::from_u128(7);
/// let mut token = ConsistencyToken::of(key, 3);
/// token.merge(&ConsistencyToken::of(key, 5));
/// assert_eq!(token.n_of(key), Some(5));
/// assert_eq!(token.to_string().parse::<ConsistencyToken>()?, token);
/// # Ok::<(), pim_data::consistency::ParseTokenError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsistencyToken {
    /// Oldest first.
    entries: Vec<(Uuid, u64)>,
    /// Whether an entry fell out; a key that is not listed is then read from the primary.
    overflowed: bool,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a consistency token")]
pub struct ParseTokenError;

impl ConsistencyToken {
    /// A token for one write.
    #[must_use]
    pub fn of(key: Uuid, n: u64) -> Self {
        Self { entries: vec![(key, n)], overflowed: false }
    }

    /// Takes over what another token has seen, by maximum; the oldest entries fall out above [`ENTRIES_MAX`].
    pub fn merge(&mut self, other: &Self) {
        for &(key, n) in &other.entries {
            let before = self.n_of(key).unwrap_or(0);
            self.entries.retain(|(known, _)| *known != key);
            self.entries.push((key, n.max(before)));
        }
        self.overflowed |= other.overflowed;
        let surplus = self.entries.len().saturating_sub(ENTRIES_MAX);
        self.overflowed |= surplus > 0;
        self.entries.drain(..surplus);
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.overflowed
    }

    /// What its holder has seen of a key.
    #[must_use]
    pub fn n_of(&self, key: Uuid) -> Option<u64> {
        self.entries.iter().find(|(known, _)| *known == key).map(|(_, n)| *n)
    }

    /// Every home key that it remembers, with what its holder has seen of it; the oldest first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (Uuid, u64)> + '_ {
        self.entries.iter().copied()
    }

    /// Whether a copy of the key that has reached `n` is fresh enough.
    #[must_use]
    pub fn is_met_by(&self, key: Uuid, n: u64) -> bool {
        self.n_of(key).map_or(!self.overflowed, |seen| n >= seen)
    }
}

impl fmt::Display for ConsistencyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.overflowed { "2" } else { "1" })?;
        self.entries.iter().try_for_each(|(key, n)| write!(f, ".{}-{n}", key.as_simple()))
    }
}

impl FromStr for ConsistencyToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        let overflowed = match parts.next() {
            Some("1") => false,
            Some("2") => true,
            _ => return Err(ParseTokenError),
        };
        let mut entries = Vec::new();
        for part in parts {
            let (key, n) = part.split_once('-').ok_or(ParseTokenError)?;
            let key = Uuid::try_parse(key).map_err(|_| ParseTokenError)?;
            entries.push((key, n.parse().map_err(|_| ParseTokenError)?));
            if entries.len() > ENTRIES_MAX {
                return Err(ParseTokenError);
            }
        }
        Ok(Self { entries, overflowed })
    }
}
