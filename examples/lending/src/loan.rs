//! The words of the library, its one table and its facts.

use pim_core::id::Id;
use pim_core::rbac::{Policy, PolicyError, Reach};
use pim_data::entity::{Column, ColumnKind};
use pim_events::DomainEvent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pim_core::id_kinds! {
    /// Somebody who borrows. The home key: whatever belongs to a member lies on the member's shard.
    Member = "member",
    /// One book in somebody's hands.
    Lending = "loan",
}

pim_core::roles! {
    /// Who may call.
    pub enum Role {
        /// Lends and takes back.
        Librarian = "librarian",
        /// Sees what is in the own hands.
        Reader = "reader",
    }
}

pim_core::actions! {
    /// What may be done.
    pub enum Action {
        /// Looks.
        See = "see": Read,
        /// Lends, or takes back.
        Lend = "lend": Write,
    }
}

pim_core::resources! {
    /// What it may be done to.
    pub enum Resource {
        /// A loan.
        Loan = "loan",
    }
}

/// Who may do what to which rows. What is not said here is denied.
///
/// # Errors
/// [`PolicyError`] when it contradicts itself.
pub fn policy() -> Result<Policy, PolicyError> {
    Policy::builder(1)
        .permit(Role::Librarian, Action::See, Resource::Loan, Reach::All)
        .permit(Role::Librarian, Action::Lend, Resource::Loan, Reach::All)
        .permit(Role::Reader, Action::See, Resource::Loan, Reach::Own)
        .build()
}

/// Where the book is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// With the member.
    Out,
    /// On the shelf again.
    Back,
}

/// A row: the fields of its serde form are the columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    /// Its id, with the bucket of its member inside.
    pub id: Id<Lending>,
    /// Whose it is.
    pub member_id: Id<Member>,
    /// Zero until it is stored.
    pub version: u64,
    /// What somebody reads is nobody's business: masked in the audit trail.
    pub title: String,
    /// Where it is.
    pub state: State,
}

pim_data::entity! {
    impl Entity for Loan {
        kind: Lending,
        resource: Resource::Loan,
        table: "loan",
        home: member_id,
        columns: [Column::new("title", ColumnKind::Text), Column::new("state", ColumnKind::Text).shown()],
        indexes: [&["state"]],
    }
}

/// A fact: a loan is where it was not before.
#[derive(Debug, Serialize, Deserialize)]
pub struct LoanMoved {
    /// Which.
    pub loan: Id<Lending>,
    /// The version that this made.
    pub version: u64,
    /// Where it is now.
    pub state: State,
}

impl DomainEvent for LoanMoved {
    const TYPE: &'static str = "loan.moved";
    const AGGREGATE: &'static str = "loan";

    fn aggregate_id(&self) -> Uuid {
        self.loan.uuid()
    }

    fn aggregate_version(&self) -> u64 {
        self.version
    }
}
