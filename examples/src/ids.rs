//! The kinds of ids that the lab mints; one text form, the bucket of the patient inside.

use pim_core::id::Id;

pim_core::id_kinds! {
    /// A patient: the home key.
    PatientKind = "patient",
    /// An appointment of a patient.
    AppointmentKind = "appointment",
    /// An encounter of a patient.
    EncounterKind = "encounter",
    /// A claim for an encounter.
    ClaimKind = "claim",
    /// A facility, in the control database.
    FacilityKind = "facility",
    /// A provider, in the control database.
    ProviderKind = "provider",
    /// A user account, in the control database.
    AccountKind = "account",
    /// A feature flag, in the control database.
    FlagKind = "flag",
    /// A billing cycle, in the control database.
    BillingCycleKind = "billing_cycle",
    /// The fault of an injection point, in the control database.
    ChaosFlagKind = "chaos_flag",
    /// An operation, in the control database.
    OperationKind = "operation",
    /// Something that is done again and again, in the control database.
    ChoreKind = "chore",
}

/// Id of a patient.
pub type PatientId = Id<PatientKind>;
/// Id of an appointment.
pub type AppointmentId = Id<AppointmentKind>;
/// Id of an encounter.
pub type EncounterId = Id<EncounterKind>;
/// Id of a claim.
pub type ClaimId = Id<ClaimKind>;
/// Id of a facility.
pub type FacilityId = Id<FacilityKind>;
/// Id of a provider.
pub type ProviderId = Id<ProviderKind>;
/// Id of a user account.
pub type AccountId = Id<AccountKind>;
/// Id of a feature flag.
pub type FlagId = Id<FlagKind>;
/// Id of a billing cycle.
pub type BillingCycleId = Id<BillingCycleKind>;
/// Id of the fault of an injection point.
pub type ChaosFlagId = Id<ChaosFlagKind>;
/// Id of an operation.
pub type OperationId = Id<OperationKind>;
/// Id of a chore.
pub type ChoreId = Id<ChoreKind>;
