//! Every program of the lab in one process, over real loopback HTTP: the same parts, composed.

mod settle;

pub use settle::{Settled, backlog, settle, settle_until};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use pim_core::clock::Clock;
use pim_data::cluster::Access;
use pim_events::RetentionSettings;
use tokio::task::JoinSet;

use crate::broker::{Broker, BrokerSettings, KEY_ROTATION, Profile, gateway_secret};
use crate::chaos;
use crate::gateway::{Gateway, GatewaySettings};
use crate::jobs::UpkeepSettings;
use crate::rig::{Bound, Drain, HttpKeys, PostgresSettings, ServeSettings, bind, sessions};
use crate::routes::Upstream;
use crate::signals::Hub;
use crate::workers::{Place, Stores};
use crate::{admin, billing, encounter, patient};

/// How the whole lab is set up.
#[derive(Clone, Debug)]
pub struct LabSettings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the gateway listens; the others take free ports.
    pub listen: SocketAddr,
    /// How many shards a new data directory gets; none opens an existing one as it is.
    pub shards: Option<u16>,
    /// The servers that rows are kept on instead of files.
    pub postgres: PostgresSettings,
    /// Most requests at once.
    pub in_flight_max: usize,
    /// Calls a second of one persona.
    pub persona_calls_per_second: u32,
    /// How often chores are done.
    pub upkeep: UpkeepSettings,
    /// What the lab tells of itself.
    pub hub: Hub,
}

/// The lab, running.
#[derive(Debug)]
pub struct Lab {
    /// Its stores, for seeding and for computing summaries.
    pub stores: Stores,
    /// Base URL of the gateway.
    pub gateway: String,
    /// Base URLs of every program, by name.
    pub programs: BTreeMap<&'static str, String>,
    edge: Drain,
    services: Drain,
    workers: Drain,
    front: JoinSet<()>,
    serving: JoinSet<()>,
    working: JoinSet<()>,
}

/// Longest pause of workers that are woken by commits of their own process anyway.
const PAUSE_MAX_MS: u64 = 1000;
/// Calls a second from one network: everything comes from loopback here.
const ADDRESS_CALLS_PER_SECOND: u32 = 1_000_000;

impl Lab {
    /// Takes the ports, opens the stores and starts every part.
    ///
    /// # Errors
    /// When a port or a store cannot be had; the error says what to do.
    pub async fn start(settings: LabSettings) -> anyhow::Result<Self> {
        Self::start_filled(settings, |_| std::future::ready(Ok(()))).await.map(|(lab, ())| lab)
    }

    /// The same, with something to be done to the stores before any part runs, such as filling them.
    ///
    /// # Errors
    /// When a port or a store cannot be had, or of what is to be done.
    pub async fn start_filled<T, Fut: Future<Output = anyhow::Result<T>>>(
        settings: LabSettings,
        fill: impl FnOnce(Stores) -> Fut,
    ) -> anyhow::Result<(Self, T)> {
        // The port first: a second lab must not touch the data directory of the first.
        let front = bind(ServeSettings::at(settings.listen)).await?;
        let clock = Clock::system();
        let place = Place { data_dir: &settings.data_dir, shards: settings.shards, postgres: &settings.postgres };
        // Files are this process's alone. Servers have a fence for each router, so an operator's program may work beside it.
        let access = if settings.postgres.shard_map.is_some() { Access::Shared } else { Access::Exclusive };
        let stores = Stores::open_at(place, access, clock.clone(), &settings.hub).await?;
        let filled = fill(stores.clone()).await?;
        let mut lab = Self {
            gateway: front.url(),
            stores,
            programs: BTreeMap::new(),
            edge: Drain::new(),
            services: Drain::new(),
            workers: Drain::new(),
            front: JoinSet::new(),
            serving: JoinSet::new(),
            working: JoinSet::new(),
        };
        lab.working.spawn(lab.stores.reference_followed(lab.workers.clone()).await?);
        let broker = lab.start_broker(&settings, &clock).await?;
        let upstreams = lab.start_services(&broker, &clock).await?;
        lab.start_workers(&settings.upkeep).await?;
        // One look is enough: every part of this process shares its leases.
        lab.working.spawn(chaos::watch(lab.stores.cluster.clone(), settings.hub.clone(), lab.workers.begun()));
        let gateway = Gateway::new(GatewaySettings {
            broker: broker.clone(),
            secret: gateway_secret(&settings.data_dir)?,
            upstreams: upstreams.into_iter().chain([(Upstream::Broker, broker)]).collect(),
            in_flight_max: settings.in_flight_max,
            persona_calls_per_second: settings.persona_calls_per_second,
            address_calls_per_second: ADDRESS_CALLS_PER_SECOND,
            clock,
            hub: settings.hub.clone(),
        })?;
        lab.programs.insert("gateway", front.url());
        let edge = lab.edge.clone();
        let front = front.telling(settings.hub.heads());
        lab.front.spawn(front.serve(gateway.into_router(edge.clone()), edge));
        Ok((lab, filled))
    }

    async fn start_broker(&mut self, settings: &LabSettings, clock: &Clock) -> anyhow::Result<String> {
        let bound = free_port().await?;
        let url = bound.url();
        let broker = Broker::new(BrokerSettings {
            url: url.clone(),
            data_dir: settings.data_dir.clone(),
            profile: Profile::Lab,
            key_rotation: KEY_ROTATION,
            clock: clock.clone(),
        })?;
        let router = broker.into_router(self.services.clone(), settings.hub.clone());
        self.serve("session-broker", bound, router);
        Ok(url)
    }

    async fn start_services(&mut self, broker: &str, clock: &Clock) -> anyhow::Result<BTreeMap<Upstream, String>> {
        let sessions = sessions(HttpKeys::at(format!("{broker}/jwks.json").parse()?), clock.clone());
        let declared = [
            (Upstream::Patient, &patient::SERVICE),
            (Upstream::Encounter, &encounter::SERVICE),
            (Upstream::Billing, &billing::SERVICE),
            (Upstream::Admin, &admin::SERVICE),
        ];
        let mut upstreams = BTreeMap::new();
        for (upstream, service) in declared {
            let bound = free_port().await?;
            upstreams.insert(upstream, bound.url());
            let router = service.router(&self.stores, &sessions, &self.services);
            self.serve(service.name(), bound, router);
        }
        Ok(upstreams)
    }

    async fn start_workers(&mut self, upkeep: &UpkeepSettings) -> anyhow::Result<()> {
        let (stores, stop) = (self.stores.clone(), self.workers.clone());
        self.working.spawn(async move {
            if stores.relay(PAUSE_MAX_MS, &RetentionSettings::default(), stop).await.is_err() {
                pim_core::error!("relay.stopped");
            }
        });
        let upkeep = self.stores.upkeep(upkeep).await?;
        let (stores, stop) = (self.stores.clone(), self.workers.clone());
        self.working.spawn(async move {
            // The text of an error is for a person at a terminal, not for a log.
            if stores.consume(PAUSE_MAX_MS, &RetentionSettings::default(), upkeep, stop).await.is_err() {
                pim_core::error!("consumers.stopped");
            }
        });
        Ok(())
    }

    fn serve(&mut self, name: &'static str, bound: Bound, router: Router) {
        self.programs.insert(name, bound.url());
        self.serving.spawn(bound.serve(router, self.services.clone()));
    }

    /// Base URL of one program.
    #[must_use]
    pub fn url_of(&self, program: &str) -> Option<&str> {
        self.programs.get(program).map(String::as_str)
    }

    /// Stops in the order of the flow: no more requests, then no more events, then the workers. Everything that was
    /// acknowledged has been folded when this ends with [`Settled::Yes`].
    pub async fn stop(mut self) -> (Stores, Settled) {
        self.edge.begin();
        // What hangs on a fault would hold the drain up until the fault's own end.
        self.stores.hub.chaos().end_all();
        while self.front.join_next().await.is_some() {}
        self.services.begin();
        while self.serving.join_next().await.is_some() {}
        let settled = settle(&self.stores).await;
        self.workers.begin();
        while self.working.join_next().await.is_some() {}
        (self.stores, settled)
    }
}

async fn free_port() -> anyhow::Result<Bound> {
    Ok(bind(ServeSettings::at(SocketAddr::from(([127, 0, 0, 1], 0)))).await?)
}
