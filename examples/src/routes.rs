//! Every public route, with its policy, its upstream and its bounds: what gateway and services are both built from.

mod label;
mod table;

pub use label::{ROUTE_LABELS, RouteLabel};
pub use table::{INTERNAL, ROUTES};

use std::time::Duration;

use http::Method;

use crate::policy::{LabAction, LabResource};

/// One of the programs behind the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Upstream {
    /// Sessions and tokens.
    Broker,
    /// Patients.
    Patient,
    /// Appointments and encounters.
    Encounter,
    /// Claims and revenue.
    Billing,
    /// Reference data and operations.
    Admin,
}

impl Upstream {
    /// Every upstream, in order.
    pub const ALL: [Self; 5] = [Self::Broker, Self::Patient, Self::Encounter, Self::Billing, Self::Admin];

    /// The program's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broker => "session-broker",
            Self::Patient => "patient-service",
            Self::Encounter => "encounter-service",
            Self::Billing => "billing-service",
            Self::Admin => "admin-service",
        }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody; the upstream decides by other means.
    Public,
    /// Whom the policy grants this.
    Granted(LabAction, LabResource),
}

/// What a route costs and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A read of one thing.
    Read,
    /// A search or list across things.
    Search,
    /// A write.
    Write,
    /// An operation, which may take long.
    Operate,
    /// An operation that takes as long as there is data: it reads or copies all of something.
    Sweep,
}

impl Class {
    /// Every class, in order.
    pub const ALL: [Self; 5] = [Self::Read, Self::Search, Self::Write, Self::Operate, Self::Sweep];

    /// How long it may take.
    #[must_use]
    pub const fn timeout(self) -> Duration {
        match self {
            Self::Read => Duration::from_secs(2),
            Self::Search | Self::Write => Duration::from_secs(5),
            Self::Operate => Duration::from_secs(30),
            Self::Sweep => Duration::from_secs(600),
        }
    }

    /// How many calls of the rate limit it costs.
    #[must_use]
    pub const fn cost(self) -> u32 {
        match self {
            Self::Read => 1,
            Self::Search | Self::Write => 2,
            Self::Operate => 5,
            Self::Sweep => 10,
        }
    }
}

/// One public route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// HTTP method, upper case.
    pub method: &'static str,
    /// Path with `{names}`.
    pub template: &'static str,
    /// Method and path, as signals show them.
    pub label: &'static str,
    /// Who may use it.
    pub access: Access,
    /// Cost and time.
    pub class: Class,
    /// Who serves it.
    pub upstream: Upstream,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub enum Match {
    /// A route.
    Found(&'static Route),
    /// A path that knows other methods.
    OtherMethods(&'static str),
    /// Nothing.
    Unknown,
}

/// Finds the route of a request by its canonical path.
#[must_use]
pub fn find(method: &Method, path: &str) -> Match {
    let mut fitting = ROUTES.iter().filter(|route| fits(route.template, path)).peekable();
    let Some(first) = fitting.peek() else { return Match::Unknown };
    // A literal segment beats a name, so that `/v1/admin/audit/verify` is not an entity.
    let literal = first.template.split('/').filter(|part| !part.starts_with('{')).count();
    let best =
        fitting.filter(|route| route.template.split('/').filter(|part| !part.starts_with('{')).count() >= literal);
    let best: Vec<_> = best.collect();
    match best.iter().find(|route| route.method == method.as_str()) {
        Some(route) => Match::Found(route),
        None => Match::OtherMethods(allowed(best[0].template)),
    }
}

/// The route that a service serves under a method and template, public or internal.
#[must_use]
pub fn of_template(method: &Method, template: &str) -> Option<&'static Route> {
    let is_it = |route: &&Route| route.method == method.as_str() && route.template == template;
    ROUTES.iter().chain(INTERNAL).find(is_it)
}

fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(name), Some(part)) if name.starts_with('{') && !part.is_empty() => {}
            (Some(literal), Some(part)) if literal == part => {}
            _ => return false,
        }
    }
}

fn allowed(template: &str) -> &'static str {
    let has = |method: &str| ROUTES.iter().any(|route| route.template == template && route.method == method);
    match (has("GET"), has("POST"), has("PATCH"), has("PUT"), has("DELETE")) {
        (true, true, ..) => "GET, POST",
        (true, _, true, ..) => "GET, PATCH",
        (true, _, _, true, true) => "GET, PUT, DELETE",
        (true, ..) => "GET",
        (_, true, ..) => "POST",
        (_, _, _, true, true) => "PUT, DELETE",
        (_, _, _, true, _) => "PUT",
        _ => "DELETE",
    }
}
