//! A gateway with a real broker, and an upstream that is told what to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use http::HeaderMap;
use pim_core::clock::Clock;
use pim_core::role::ClosedEnum as _;
use pim_lab::broker::{Broker, BrokerSettings, KEY_ROTATION, Profile, gateway_secret};
use pim_lab::chaos::{ChaosFlag, ChaosPoint, FaultName};
use pim_lab::client::Client;
use pim_lab::gateway::{Gateway, GatewaySettings};
use pim_lab::rig::{Drain, ServeSettings, bind};
use pim_lab::routes::Upstream;
use pim_lab::signals::Hub;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use uuid::Uuid;

/// What every request of a test says.
pub(crate) const HEAD: &str = "Host: lab\r\nConnection: close\r\n";

pub(crate) struct Edge {
    pub(crate) gateway: String,
    pub(crate) reached: Arc<AtomicU64>,
    pub(crate) headers: Arc<Mutex<HeaderMap>>,
    pub(crate) hub: Hub,
    pub(crate) settings: GatewaySettings,
    folder: std::path::PathBuf,
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.folder);
    }
}

/// How it is set up.
pub(crate) struct Setup {
    pub(crate) persona_calls_per_second: u32,
    pub(crate) address_calls_per_second: u32,
    pub(crate) in_flight_max: usize,
    /// What all services but the broker answer; without one they count what reaches them.
    pub(crate) upstream: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { persona_calls_per_second: 1000, address_calls_per_second: 10_000, in_flight_max: 64, upstream: None }
    }
}

pub(crate) async fn serve(router: Router) -> String {
    // No guard of the listener is to hide what the gateway itself does, or does not.
    let write_timeout = Duration::from_secs(600);
    let settings = ServeSettings { write_timeout, ..ServeSettings::at(([127, 0, 0, 1], 0).into()) };
    let bound = bind(settings).await.unwrap();
    let url = bound.url();
    tokio::spawn(bound.serve(router, Drain::new()));
    url
}

impl Setup {
    pub(crate) async fn start(self) -> Edge {
        let folder = std::env::temp_dir().join(format!("pim-edge-{}", Uuid::new_v4()));
        let hub = Hub::new(None).unwrap();
        let bound = bind(ServeSettings::at(([127, 0, 0, 1], 0).into())).await.unwrap();
        let broker_url = bound.url();
        let settings = BrokerSettings {
            url: broker_url.clone(),
            data_dir: folder.clone(),
            profile: Profile::Lab,
            key_rotation: KEY_ROTATION,
            clock: Clock::system(),
        };
        let broker = Broker::new(settings).unwrap().into_router(Drain::new(), hub.clone());
        tokio::spawn(bound.serve(broker, Drain::new()));
        let (reached, headers) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(HeaderMap::new())));
        let (counting, seen) = (Arc::clone(&reached), Arc::clone(&headers));
        let counts = Router::new().fallback(move |given: HeaderMap| async move {
            counting.fetch_add(1, Ordering::SeqCst);
            *seen.lock().await = given;
            "{}"
        });
        let url = match self.upstream {
            Some(url) => url,
            None => serve(counts).await,
        };
        let mut upstreams: BTreeMap<_, _> = Upstream::ALL.into_iter().map(|upstream| (upstream, url.clone())).collect();
        upstreams.insert(Upstream::Broker, broker_url.clone());
        let settings = GatewaySettings {
            broker: broker_url,
            secret: gateway_secret(&folder).unwrap(),
            upstreams,
            in_flight_max: self.in_flight_max,
            persona_calls_per_second: self.persona_calls_per_second,
            address_calls_per_second: self.address_calls_per_second,
            clock: Clock::system(),
            hub: hub.clone(),
        };
        let gateway = serve(Gateway::new(settings.clone()).unwrap().into_router(Drain::new())).await;
        Edge { gateway, reached, headers, hub, settings, folder }
    }
}

impl Edge {
    /// Sends bytes as they are and reads nothing.
    pub(crate) async fn sent(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.gateway.trim_start_matches("http://")).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a head whose body is waited for from now on.
    pub(crate) async fn half_sent(&self, head: &str) -> TcpStream {
        let mut stream = self.sent(&format!("{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")).await;
        let mut asked = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut asked).await.unwrap();
        assert!(asked.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&asked));
        stream
    }

    /// Sends bytes as they are and returns status and problem type.
    pub(crate) async fn raw(&self, bytes: &str) -> (u16, String) {
        let mut stream = self.sent(bytes).await;
        let mut answer = Vec::new();
        let _cut_off = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let problem: Value = serde_json::from_str(body).unwrap_or_default();
        (status, problem["type"].as_str().unwrap_or_default().trim_start_matches("urn:pim:problem:").to_owned())
    }

    /// Every call hangs.
    pub(crate) fn stall(&self) {
        let now = Clock::system().now();
        self.hub.chaos().take(&[ChaosFlag {
            id: ChaosFlag::id_of(ChaosPoint::Gateway),
            version: 1,
            point: ChaosPoint::Gateway.name().to_owned(),
            fault: FaultName::Stall,
            latency_ms: 0,
            percent: 100,
            began_at: now,
            ends_at: now.plus(Duration::from_secs(600)),
        }]);
    }

    pub(crate) async fn token(&self, role: &str) -> String {
        let told = Client::new()
            .post_json(&format!("{}/v1/dev/token", self.gateway), &json!({"role": role}), Duration::from_secs(5))
            .await
            .unwrap();
        told["access_token"].as_str().unwrap().to_owned()
    }
}
