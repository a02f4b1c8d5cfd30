//! Entities from their description: each field is named once, so that table and struct cannot say different things of it.

use pim_core::id::Id;
use uuid::Uuid;

/// What the field of a row's facility may hold: an id, a bare UUID, or none of either.
pub trait FacilityField {
    /// The facility of a row that holds this, if it is of any.
    fn facility(&self) -> Option<Uuid>;
}

impl FacilityField for Uuid {
    fn facility(&self) -> Option<Uuid> {
        Some(*self)
    }
}

impl<K> FacilityField for Id<K> {
    fn facility(&self) -> Option<Uuid> {
        Some(self.uuid())
    }
}

impl<F: FacilityField> FacilityField for Option<F> {
    fn facility(&self) -> Option<Uuid> {
        self.as_ref().and_then(F::facility)
    }
}

// What the macro names; not for others.
#[doc(hidden)]
pub mod __private {
    pub use pim_core::id::Id;
    pub use pim_core::role::ResourceCode;
    pub use pim_core::shard::HomeKey;
    pub use uuid::Uuid;
}

/// Implements [`Entity`](crate::entity::Entity) for a struct with the fields `id` and `version`.
///
/// - `kind`: what its id names; `resource`: what policies call it; `table`: what it is called in the database.
/// - `home`: the field with the id of the key that it lives with, or `id` where it is that key itself.
/// - `facility`, if it belongs to one: the field that says to which, a [`FacilityField`]. Without it nobody sees a row by
///   their facility.
/// - `columns`, and where there are any, `references` and `indexes`: as in [`Table`](crate::entity::Table).
///
/// `home` and `facility` are fields by their serde names too; whoever renames them implements the trait by hand.
///
/// ```
/// use pim_core::id::Id;
/// use pim_data::entity::{Column, ColumnKind, Entity as _};
/// use serde::{Deserialize, Serialize};
///
/// pim_core::id_kinds! { /** A member. */ Member = "member", /** A loan. */ Lending = "loan", /** A branch. */ Branch = "branch" }
/// pim_core::resources! { pub enum Resource { Loan = "loan" } }
///
/// #[derive(Clone, Serialize, Deserialize)]
/// struct Loan {
///     id: Id<Lending>,
///     version: u64,
///     member_id: Id<Member>,
///     branch_id: Option<Id<Branch>>,
///     title: String,
///     state: String,
/// }
///
/// pim_data::entity! {
///     impl Entity for Loan {
///         kind: Lending,
///         resource: Resource::Loan,
///         table: "loan",
///         home: member_id,
///         facility: branch_id,
///         // What is not `shown` stays masked in the audit trail.
///         columns: [Column::new("title", ColumnKind::Text), Column::new("state", ColumnKind::Text).shown()],
///         indexes: [&["state"]],
///     }
/// }
///
/// assert_eq!(Loan::TABLE.home_field, Some("member_id"));
/// assert_eq!(Loan::TABLE.facility_field, Some("branch_id"));
/// ```
#[macro_export]
macro_rules! entity {
    (impl Entity for $entity:ty {
        kind: $kind:ty,
        resource: $resource:expr,
        table: $table:literal,
        home: $home:ident,
        $(facility: $facility:ident,)?
        columns: [$($column:expr),* $(,)?]
        $(, references: [$($reference:expr),* $(,)?])?
        $(, indexes: [$($index:expr),* $(,)?])?
        $(,)?
    }) => {
        impl $crate::entity::Entity for $entity {
            type Kind = $kind;

            const TABLE: &'static $crate::entity::Table = &$crate::entity::Table {
                name: $table,
                home_field: $crate::entity!(@other_than_id $home),
                facility_field: $crate::entity!(@first $(::core::option::Option::Some(::core::stringify!($facility)),)?
                    ::core::option::Option::None),
                columns: &[$($column),*],
                references: &[$($($reference),*)?],
                indexes: &[$($($index),*)?],
            };

            fn resource() -> $crate::entity::__private::ResourceCode {
                $crate::entity::__private::ResourceCode::of($resource)
            }

            fn id(&self) -> $crate::entity::__private::Id<$kind> {
                self.id
            }

            fn home(&self) -> $crate::entity::__private::HomeKey {
                self.$home.into()
            }

            fn facility(&self) -> ::core::option::Option<$crate::entity::__private::Uuid> {
                $crate::entity!(@first $($crate::entity::FacilityField::facility(&self.$facility),)?
                    ::core::option::Option::None)
            }

            fn version(&self) -> u64 {
                self.version
            }
        }
    };
    (@other_than_id id) => { ::core::option::Option::None };
    (@other_than_id $field:ident) => { ::core::option::Option::Some(::core::stringify!($field)) };
    (@first $first:expr $(, $other:expr)?) => { $first };
}
