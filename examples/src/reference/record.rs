//! The records. Each is a home key of its own.

use pim_data::entity::{Column, ColumnKind};
use pim_events::DomainEvent;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ids::{
    AccountId, AccountKind, FacilityId, FacilityKind, FlagId, FlagKind, PatientId, ProviderId, ProviderKind,
};
use crate::policy::LabResource;

macro_rules! reference {
    (
        $(#[$meta:meta])* $name:ident, $table:literal, $resource:ident, $id:ty, $kind:ty,
        [$($column:expr),+ $(,)?] $(, $(#[$fmeta:meta])* $field:ident: $field_type:ty)+ $(,)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name {
            /// Its id.
            #[schema(value_type = String, format = "uuid")]
            pub id: $id,
            /// Rises by one with each change.
            pub version: u64,
            $($(#[$fmeta])* pub $field: $field_type,)+
        }

        pim_data::entity! {
            impl Entity for $name {
                kind: $kind,
                resource: LabResource::$resource,
                table: $table,
                home: id,
                columns: [$($column),+],
            }
        }
    };
}

reference!(
    /// A place of care.
    Facility, "facility", Facility, FacilityId, FacilityKind,
    [
        Column::new("name", ColumnKind::Text).shown(),
        Column::new("state_code", ColumnKind::Text).shown(),
        Column::new("active", ColumnKind::Bool).shown(),
    ],
    /// Its name.
    name: String,
    /// Two letters.
    state_code: String,
    /// Whether it takes patients.
    active: bool,
);

reference!(
    /// Somebody who cares for patients.
    Provider, "provider", Provider, ProviderId, ProviderKind,
    [
        Column::new("facility_id_of", ColumnKind::Uuid).shown(),
        Column::new("name", ColumnKind::Text),
        Column::new("specialty", ColumnKind::Text).shown(),
        Column::new("active", ColumnKind::Bool).shown(),
    ],
    /// Where they work.
    #[schema(value_type = String, format = "uuid")]
    facility_id_of: FacilityId,
    /// Their name.
    name: String,
    /// What they do.
    specialty: String,
    /// Whether they see patients.
    active: bool,
);

reference!(
    /// Somebody who works with the lab, as it keeps and audits them. Reference data alone: the identity provider says who may sign
    /// in, in which role and where, and nothing of the lab asks an account.
    Account, "account", Account, AccountId, AccountKind,
    [
        Column::new("subject", ColumnKind::Text).shown().unique(),
        Column::new("role", ColumnKind::Text).shown(),
        Column::new("facilities", ColumnKind::Json).shown(),
        Column::new("patient", ColumnKind::Uuid).shown().nullable(),
        Column::new("active", ColumnKind::Bool).shown(),
    ],
    /// What the identity provider calls them.
    subject: String,
    /// Their role.
    role: String,
    /// Facilities of affiliation, at most 16.
    #[schema(value_type = Vec<String>)]
    facilities: Vec<FacilityId>,
    /// Their own record.
    #[schema(value_type = Option<String>, format = "uuid")]
    patient: Option<PatientId>,
    /// Whether they work with it still; it ends no session.
    active: bool,
);

reference!(
    /// A switch that somebody has agreed on, as the lab keeps and audits it. Reference data alone: nothing of the lab asks it, and
    /// faults have switches of their own.
    Flag, "flag", Flag, FlagId, FlagKind,
    [
        Column::new("name", ColumnKind::Text).shown().unique(),
        Column::new("enabled", ColumnKind::Bool).shown(),
    ],
    /// What it is about.
    name: String,
    /// Whether it is on.
    enabled: bool,
);

/// A row of reference data changed; caches of it are told by this.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReferenceChanged {
    /// Which table.
    pub table: String,
    /// Which row.
    pub id: Uuid,
    /// Its version now.
    pub version: u64,
}

impl DomainEvent for ReferenceChanged {
    const TYPE: &'static str = "reference.changed";
    const AGGREGATE: &'static str = "reference";

    fn aggregate_id(&self) -> Uuid {
        self.id
    }

    fn aggregate_version(&self) -> u64 {
        self.version
    }
}
