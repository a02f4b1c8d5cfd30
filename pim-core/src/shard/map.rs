//! The immutable shard map: every bucket has one owner and one epoch.

use std::collections::BTreeSet;
use std::fmt;

use sha2::{Digest, Sha256};

use super::file::MapFile;
use super::finding::{Finding, FindingCode, MapError};
use super::{Bucket, Epoch, MapVersion, Route, ShardId, ShardKey};

/// Most shards that one map may name.
pub const SHARDS_MAX: usize = 1024;

/// SHA-256 over the canonical text of a map; a successor names its parent by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapDigest([u8; 32]);

impl MapDigest {
    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for MapDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MapDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a shard is for at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// Owns buckets or may be given some.
    Live,
    /// Owns buckets that are to leave it; takes no new ones.
    Draining,
    /// Owns nothing any more.
    Retired,
}

/// What an endpoint of a shard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointRole {
    /// Takes writes.
    Primary,
    /// Serves reads, behind the primary.
    Replica,
}

/// One database server of a shard.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Unique within the map.
    pub id: String,
    /// What it does.
    pub role: EndpointRole,
    /// Name of the secret that holds the connection string; never the string itself.
    pub dsn_ref: String,
    /// Failure domain, when it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// One shard as the map describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its stable number.
    pub id: ShardId,
    /// Its name, for people.
    pub name: String,
    /// What it is for at present.
    pub state: ShardState,
    /// Its servers; one primary if it is not retired.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// Owner and epoch of every bucket, and the shards behind them. Immutable; made valid or not at all.
///
/// ```
/// use pim_core::shard::{Bucket, ShardId, ShardMap};
///
/// let map = ShardMap::even(4)?;
/// let same = ShardMap::parse(&map.to_toml())?;
/// assert_eq!(map.digest(), same.digest());
///
/// let bucket = Bucket::new(7)?;
/// let next = map.reassign([bucket], ShardId(3))?;
/// assert_eq!(next.owner(bucket).0, ShardId(3));
/// assert_eq!(next.version().0, map.version().0 + 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    pub(super) keyspace: String,
    pub(super) version: MapVersion,
    pub(super) parent: Option<MapDigest>,
    pub(super) shards: Vec<Shard>,
    pub(super) owners: Box<[ShardId; Bucket::COUNT]>,
    pub(super) epochs: Box<[Epoch; Bucket::COUNT]>,
    pub(super) digest: MapDigest,
}

impl ShardMap {
    /// Reads a map file.
    ///
    /// ```
    /// let map = pim_core::shard::ShardMap::parse(r#"
    ///     format = 1
    ///     keyspace = "shop"                # a name for what is sharded
    ///     version = 1                      # from 2 on, `parent` is the digest of the map before
    ///
    ///     [[shards]]
    ///     id = 0
    ///     name = "north"
    ///     state = "live"                   # or draining, or retired
    ///     [[shards.endpoints]]
    ///     id = "north-primary"
    ///     role = "primary"                 # or replica
    ///     dsn_ref = "north"                # the name of a secret, never a connection string
    ///
    ///     [[ranges]]                       # together 0..=4095, without gaps or overlaps
    ///     first = 0
    ///     last = 4095
    ///     shard = 0
    ///     epoch = 1                        # rises by one whenever the range changes hands
    /// "#)?;
    /// assert_eq!(map.shards().len(), 1);
    /// # Ok::<(), pim_core::shard::MapError>(())
    /// ```
    ///
    /// # Errors
    /// [`MapError`] with every finding of severity `error`.
    pub fn parse(text: &str) -> Result<Self, MapError> {
        MapFile::parse(text)?.into_map()
    }

    /// Version 1 of a map over `shards` shards, each with an even run of buckets and endpoints named `shard-N`.
    ///
    /// # Errors
    /// [`MapError`] when `shards` is zero or above [`SHARDS_MAX`].
    pub fn even(shards: u16) -> Result<Self, MapError> {
        if shards == 0 || usize::from(shards) > SHARDS_MAX {
            let message = format!("{shards} shards, 1 to {SHARDS_MAX} are allowed");
            return Err(MapError::one(Finding::error(FindingCode::ShardCount, "/shards", message, "name 1 to 1024")));
        }
        let described = (0..shards).map(|number| Shard {
            id: ShardId(number),
            name: format!("shard-{number}"),
            state: ShardState::Live,
            endpoints: vec![Endpoint {
                id: format!("shard-{number}-primary"),
                role: EndpointRole::Primary,
                dsn_ref: format!("shard-{number}"),
                zone: None,
            }],
        });
        let mut owners = Box::new([ShardId(0); Bucket::COUNT]);
        for (bucket, owner) in owners.iter_mut().enumerate() {
            *owner = ShardId(u16::try_from(bucket * usize::from(shards) / Bucket::COUNT).unwrap_or(0));
        }
        let epochs = Box::new([Epoch(1); Bucket::COUNT]);
        Ok(Self::assembled("pim".to_owned(), MapVersion(1), None, described.collect(), owners, epochs))
    }

    pub(super) fn assembled(
        keyspace: String,
        version: MapVersion,
        parent: Option<MapDigest>,
        shards: Vec<Shard>,
        owners: Box<[ShardId; Bucket::COUNT]>,
        epochs: Box<[Epoch; Bucket::COUNT]>,
    ) -> Self {
        let digest = MapDigest([0; 32]);
        let mut map = Self { keyspace, version, parent, shards, owners, epochs, digest };
        map.digest = MapDigest(Sha256::digest(map.to_toml().as_bytes()).into());
        map
    }

    /// The map as the text of a map file, in its one canonical form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        MapFile::of(self).to_toml()
    }

    /// Where a key lives. Infallible: a map covers the whole key space.
    #[must_use]
    #[inline]
    pub fn route(&self, key: &impl ShardKey) -> Route {
        self.route_bucket(key.bucket())
    }

    #[inline]
    pub(super) fn route_bucket(&self, bucket: Bucket) -> Route {
        let (shard, epoch) = self.owner(bucket);
        Route { bucket, shard, epoch, map_version: self.version }
    }

    /// Owner and epoch of a bucket.
    #[must_use]
    #[inline]
    pub fn owner(&self, bucket: Bucket) -> (ShardId, Epoch) {
        let index = usize::from(bucket.get());
        (self.owners[index], self.epochs[index])
    }

    /// The buckets of one shard, in order, with their epochs.
    pub fn buckets_of(&self, shard: ShardId) -> impl Iterator<Item = (Bucket, Epoch)> + '_ {
        let all = (0..=Bucket::MASK).filter_map(|number| Bucket::new(number).ok());
        all.filter_map(move |bucket| {
            let (owner, epoch) = self.owner(bucket);
            (owner == shard).then_some((bucket, epoch))
        })
    }

    /// The next version, in which `to` owns `buckets`, each with a risen epoch.
    ///
    /// # Errors
    /// [`MapError`] when the result would not be valid, for example when `to` is unknown or takes no buckets.
    pub fn reassign(&self, buckets: impl IntoIterator<Item = Bucket>, to: ShardId) -> Result<Self, MapError> {
        let moved: BTreeSet<_> = buckets.into_iter().collect();
        let mut owners = self.owners.clone();
        let mut epochs = self.epochs.clone();
        for bucket in moved {
            let index = usize::from(bucket.get());
            if owners[index] != to {
                owners[index] = to;
                epochs[index] = epochs[index].risen();
            }
        }
        self.succeeded_by(self.shards.clone(), owners, epochs)
    }

    /// The next version with the same owners and every epoch risen: refuses every router that still holds this one.
    ///
    /// # Errors
    /// [`MapError`] when the result would not be valid.
    pub fn fenced(&self) -> Result<Self, MapError> {
        self.risen(|_| true)
    }

    /// The next version with the same owners and the epochs of one shard's buckets risen, as [`ShardMap::fenced`] does it to
    /// all: numbers of events that the shard gave out before can be told from those that it gives out again.
    ///
    /// ```
    /// use pim_core::shard::{ShardId, ShardMap};
    ///
    /// let map = ShardMap::even(2)?;
    /// let next = map.fenced_on(ShardId(1))?;
    /// let risen: Vec<_> = next.buckets_of(ShardId(1)).filter(|(bucket, epoch)| map.owner(*bucket).1 < *epoch).collect();
    /// assert_eq!(risen.len(), map.buckets_of(ShardId(1)).count());
    /// assert!(next.buckets_of(ShardId(0)).eq(map.buckets_of(ShardId(0))));
    /// # Ok::<(), pim_core::shard::MapError>(())
    /// ```
    ///
    /// # Errors
    /// [`MapError`] when the result would not be valid.
    pub fn fenced_on(&self, shard: ShardId) -> Result<Self, MapError> {
        self.risen(|owner| owner == shard)
    }

    /// The next version with the shards, servers and owners of an earlier map: a way back from this one. What changes hands
    /// again has a risen epoch, and a shard that the earlier map does not know stays, retired.
    ///
    /// A shard that was draining there and gets buckets back is live in this step, since none that drains takes any: what it had
    /// given away is to stay with it until somebody says again that it drains. From there the way back to the same map says it.
    ///
    /// ```
    /// use pim_core::shard::{Bucket, ShardId, ShardMap};
    ///
    /// let (map, bucket) = (ShardMap::even(2)?, Bucket::new(7)?);
    /// let next = map.reassign([bucket], ShardId(1))?;
    /// let back = next.back_to(&map)?;
    /// assert_eq!(back.owner(bucket).0, ShardId(0));
    /// assert!(back.version() > next.version() && back.owner(bucket).1 > next.owner(bucket).1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MapError`] when the result would not be valid.
    pub fn back_to(&self, earlier: &Self) -> Result<Self, MapError> {
        let mut shards = earlier.shards.clone();
        for shard in &self.shards {
            if !shards.iter().any(|known| known.id == shard.id) {
                shards.push(Shard { state: ShardState::Retired, ..shard.clone() });
            }
        }
        shards.sort_by_key(|shard| shard.id);
        for shard in shards.iter_mut().filter(|shard| shard.state == ShardState::Draining) {
            let regains = |(now, then): (&ShardId, &ShardId)| *then == shard.id && now != then;
            if self.owners.iter().zip(earlier.owners.iter()).any(regains) {
                shard.state = ShardState::Live;
            }
        }
        let mut epochs = self.epochs.clone();
        for (bucket, epoch) in epochs.iter_mut().enumerate() {
            if self.owners[bucket] != earlier.owners[bucket] {
                *epoch = epoch.risen();
            }
        }
        self.succeeded_by(shards, earlier.owners.clone(), epochs)
    }

    /// Whether it says the same of every shard, server, owner and epoch, whichever version it is.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.keyspace == other.keyspace
            && self.shards == other.shards
            && self.owners == other.owners
            && self.epochs == other.epochs
    }

    fn risen(&self, rises: impl Fn(ShardId) -> bool) -> Result<Self, MapError> {
        let mut epochs = self.epochs.clone();
        for (epoch, _) in epochs.iter_mut().zip(self.owners.iter()).filter(|(_, owner)| rises(**owner)) {
            *epoch = epoch.risen();
        }
        self.succeeded_by(self.shards.clone(), self.owners.clone(), epochs)
    }

    fn succeeded_by(
        &self,
        shards: Vec<Shard>,
        owners: Box<[ShardId; Bucket::COUNT]>,
        epochs: Box<[Epoch; Bucket::COUNT]>,
    ) -> Result<Self, MapError> {
        let version = MapVersion(self.version.0 + 1);
        let parent = Some(self.digest);
        let next = Self::assembled(self.keyspace.clone(), version, parent, shards, owners, epochs);
        // By way of the file, so that what we make is held to the same rules as what people write.
        let next = MapFile::of(&next).into_map()?;
        self.check_successor(&next, Bucket::COUNT)?;
        Ok(next)
    }

    /// The key space that this map covers.
    #[must_use]
    pub fn keyspace(&self) -> &str {
        &self.keyspace
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> MapVersion {
        self.version
    }

    /// Digest of the map that it succeeds; none for the first.
    #[must_use]
    pub const fn parent(&self) -> Option<MapDigest> {
        self.parent
    }

    /// Digest of its canonical text.
    #[must_use]
    pub const fn digest(&self) -> MapDigest {
        self.digest
    }

    /// Its shards that may own buckets, in order of their numbers: those that are not retired.
    pub fn serving(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter(|shard| shard.state != ShardState::Retired)
    }

    /// All of its shards, in order of their numbers; also those that are retired, of which nothing need be left.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }
}
