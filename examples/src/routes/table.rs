//! The table itself.

use super::{Access, Class, Route, Upstream};
use crate::policy::LabAction::{Operate, Read, Search, Transition, Write};
use crate::policy::LabResource as On;

macro_rules! route {
    ($method:literal, $template:literal, $action:expr, $resource:expr, $class:expr, $upstream:expr) => {
        Route {
            method: $method,
            template: $template,
            label: concat!($method, " ", $template),
            access: Access::Granted($action, $resource),
            class: $class,
            upstream: $upstream,
        }
    };
}

macro_rules! public {
    ($method:literal, $template:literal, $class:expr, $upstream:expr) => {
        Route {
            method: $method,
            template: $template,
            label: concat!($method, " ", $template),
            access: Access::Public,
            class: $class,
            upstream: $upstream,
        }
    };
}

/// Routes between the lab's own programs: they have a policy like any other, and the gateway does not know them.
pub const INTERNAL: &[Route] = &[route!("GET", "/internal/spans", Read, On::Journey, Class::Read, Upstream::Admin)];

/// Every public route. One that is not here is not served.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    public!("POST", "/v1/dev/token", Class::Read, Upstream::Broker),

    route!("POST", "/v1/patients", Write, On::Patient, Class::Write, Upstream::Patient),
    route!("GET", "/v1/patients", Search, On::Patient, Class::Search, Upstream::Patient),
    route!("GET", "/v1/patients/{patient_id}", Read, On::Patient, Class::Read, Upstream::Patient),
    route!("PATCH", "/v1/patients/{patient_id}", Write, On::Patient, Class::Write, Upstream::Patient),
    route!("POST", "/v1/patients/{patient_id}/transitions", Transition, On::Patient, Class::Write, Upstream::Patient),
    route!("GET", "/v1/patients/{patient_id}/summary", Read, On::Patient, Class::Read, Upstream::Patient),

    route!("POST", "/v1/patients/{patient_id}/appointments", Write, On::Appointment, Class::Write, Upstream::Encounter),
    route!("GET", "/v1/patients/{patient_id}/appointments", Read, On::Appointment, Class::Read, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/appointments/{appointment_id}/transitions", Transition, On::Appointment, Class::Write, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters", Write, On::Encounter, Class::Write, Upstream::Encounter),
    route!("GET", "/v1/patients/{patient_id}/encounters", Read, On::Encounter, Class::Read, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters/{encounter_id}/transitions", Transition, On::Encounter, Class::Write, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters/{encounter_id}/diagnoses", Write, On::Encounter, Class::Write, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters/{encounter_id}/procedures", Write, On::Encounter, Class::Write, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters/{encounter_id}/orders", Write, On::Encounter, Class::Write, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters/{encounter_id}/observations", Write, On::Encounter, Class::Write, Upstream::Encounter),
    route!("POST", "/v1/patients/{patient_id}/encounters/{encounter_id}/notes", Write, On::Encounter, Class::Write, Upstream::Encounter),
    route!("GET", "/v1/encounters/{encounter_id}", Read, On::Encounter, Class::Read, Upstream::Encounter),
    route!("GET", "/v1/patients/{patient_id}/timeline", Read, On::Encounter, Class::Read, Upstream::Encounter),

    route!("GET", "/v1/patients/{patient_id}/claims", Read, On::Claim, Class::Read, Upstream::Billing),
    route!("GET", "/v1/claims/{claim_id}", Read, On::Claim, Class::Read, Upstream::Billing),
    route!("POST", "/v1/patients/{patient_id}/claims/{claim_id}/lines", Write, On::Claim, Class::Write, Upstream::Billing),
    route!("POST", "/v1/patients/{patient_id}/claims/{claim_id}/transitions", Transition, On::Claim, Class::Write, Upstream::Billing),
    route!("POST", "/v1/patients/{patient_id}/claims/{claim_id}/payments", Write, On::Claim, Class::Write, Upstream::Billing),
    route!("GET", "/v1/revenue", Read, On::Revenue, Class::Search, Upstream::Billing),
    route!("POST", "/v1/billing-cycles", Operate, On::BillingCycle, Class::Operate, Upstream::Billing),
    route!("GET", "/v1/billing-cycles", Read, On::BillingCycle, Class::Read, Upstream::Billing),

    route!("GET", "/v1/admin/facilities", Read, On::Facility, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/facilities", Write, On::Facility, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/facilities/{id}", Read, On::Facility, Class::Read, Upstream::Admin),
    route!("PATCH", "/v1/admin/facilities/{id}", Write, On::Facility, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/providers", Read, On::Provider, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/providers", Write, On::Provider, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/providers/{id}", Read, On::Provider, Class::Read, Upstream::Admin),
    route!("PATCH", "/v1/admin/providers/{id}", Write, On::Provider, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/accounts", Read, On::Account, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/accounts", Write, On::Account, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/flags", Read, On::Flag, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/flags", Write, On::Flag, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/audit", Read, On::Audit, Class::Search, Upstream::Admin),
    route!("POST", "/v1/admin/audit/verify", Operate, On::Audit, Class::Sweep, Upstream::Admin),
    route!("POST", "/v1/admin/retention", Operate, On::Audit, Class::Sweep, Upstream::Admin),
    route!("GET", "/v1/admin/backups", Read, On::Backup, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/backups", Operate, On::Backup, Class::Sweep, Upstream::Admin),
    route!("GET", "/v1/admin/shards", Read, On::Shard, Class::Read, Upstream::Admin),
    route!("GET", "/v1/admin/shards/findings", Read, On::Shard, Class::Operate, Upstream::Admin),
    route!("GET", "/v1/admin/shards/map", Read, On::Shard, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/shards/map", Operate, On::Shard, Class::Operate, Upstream::Admin),
    route!("POST", "/v1/admin/shards/map/rollback", Operate, On::Shard, Class::Operate, Upstream::Admin),
    route!("GET", "/v1/admin/shards/moves", Read, On::Shard, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/shards/moves", Operate, On::Shard, Class::Operate, Upstream::Admin),
    route!("POST", "/v1/admin/shards/moves/{id}/reverse", Operate, On::Shard, Class::Operate, Upstream::Admin),
    route!("POST", "/v1/admin/shards/moves/{id}/cancel", Operate, On::Shard, Class::Operate, Upstream::Admin),
    route!("POST", "/v1/admin/shards/{id}/degrade", Operate, On::Shard, Class::Operate, Upstream::Admin),
    route!("POST", "/v1/admin/shards/{id}/accept-loss", Operate, On::Shard, Class::Sweep, Upstream::Admin),
    route!("GET", "/v1/admin/outbox", Read, On::Outbox, Class::Read, Upstream::Admin),
    route!("GET", "/v1/admin/dead-letters", Read, On::DeadLetter, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/dead-letters/{consumer}/{key}/unpark", Operate, On::DeadLetter, Class::Operate, Upstream::Admin),
    route!("POST", "/v1/admin/dead-letters/replay", Operate, On::DeadLetter, Class::Operate, Upstream::Admin),
    route!("GET", "/v1/admin/projections", Read, On::Projection, Class::Read, Upstream::Admin),
    route!("POST", "/v1/admin/projections/{name}/rebuild", Operate, On::Projection, Class::Sweep, Upstream::Admin),
    route!("POST", "/v1/admin/projections/{name}/resume", Operate, On::Projection, Class::Operate, Upstream::Admin),
    route!("GET", "/v1/admin/journeys/{request_id}", Read, On::Journey, Class::Read, Upstream::Admin),
    route!("GET", "/v1/admin/lineage/{entity}/{id}", Read, On::Lineage, Class::Search, Upstream::Admin),
    route!("GET", "/v1/admin/operations", Read, On::Operation, Class::Read, Upstream::Admin),
    route!("GET", "/v1/admin/chaos/flags", Read, On::Chaos, Class::Read, Upstream::Admin),
    route!("PUT", "/v1/admin/chaos/flags/{point}", Operate, On::Chaos, Class::Write, Upstream::Admin),
    route!("DELETE", "/v1/admin/chaos/flags/{point}", Operate, On::Chaos, Class::Write, Upstream::Admin),
    route!("GET", "/v1/admin/runs/summary", Read, On::Outbox, Class::Sweep, Upstream::Admin),
];
