//! A request through the gateway's full chain against a plain hyper proxy before the same upstream, in one run.
//!
//! Prints one JSON object a line: `name ours peer ratio spread goal holds`. One client's latency is in microseconds, the
//! rate of many in requests a second. Client, proxy and upstream share the machine and the runtime on both sides.

#![expect(clippy::expect_used, reason = "a benchmark that cannot go on must stop")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pim_core::clock::Clock;
use pim_lab::broker::{Broker, BrokerSettings, KEY_ROTATION, Profile, gateway_secret};
use pim_lab::client::Client;
use pim_lab::gateway::{Gateway, GatewaySettings};
use pim_lab::rig::{Drain, ServeSettings, bind};
use pim_lab::routes::Upstream;
use pim_lab::signals::Hub;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use uuid::Uuid;

const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_millis(400);
const CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
/// What a read of one patient comes to.
const ANSWER: &str = r#"{"id":"e768cd5c-69fc-8b2a-9ca9-8e6587a48450","version":1,"state":"registered","sex":"female"}"#;

async fn serve(router: Router) -> String {
    let bound = bind(ServeSettings::at(([127, 0, 0, 1], 0).into())).await.expect("a port");
    let url = bound.url();
    tokio::spawn(bound.serve(router, Drain::new()));
    url
}

/// Broker, upstream, and the gateway in front of them.
struct Edge {
    gateway: String,
    upstream: String,
    token: HeaderValue,
    folder: PathBuf,
}

impl Edge {
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-bench-{}", Uuid::new_v4().simple()));
        let hub = Hub::new(None).expect("a hub");
        let bound = bind(ServeSettings::at(([127, 0, 0, 1], 0).into())).await.expect("a port");
        let broker_url = bound.url();
        let clock = Clock::system();
        let settings = BrokerSettings {
            url: broker_url.clone(),
            data_dir: folder.clone(),
            profile: Profile::Lab,
            key_rotation: KEY_ROTATION,
            clock: clock.clone(),
        };
        let broker = Broker::new(settings).expect("a broker").into_router(Drain::new(), hub.clone());
        tokio::spawn(bound.serve(broker, Drain::new()));
        let upstream = serve(Router::new().fallback(|| async { ANSWER })).await;
        let mut upstreams: BTreeMap<_, _> = Upstream::ALL.into_iter().map(|it| (it, upstream.clone())).collect();
        upstreams.insert(Upstream::Broker, broker_url.clone());
        let gateway = Gateway::new(GatewaySettings {
            broker: broker_url,
            secret: gateway_secret(&folder).expect("a secret"),
            upstreams,
            in_flight_max: 512,
            persona_calls_per_second: 1_000_000,
            address_calls_per_second: 1_000_000,
            clock,
            hub,
        });
        let gateway = serve(gateway.expect("a gateway").into_router(Drain::new())).await;
        let (url, asked) = (format!("{gateway}/v1/dev/token"), json!({"role": "clinician"}));
        let told = Client::new().post_json(&url, &asked, PATIENCE).await.expect("a token");
        let bearer = format!("Bearer {}", told["access_token"].as_str().expect("a token"));
        Self { gateway, upstream, token: HeaderValue::from_str(&bearer).expect("a header"), folder }
    }
}

/// The peer: forwards every request as it is, and does nothing else.
async fn plain_proxy(upstream: String) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let pool: Pool<HttpConnector, Incoming> = Pool::builder(TokioExecutor::new()).build(connector);
    let upstream: Arc<str> = upstream.into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("no delay");
            let (pool, upstream) = (pool.clone(), Arc::clone(&upstream));
            let forward = service_fn(move |mut request: Request<Incoming>| {
                let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
                *request.uri_mut() = format!("{upstream}{path}").parse().expect("a URI");
                let answer = pool.request(request);
                async move {
                    let broken = |_| {
                        let body = http_body_util::Empty::new().map_err(|never: Infallible| match never {});
                        Response::builder().status(StatusCode::BAD_GATEWAY).body(body.boxed()).expect("an answer")
                    };
                    Ok::<_, Infallible>(answer.await.map(|it| it.map(|body| body.boxed())).unwrap_or_else(broken))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), forward));
        }
    });
    url
}

/// One side: many clients who ask for one patient after the other, for a round. How many answers there were.
async fn round(base: &str, token: &HeaderValue, clients: usize) -> f64 {
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for _ in 0..clients {
        let (client, token) = (Client::new(), token.clone());
        let url = format!("{base}/v1/patients/e768cd5c-69fc-8b2a-9ca9-8e6587a48450");
        asking.spawn(async move {
            let mut answers = 0_u32;
            while begun.elapsed() < ROUND {
                let request = Request::get(&url).header(AUTHORIZATION, token.clone());
                let request = request.body(Full::new(Bytes::new())).expect("a request");
                let answer = client.send(request, PATIENCE).await.expect("an answer");
                assert_eq!(answer.status(), StatusCode::OK, "only what was done is counted");
                answer.into_body().collect().await.expect("a body");
                answers += 1;
            }
            answers
        });
    }
    let answers: u32 = asking.join_all().await.into_iter().sum();
    f64::from(answers) / begun.elapsed().as_secs_f64()
}

/// Turn about, so that whatever else the machine does strikes both sides. Middle values, and half the range between quartiles.
async fn compare(edge: &Edge, proxy: &str, clients: usize) -> [f64; 4] {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for n in 0..=ROUNDS {
        let one = round(&edge.gateway, &edge.token, clients).await;
        let other = round(proxy, &edge.token, clients).await;
        // The first round warms connections, keys and sessions.
        if n > 0 {
            ours.push(one);
            peer.push(other);
        }
    }
    let mut ratios: Vec<f64> = ours.iter().zip(&peer).map(|(ours, peer)| ours / peer).collect();
    for list in [&mut ours, &mut peer, &mut ratios] {
        list.sort_by(f64::total_cmp);
    }
    let spread = (ratios[ROUNDS * 3 / 4] - ratios[ROUNDS / 4]) / 2.0;
    [ours[ROUNDS / 2], peer[ROUNDS / 2], ratios[ROUNDS / 2], spread]
}

fn print(name: &str, [ours, peer, ratio, spread]: [f64; 4], goal: &str, holds: bool) {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    let line = json!({
        "name": name, "ours": round(ours), "peer": round(peer), "ratio": round(ratio), "spread": round(spread),
        "goal": goal, "holds": holds,
    });
    println!("{line}");
}

#[tokio::main]
async fn main() {
    let edge = Edge::start().await;
    let proxy = plain_proxy(edge.upstream.clone()).await;
    let [ours, peer, ratio, spread] = compare(&edge, &proxy, 1).await;
    // A rate of one client is the inverse of its latency; so is the ratio, whose spread scales with its square.
    let latency = [1e6 / ours, 1e6 / peer, 1.0 / ratio, spread / (ratio * ratio)];
    print("gateway read, one client, us, against a plain hyper proxy", latency, "<= 2.0", latency[2] <= 2.0);
    let rates = compare(&edge, &proxy, CLIENTS).await;
    print("gateway reads/s, 16 clients, against a plain hyper proxy", rates, ">= 0.5", rates[2] >= 0.5);
    let _leftover = std::fs::remove_dir_all(&edge.folder);
}
