//! Who may do what in the lab: the one table that gateway and services decide by.

mod matrix;

pub use matrix::matrix;

use std::sync::LazyLock;

use pim_core::rbac::{Policy, Reach};

/// Version of the policy, quoted in every decision.
pub const POLICY_VERSION: u32 = 1;

pim_core::roles! {
    /// Who may call.
    pub enum LabRole {
        /// Reads their own record.
        Patient = "patient",
        /// Works with the patients of their facilities.
        Clinician = "clinician",
        /// Works through application procedures.
        Admin = "admin",
        /// Operates the platform.
        Sre = "sre",
        /// One of our own programs; no person has it.
        Service = "service",
    }
}

pim_core::actions! {
    /// What may be done.
    pub enum LabAction {
        /// Looks at one thing or the things of one patient.
        Read = "read": Read,
        /// Looks for things across patients.
        Search = "search": Read,
        /// Creates or changes.
        Write = "write": Write,
        /// Moves a record through its states.
        Transition = "transition": Write,
        /// Operates the platform: publishes, unparks, rebuilds, verifies, injects.
        Operate = "operate": Write,
    }
}

pim_core::resources! {
    /// What it may be done to.
    pub enum LabResource {
        /// Patients.
        Patient = "patient",
        /// Appointments.
        Appointment = "appointment",
        /// Encounters.
        Encounter = "encounter",
        /// Claims.
        Claim = "claim",
        /// Revenue by facility and day.
        Revenue = "revenue",
        /// Billing cycles.
        BillingCycle = "billing_cycle",
        /// Facilities.
        Facility = "facility",
        /// Providers.
        Provider = "provider",
        /// User accounts, as reference data.
        Account = "account",
        /// Feature flags, as reference data.
        Flag = "flag",
        /// The audit trail.
        Audit = "audit",
        /// Shards and their map.
        Shard = "shard",
        /// The outbox.
        Outbox = "outbox",
        /// Dead letters.
        DeadLetter = "dead_letter",
        /// Projections.
        Projection = "projection",
        /// The journey of a request.
        Journey = "journey",
        /// How an entity came to be what it is.
        Lineage = "lineage",
        /// Operations: what was done by whom, and what came of it.
        Operation = "operation",
        /// Fault injection.
        Chaos = "chaos",
        /// Backups: whoever has one has everything, keys included.
        Backup = "backup",
    }
}

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "a constant table, covered by a test; there is nothing to serve without it")]
    build().expect("the lab's policy does not contradict itself")
});

/// The lab's policy.
#[must_use]
pub fn lab_policy() -> &'static Policy {
    &POLICY
}

fn build() -> Result<Policy, pim_core::rbac::PolicyError> {
    use LabAction::{Operate, Read, Search, Transition, Write};
    use LabResource as On;
    use LabRole::{Admin, Clinician, Patient, Service, Sre};

    let mut policy = Policy::builder(POLICY_VERSION);
    for resource in [On::Patient, On::Appointment, On::Encounter, On::Claim] {
        policy = policy
            .permit(Patient, Read, resource, Reach::Own)
            .permit(Clinician, Read, resource, Reach::SameFacility)
            .permit(Sre, Read, resource, Reach::All)
            .permit(Admin, Read, resource, Reach::All);
    }
    for resource in [On::Patient, On::Appointment, On::Encounter] {
        policy = policy.permit(Clinician, Write, resource, Reach::SameFacility).permit(
            Clinician,
            Transition,
            resource,
            Reach::SameFacility,
        );
    }
    policy = policy
        .permit(Patient, Write, On::Appointment, Reach::Own)
        .permit(Clinician, Search, On::Patient, Reach::SameFacility)
        .permit(Sre, Search, On::Patient, Reach::All)
        .permit(Admin, Write, On::Claim, Reach::All)
        .permit(Admin, Transition, On::Claim, Reach::All)
        .permit(Admin, Read, On::Revenue, Reach::All)
        .permit(Admin, Operate, On::BillingCycle, Reach::All);
    for resource in [On::Facility, On::Provider] {
        policy = policy.permit(Clinician, Read, resource, Reach::All).permit(Patient, Read, resource, Reach::All);
    }
    for resource in [On::Facility, On::Provider, On::Account, On::Flag] {
        policy = policy.permit(Admin, Read, resource, Reach::All).permit(Admin, Write, resource, Reach::All);
        policy = policy.permit(Sre, Read, resource, Reach::All);
    }
    policy = policy.permit(Admin, Read, On::BillingCycle, Reach::All).permit(Admin, Read, On::Audit, Reach::All);
    for resource in [On::Audit, On::Shard, On::Outbox, On::DeadLetter, On::Projection, On::Chaos, On::Backup] {
        policy = policy.permit(Sre, Read, resource, Reach::All).permit(Sre, Operate, resource, Reach::All);
    }
    for resource in [On::Journey, On::Lineage, On::Revenue, On::BillingCycle, On::Operation] {
        policy = policy.permit(Sre, Read, resource, Reach::All);
    }
    policy.permit(Service, Write, On::Claim, Reach::All).permit(Service, Transition, On::Claim, Reach::All).build()
}
