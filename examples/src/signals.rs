//! What the lab tells of itself, and the hub that every program of it tells to.

use std::sync::Arc;

use pim_core::clock::Clock;
use pim_core::signal::{
    Catalog, Descriptor, Kind, LATENCY_SECONDS, LabelDescriptor, Purpose, SignalError, SignalRegistry,
};
use pim_data::signals::DataSignals;
use pim_events::signals::EventSignals;
use pim_telemetry::exposition::{self, Format};
use pim_telemetry::observe::{HttpSignals, ObserveLayer, Observer};
use pim_telemetry::process::ProcessSignals;
use pim_telemetry::trace::TraceStore;
use pim_telemetry::{LogSettings, LogWriter, Telemetry, TelemetryGuard};

use crate::chaos::Chaos;
use crate::jobs::{CHORE_OVERDUE, CHORE_RUNS, ChoreSignals, SWEPT_RECORDS};
use crate::rig::{REFUSED_HEADS, RefusedHeads};
use crate::routes::{ROUTE_LABELS, RouteLabel};

const ROUTE: LabelDescriptor = LabelDescriptor { name: "route", values: ROUTE_LABELS };
const SHARD: LabelDescriptor =
    LabelDescriptor { name: "shard", values: &["0", "1", "2", "3", "4", "5", "6", "7", "above"] };
const OUTCOME: LabelDescriptor =
    LabelDescriptor { name: "outcome", values: &["success", "refused", "failed", "cancelled"] };

macro_rules! requests {
    ($name:literal, $by:ident, $help:literal) => {
        Descriptor {
            name: $name,
            kind: Kind::Counter,
            unit: "",
            help: $help,
            labels: &[$by, OUTCOME],
            purpose: Purpose::Red,
            buckets: &[],
            owner: "pim-lab",
            runbook: "",
        }
    };
}

macro_rules! seconds {
    ($name:literal, $by:ident, $help:literal) => {
        Descriptor {
            name: $name,
            kind: Kind::Histogram,
            unit: "seconds",
            help: $help,
            labels: &[$by],
            purpose: Purpose::Slo,
            buckets: LATENCY_SECONDS,
            owner: "pim-lab",
            runbook: "",
        }
    };
}

/// Requests at the gateway.
pub const EDGE_REQUESTS: Descriptor =
    requests!("pim_edge_requests", ROUTE, "Requests at the gateway, by route and outcome");
/// How long they took.
pub const EDGE_SECONDS: Descriptor =
    seconds!("pim_edge_request_seconds", ROUTE, "Time of requests at the gateway, by route");
/// Requests at services.
pub const SERVICE_REQUESTS: Descriptor =
    requests!("pim_service_requests", ROUTE, "Requests at services, by route and outcome");
/// How long they took.
pub const SERVICE_SECONDS: Descriptor =
    seconds!("pim_service_request_seconds", ROUTE, "Time of requests at services, by route");
/// Requests at services by the shard that they went to.
pub const SHARD_REQUESTS: Descriptor =
    requests!("pim_service_shard_requests", SHARD, "Requests at services, by shard and outcome");
/// How long they took.
pub const SHARD_SECONDS: Descriptor =
    seconds!("pim_service_shard_request_seconds", SHARD, "Time of requests at services, by shard");

/// The signals of this crate.
pub const CATALOG: Catalog = Catalog {
    owner: "pim-lab",
    descriptors: &[
        &EDGE_REQUESTS,
        &EDGE_SECONDS,
        &SERVICE_REQUESTS,
        &SERVICE_SECONDS,
        &SHARD_REQUESTS,
        &SHARD_SECONDS,
        &REFUSED_HEADS,
        &CHORE_RUNS,
        &CHORE_OVERDUE,
        &SWEPT_RECORDS,
    ],
};

/// Every catalog that a program of the lab emits from.
pub const CATALOGS: &[&Catalog] =
    &[&CATALOG, &pim_data::signals::CATALOG, &pim_events::signals::CATALOG, &pim_telemetry::process::CATALOG];

/// Installs telemetry for a program: log lines to standard error, and the hub for everything else.
///
/// # Errors
/// When telemetry is installed already.
pub fn install(service: &'static str, logs: LogSettings, access_lines: bool) -> anyhow::Result<(TelemetryGuard, Hub)> {
    let guard = Telemetry::builder(service).logs(logs).install()?;
    let hub = Hub::new(access_lines.then(|| guard.writer()))?;
    Ok((guard, hub))
}

/// Spans that a process keeps: five megabytes when it is full.
const SPANS_MAX: usize = 25_000;

/// What every program, and every part of the composed lab, tells to. Clones share it.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: SignalRegistry,
    edge: HttpSignals<RouteLabel>,
    service: HttpSignals<RouteLabel>,
    heads: RefusedHeads,
    data: DataSignals,
    events: EventSignals,
    process: ProcessSignals,
    chores: ChoreSignals,
    traces: TraceStore,
    chaos: Chaos,
    lines: Option<LogWriter>,
}

impl Hub {
    /// Binds every signal; each series is there from now on, at zero. Access lines go to `lines`, when there is one.
    ///
    /// # Errors
    /// [`SignalError`] when a descriptor does not fit its labels; a test keeps that from happening.
    pub fn new(lines: Option<LogWriter>) -> Result<Self, SignalError> {
        let mut registry = SignalRegistry::new();
        let edge = HttpSignals::bind(&mut registry, &EDGE_REQUESTS, &EDGE_SECONDS)?;
        let service = HttpSignals::bind(&mut registry, &SERVICE_REQUESTS, &SERVICE_SECONDS)?;
        let service = service.by_shard(&mut registry, &SHARD_REQUESTS, &SHARD_SECONDS)?;
        let heads = RefusedHeads::bind(&mut registry)?;
        let data = DataSignals::bind(&mut registry)?;
        let events = EventSignals::bind(&mut registry)?;
        let process = ProcessSignals::bind(&mut registry)?;
        let chores = ChoreSignals::bind(&mut registry)?;
        let traces = TraceStore::new(SPANS_MAX);
        let chaos = Chaos::new(Clock::system());
        Ok(Self(Arc::new(Inner {
            registry,
            edge,
            service,
            heads,
            data,
            events,
            process,
            chores,
            traces,
            chaos,
            lines,
        })))
    }

    /// What `/metrics` shows, in one form.
    #[must_use]
    pub fn exposition(&self, format: Format) -> String {
        self.0.process.read();
        exposition::render(&self.0.registry, format, &self.0.traces)
    }

    /// What a listener tells of heads that nobody could read.
    #[must_use]
    pub fn heads(&self) -> RefusedHeads {
        self.0.heads.clone()
    }

    /// Handles for the shards.
    #[must_use]
    pub fn data(&self) -> DataSignals {
        self.0.data.clone()
    }

    /// Handles for relay, consumers and what watches them.
    #[must_use]
    pub fn events(&self) -> EventSignals {
        self.0.events.clone()
    }

    /// Handles for chores.
    #[must_use]
    pub fn chores(&self) -> ChoreSignals {
        self.0.chores.clone()
    }

    /// The spans that were kept.
    #[must_use]
    pub fn traces(&self) -> &TraceStore {
        &self.0.traces
    }

    /// Faults on purpose.
    #[must_use]
    pub fn chaos(&self) -> &Chaos {
        &self.0.chaos
    }

    /// Observes the gateway.
    #[must_use]
    pub fn at_the_edge(&self, service: &'static str) -> ObserveLayer<RouteLabel> {
        self.layer(service, &self.0.edge)
    }

    /// Observes a service.
    #[must_use]
    pub fn at_a_service(&self, service: &'static str) -> ObserveLayer<RouteLabel> {
        self.layer(service, &self.0.service)
    }

    fn layer(&self, service: &'static str, signals: &HttpSignals<RouteLabel>) -> ObserveLayer<RouteLabel> {
        let (traces, lines) = (&self.0.traces, self.0.lines.clone());
        ObserveLayer::new(Observer::new(service, signals.clone(), traces, lines, RouteLabel::of))
    }
}
