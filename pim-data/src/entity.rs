//! What a row is: a serde struct, the table that it lives in, and who may see it.

mod codec;
mod ddl;
mod declare;
mod decode;
mod member;
mod number;
pub(crate) mod routine;

pub use codec::DecodeError;
pub(crate) use codec::{Stored, digest_of, from_row, json_of, select_list, stored, stored_as, values_of};
pub(crate) use ddl::{STANDARD, all_columns, create_entity, scope_view};
#[doc(hidden)]
pub use declare::__private;
pub use declare::FacilityField;
pub(crate) use routine::{CONTEXT, Calls};

use pim_core::id::{Id, IdKind};
use pim_core::role::ResourceCode;
use pim_core::shard::HomeKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// How a column is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Text; decimals and dates too.
    Text,
    /// A whole number.
    Int,
    /// A boolean.
    Bool,
    /// A UUID or typed id.
    Uuid,
    /// An instant.
    Time,
    /// Any JSON, such as the bounded parts of an aggregate. Its numbers come back as they were written, floats as floats; only the
    /// sign of a negative zero is not kept.
    Json,
}

/// Whether a column's value may stand in the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audited {
    /// As it is: codes, states, numbers, ids.
    Shown,
    /// Masked: names, dates of birth, addresses, notes. The digest of the whole row still covers it.
    Masked,
}

/// One column of an entity: a field of its serde form. Its name is a lower-case identifier that is no keyword of SQL; what every
/// row has is taken (`id`, `home_key`, `bucket`, `facility_id`, `version`, `created_at`, `updated_at`), and so are `n`,
/// `history_seq`, `valid_from`, `valid_to` and what PostgreSQL keeps for itself (`ctid`, `xmin` …).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    kind: ColumnKind,
    audited: Audited,
    nullable: bool,
    unique: bool,
}

impl Column {
    /// A column that must have a value and is masked in the audit trail.
    #[must_use]
    pub const fn new(name: &'static str, kind: ColumnKind) -> Self {
        Self { name, kind, audited: Audited::Masked, nullable: false, unique: false }
    }

    /// Lets the value stand in the audit trail.
    #[must_use]
    pub const fn shown(mut self) -> Self {
        self.audited = Audited::Shown;
        self
    }

    /// Allows no value.
    #[must_use]
    pub const fn nullable(mut self) -> Self {
        self.nullable = true;
        self
    }

    /// Allows each value once in its shard.
    #[must_use]
    pub const fn unique(mut self) -> Self {
        self.unique = true;
        self
    }

    /// The column's name, which is the field's.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// How it is stored.
    #[must_use]
    pub const fn kind(&self) -> ColumnKind {
        self.kind
    }

    /// Whether its value may stand in the audit trail.
    #[must_use]
    pub const fn audited(&self) -> Audited {
        self.audited
    }
}

/// The table of an entity. Beside its columns every table has id, home key, bucket, facility, version and two times.
///
/// Base table `<name>_row`, history `<name>_history`; the bare name is a view that shows what the caller's scope reaches.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Singular noun in lower case that nothing else in its database is called: no table of the infrastructure or of another
    /// crate, and nothing that another entity brings.
    pub name: &'static str,
    /// Field that holds the home key's id; none when the entity is the home key itself.
    pub home_field: Option<&'static str>,
    /// Field that holds the facility, for row-level visibility; none when no facility may see it by itself.
    pub facility_field: Option<&'static str>,
    /// Its own columns; at most [`COLUMNS_MAX`](crate::schema::COLUMNS_MAX).
    pub columns: &'static [Column],
    /// Columns that name rows of other entities, which must exist: (column, entity). Such a row has to be of the same home key:
    /// keys move one by one, and a key whose row another key refers to cannot leave.
    pub references: &'static [(&'static str, &'static str)],
    /// Further indexes, each over these columns.
    pub indexes: &'static [&'static [&'static str]],
}

/// Something with an identity that is stored as one row.
///
/// The serde form must have a field for each column of [`Entity::TABLE`], the home field and the facility field if the table names
/// them, and may have the other standard ones: `id`, `version`, `created_at`, `updated_at`. Any other member is refused when it is
/// saved, for no column would keep it; what is not to be stored is `#[serde(skip)]`.
///
/// [`entity!`](crate::entity!) implements it from a description.
pub trait Entity: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// What its id names.
    type Kind: IdKind;

    /// Where it is stored.
    const TABLE: &'static Table;

    /// What policies call it.
    fn resource() -> ResourceCode;

    /// Its id.
    fn id(&self) -> Id<Self::Kind>;

    /// The key that it lives with: what the home field holds.
    fn home(&self) -> HomeKey;

    /// The facility that it belongs to, if any: what the facility field holds.
    fn facility(&self) -> Option<Uuid>;

    /// Its version; 0 when it is not stored yet.
    fn version(&self) -> u64;
}
