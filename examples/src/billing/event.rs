//! What other rooms learn of claims.

use pim_events::DomainEvent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::claim::ClaimState;
use super::money::Money;
use crate::ids::{ClaimId, EncounterId, FacilityId, PatientId};

macro_rules! claim_fact {
    ($(#[$meta:meta])* $name:ident, $type:literal $(, $(#[$fmeta:meta])* $field:ident: $field_type:ty)* $(,)?) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub struct $name {
            /// Which.
            pub claim_id: ClaimId,
            /// Version of the record.
            pub version: u64,
            /// Whose.
            pub patient_id: PatientId,
            /// Where.
            pub facility_id: FacilityId,
            $($(#[$fmeta])* pub $field: $field_type,)*
        }

        impl DomainEvent for $name {
            const TYPE: &'static str = $type;
            const AGGREGATE: &'static str = "claim";

            fn aggregate_id(&self) -> Uuid {
                self.claim_id.uuid()
            }

            fn aggregate_version(&self) -> u64 {
                self.version
            }
        }
    };
}

claim_fact!(
    /// A claim was drafted.
    ClaimDrafted, "claim.drafted",
    /// What for.
    encounter_id: EncounterId,
    /// Sum of its lines.
    total: Money,
);

claim_fact!(
    /// A line was added to a draft.
    LineAdded, "claim.line_added",
    /// What it costs.
    amount: Money,
    /// Sum of the lines now.
    total: Money,
);

claim_fact!(
    /// A claim moved to another state.
    ClaimMoved, "claim.moved",
    /// From which state.
    from: ClaimState,
    /// To which.
    to: ClaimState,
    /// Sum of its lines.
    total: Money,
);

claim_fact!(
    /// Money came in.
    PaymentMade, "claim.paid",
    /// How much.
    amount: Money,
    /// Sum of the payments now.
    paid: Money,
);
