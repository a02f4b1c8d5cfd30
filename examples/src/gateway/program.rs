//! The gateway as a program of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pim_core::clock::Clock;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Gateway, GatewaySettings};
use crate::broker::gateway_secret;
use crate::chaos;
use crate::client::Client;
use crate::rig::{Checked, DRAIN_GRACE_MS, Drain, HttpKeys, Parts, ServeSettings, Service, bind, sessions};
use crate::routes::Upstream;
use crate::signals;

/// The port of the gateway's internal listener.
pub const INTERNAL_PORT: u16 = 8089;

/// Settings of the gateway program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayProgram {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where metrics, health and spans are told to the lab's own programs; nothing of it is on the public listener but metrics and health.
    pub internal_listen: SocketAddr,
    /// The data directory, for the secret that broker and gateway share.
    pub data_dir: PathBuf,
    /// Base URL of the session broker, which is also its issuer name: the broker's `public_url`, where it has one.
    pub broker_url: String,
    /// Base URL of the patient service.
    pub patient_url: String,
    /// Base URL of the encounter service.
    pub encounter_url: String,
    /// Base URL of the billing service.
    pub billing_url: String,
    /// Base URL of the admin service.
    pub admin_url: String,
    /// Most requests at once; above that the answer is 503, but for 64 of operators more. Sign-ins have 64 places of their own.
    pub in_flight_max: usize,
    /// Calls a second that one persona may make, up to a million; a burst may be twice that.
    pub persona_calls_per_second: u32,
    /// Calls a second from one network (/24 or /56), up to a million, of everything but health and what is refused by its head.
    pub address_calls_per_second: u32,
    /// For how long readiness says no before the listeners close, so that nobody sends more.
    pub drain_grace_ms: u64,
}

impl Default for GatewayProgram {
    fn default() -> Self {
        let local = |port: u16| format!("http://127.0.0.1:{port}");
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            internal_listen: SocketAddr::from(([127, 0, 0, 1], INTERNAL_PORT)),
            data_dir: PathBuf::from("target/pim-data"),
            broker_url: local(8081),
            patient_url: local(8082),
            encounter_url: local(8083),
            billing_url: local(8084),
            admin_url: local(8085),
            in_flight_max: 512,
            persona_calls_per_second: 200,
            address_calls_per_second: 5_000,
            drain_grace_ms: DRAIN_GRACE_MS,
        }
    }
}

impl Checked for GatewayProgram {}

impl GatewayProgram {
    /// Runs the gateway until it is told to stop.
    ///
    /// # Errors
    /// When the port or the secret cannot be had, or a setting makes no sense.
    pub async fn run(self, drain: Drain) -> anyhow::Result<()> {
        let bound = bind(ServeSettings::at(self.listen)).await?;
        let internal = bind(ServeSettings::at(self.internal_listen)).await?;
        let keys = HttpKeys::at(format!("{}/jwks.json", self.broker_url).parse()?);
        let upstreams = BTreeMap::from([
            (Upstream::Broker, self.broker_url.clone()),
            (Upstream::Patient, self.patient_url),
            (Upstream::Encounter, self.encounter_url),
            (Upstream::Billing, self.billing_url),
            (Upstream::Admin, self.admin_url),
        ]);
        let (_telemetry, hub) = signals::install("gateway", pim_telemetry::LogSettings::default(), true)?;
        // Any service knows the faults; one of them may be the one that is down.
        let services: Vec<String> = upstreams
            .iter()
            .filter(|(upstream, _)| **upstream != Upstream::Broker)
            .map(|(_, url)| url.clone())
            .collect();
        tokio::spawn(chaos::watch_over_http(services, Client::new(), hub.clone(), drain.begun()));
        let gateway = Gateway::new(GatewaySettings {
            broker: self.broker_url,
            secret: gateway_secret(&self.data_dir)?,
            upstreams,
            in_flight_max: self.in_flight_max,
            persona_calls_per_second: self.persona_calls_per_second,
            address_calls_per_second: self.address_calls_per_second,
            clock: Clock::system(),
            hub: hub.clone(),
        })?;
        let bound = bound.telling(hub.heads());
        let openapi = json!({"openapi": "3.1.0", "paths": {}});
        let parts = Parts { name: "gateway", cluster: None, drain: drain.clone(), openapi, hub };
        let inside = Service::new(parts).spans(&sessions(keys, Clock::system())).into_router();
        let ready = json!({
            "event": "ready", "service": "gateway", "url": bound.url(), "internal_url": internal.url(),
        });
        println!("{ready}");
        let closing = drain.later_by(Duration::from_millis(self.drain_grace_ms));
        let inside = internal.serve(inside, closing.clone());
        tokio::join!(bound.serve(gateway.into_router(drain), closing), inside);
        Ok(())
    }
}
