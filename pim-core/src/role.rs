//! Closed vocabularies: the embedding program's own roles, actions and resources, erased to a code and a static name.

use std::fmt;

/// A closed enum whose members have a small code and a static name.
///
/// Made by [`roles!`](crate::roles), [`actions!`](crate::actions), [`resources!`](crate::resources) or
/// [`closed_enum!`](crate::closed_enum), never by hand.
pub trait ClosedEnum: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// Every member, in order of declaration; the position is the code.
    const ALL: &'static [Self];

    /// Position in [`ClosedEnum::ALL`].
    fn code(self) -> u8;

    /// The stable text form.
    fn name(self) -> &'static str;

    /// The member called `name`, if there is one.
    #[must_use]
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|member| member.name() == name)
    }
}

/// An enum of roles; at most 64 of them.
pub trait Role: ClosedEnum {}
/// An enum of actions, each of which either reads or writes.
pub trait Action: ClosedEnum {
    /// Whether the action changes anything.
    fn access(self) -> Access;
}
/// An enum of resources, the things that policies speak of.
pub trait Resource: ClosedEnum {}

/// Whether an action only looks or also changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Looks only.
    Read,
    /// Changes state.
    Write,
}

macro_rules! erased {
    ($(#[$meta:meta])* $name:ident from $bound:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            code: u8,
            name: &'static str,
        }

        impl $name {
            /// Erases a member of the embedding program's enum.
            pub fn of<T: $bound>(member: T) -> Self {
                Self { code: member.code(), name: member.name() }
            }

            /// Position in the declaring enum.
            #[must_use]
            pub const fn code(self) -> u8 {
                self.code
            }

            /// The stable text form.
            #[must_use]
            pub const fn name(self) -> &'static str {
                self.name
            }
        }

        impl<T: $bound> From<T> for $name {
            fn from(member: T) -> Self {
                Self::of(member)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name)
            }
        }
    };
}

erased!(
    /// A role without its enum, so that contexts need no type parameter.
    RoleCode from Role
);
erased!(
    /// An action without its enum.
    ActionCode from Action
);
erased!(
    /// A resource without its enum.
    ResourceCode from Resource
);

/// Declares a closed enum: `closed_enum! { /// doc  pub enum Name { /// doc  Variant = "name", } }`.
#[macro_export]
macro_rules! closed_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $($(#[$vmeta])* $variant),+ }

        impl $crate::role::ClosedEnum for $name {
            const ALL: &'static [Self] = {
                let all: &'static [Self] = &[$(Self::$variant),+];
                assert!(all.len() <= 256, "a closed enum has 256 members at most: its codes are bytes");
                all
            };

            fn code(self) -> u8 {
                self as u8
            }

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

/// Declares the program's roles.
///
/// ```
/// pim_core::roles! {
///     /// Who may call.
///     pub enum ShopRole {
///         /// Buys.
///         Customer = "customer",
///         /// Sells.
///         Clerk = "clerk",
///     }
/// }
/// use pim_core::role::{ClosedEnum, RoleCode};
/// assert_eq!(ShopRole::from_name("clerk"), Some(ShopRole::Clerk));
/// assert_eq!(RoleCode::of(ShopRole::Clerk).name(), "clerk");
/// ```
#[macro_export]
macro_rules! roles {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($body:tt)+ }) => {
        $crate::closed_enum! { $(#[$meta])* $vis enum $name { $($body)+ } }
        impl $crate::role::Role for $name {}
    };
}

/// Declares the program's resources; the form is that of [`roles!`](crate::roles).
#[macro_export]
macro_rules! resources {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($body:tt)+ }) => {
        $crate::closed_enum! { $(#[$meta])* $vis enum $name { $($body)+ } }
        impl $crate::role::Resource for $name {}
    };
}

/// Declares the program's actions, each with its access.
///
/// ```
/// pim_core::actions! {
///     /// What may be done.
///     pub enum ShopAction {
///         /// Looks.
///         Look = "look": Read,
///         /// Buys.
///         Buy = "buy": Write,
///     }
/// }
/// use pim_core::role::{Access, Action};
/// assert_eq!(ShopAction::Buy.access(), Access::Write);
/// ```
#[macro_export]
macro_rules! actions {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$vmeta:meta])* $variant:ident = $text:literal : $access:ident),+ $(,)?
    }) => {
        $crate::closed_enum! { $(#[$meta])* $vis enum $name { $($(#[$vmeta])* $variant = $text),+ } }
        impl $crate::role::Action for $name {
            fn access(self) -> $crate::role::Access {
                match self { $(Self::$variant => $crate::role::Access::$access),+ }
            }
        }
    };
}
