//! Claims and payments, and the command that drafts a claim when an encounter is completed.

mod claim;
mod drafting;
mod event;
mod http;
mod money;

pub use claim::{Claim, ClaimState, ENTRIES_MAX, Line, Payment, PaymentMethod};
pub use drafting::DraftClaim;
pub(crate) use drafting::lines_of;
pub use event::{ClaimDrafted, ClaimMoved, LineAdded, PaymentMade};
pub use http::SERVICE;
pub use money::{Currency, Money};
