//! A domain service as a program: settings, cluster, gate, serve, drain; each service is a declaration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use clap::Parser;
use http::Uri;
use pim_core::clock::Clock;
use pim_core::context::RequestContextLayer;
use pim_data::cluster::Access;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::{Layers, SettingsError};
use super::{
    DRAIN_GRACE_MS, Drain, Endpoints, HttpKeys, Parts, PostgresSettings, ServeSettings, Service, bind, document,
    sessions,
};
use crate::chaos;
use crate::journey::Programs;
use crate::routes::Upstream;
use crate::signals;
use crate::workers::{Place, Stores};

/// A bad flag or configuration.
const EXIT_USAGE: u8 = 2;
/// A port in use, or a data directory that cannot be used.
const EXIT_PRECONDITION: u8 = 3;

/// What a domain service is.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Which of the programs behind the gateway.
    pub upstream: Upstream,
    /// The port that it listens on by default.
    pub port: u16,
    /// Its routes, with what its document says of them.
    pub endpoints: fn() -> Endpoints<Stores>,
}

impl Declaration {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.upstream.name()
    }

    /// Its OpenAPI document.
    #[must_use]
    pub fn openapi(&self) -> Value {
        document(self.upstream, (self.endpoints)().operations())
    }

    /// The whole service.
    pub fn router(&self, stores: &Stores, sessions: &RequestContextLayer, drain: &Drain) -> Router {
        self.framing((self.endpoints)().into_router().with_state(stores.clone()), stores, sessions, drain)
    }

    /// What a service has around its routes: sessions, problems, health, spans.
    pub fn framing(&self, routes: Router, stores: &Stores, sessions: &RequestContextLayer, drain: &Drain) -> Router {
        let (name, openapi, hub) = (self.name(), self.openapi(), stores.hub.clone());
        let parts = Parts { name, cluster: Some(stores.cluster.clone()), drain: drain.clone(), openapi, hub };
        Service::new(parts).routes(routes, sessions).spans(sessions).into_router()
    }
}

/// Settings of a domain service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The data directory, shared with the other programs.
    pub data_dir: PathBuf,
    /// How many shards a new data directory gets; an existing one must have as many. A shard map says it better.
    pub shards: u16,
    /// The servers that rows are kept on instead of files.
    pub postgres: PostgresSettings,
    /// Where the broker publishes its keys.
    pub jwks_url: String,
    /// Where the other programs tell what they remember of a request; only the admin service asks.
    pub programs: Programs,
    /// Most connections at once.
    pub connections_max: usize,
    /// For how long readiness says no before the listener closes, so that nobody sends more.
    pub drain_grace_ms: u64,
    /// How long requests in flight may then take.
    pub drain_timeout_ms: u64,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: PathBuf::from("target/pim-data"),
            shards: 4,
            postgres: PostgresSettings::default(),
            jwks_url: "http://127.0.0.1:8081/jwks.json".to_owned(),
            programs: Programs::default(),
            connections_max: 2048,
            drain_grace_ms: DRAIN_GRACE_MS,
            drain_timeout_ms: 10_000,
        }
    }
}

/// Flags of a domain service.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
pub struct ServiceFlags {
    /// Settings file (YAML); variables `PIM_…` overlay it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Only check and print the settings.
    #[arg(long)]
    pub check_config: bool,
    /// Where to listen.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// The data directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where the broker publishes its keys.
    #[arg(long)]
    pub jwks_url: Option<String>,
    /// One setting, as `key=value`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ServiceFlags {
    /// Defaults, file, environment and flags, in this order.
    ///
    /// # Errors
    /// [`SettingsError`] naming the key and the fix.
    pub fn settings(
        &self,
        port: u16,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<ServiceSettings, SettingsError> {
        let default_listen = SocketAddr::from(([127, 0, 0, 1], port)).to_string();
        let mut layers = Layers::<ServiceSettings>::new().flag("listen", Some(default_listen))?;
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        let layers = layers.environment(environment)?.flag("listen", self.listen.map(|it| it.to_string()))?;
        let layers = layers.flag("data_dir", self.data_dir.as_ref().map(|path| path.display().to_string()))?;
        let mut layers = layers.flag("jwks_url", self.jwks_url.clone())?;
        for pair in &self.set {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Numbers and booleans as they are, everything else as text.
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            layers = layers.flag(key, Some(value))?;
        }
        let settings = layers.into_settings();
        let is_usable = settings.jwks_url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http"));
        if !is_usable {
            let (key, origin) = ("jwks_url".to_owned(), "the settings".to_owned());
            let rule = "must be an http address such as http://127.0.0.1:8081/jwks.json".to_owned();
            return Err(SettingsError::Value { key, origin, rule });
        }
        settings.postgres.places()?;
        Ok(settings)
    }
}

impl Declaration {
    /// Runs the service as a program until it is told to stop.
    #[must_use]
    pub fn main(&self) -> ExitCode {
        let flags = ServiceFlags::parse();
        let settings = match flags.settings(self.port, std::env::vars()) {
            Ok(settings) => settings,
            Err(error) => return refused(EXIT_USAGE, &error.into()),
        };
        if flags.check_config {
            print!("{}", serde_norway::to_string(&settings).unwrap_or_default());
            return ExitCode::SUCCESS;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let outcome =
            runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(self.run(settings)));
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refused(EXIT_PRECONDITION, &error),
        }
    }

    async fn run(&self, settings: ServiceSettings) -> anyhow::Result<()> {
        // The port first: a program that cannot serve makes no data directory.
        let bound = bind(ServeSettings {
            connections_max: settings.connections_max,
            drain_timeout: Duration::from_millis(settings.drain_timeout_ms),
            ..ServeSettings::at(settings.listen)
        })
        .await?;
        let (_telemetry, hub) = signals::install(self.name(), pim_telemetry::LogSettings::default(), true)?;
        let place = Place { data_dir: &settings.data_dir, shards: Some(settings.shards), postgres: &settings.postgres };
        let mut stores = Stores::open_at(place, Access::Shared, Clock::system(), &hub).await?;
        stores.programs = settings.programs;
        let sessions = sessions(HttpKeys::at(settings.jwks_url.parse()?), Clock::system());
        // Readiness says no at once; the listener closes when the grace is over.
        let unready = Drain::new();
        unready.on_signal();
        let closing = unready.later_by(Duration::from_millis(settings.drain_grace_ms));
        tokio::spawn(chaos::watch(stores.cluster.clone(), hub.clone(), unready.begun()));
        tokio::spawn(stores.reference_followed(closing.clone()).await?);
        // On servers the relay's program may not, and admin's may.
        tokio::spawn(stores.moves_tended(unready.clone()));
        let router = self.router(&stores, &sessions, &unready);
        println!("{}", serde_json::json!({"event": "ready", "service": self.name(), "url": bound.url()}));
        bound.serve(router, closing).await;
        Ok(())
    }
}

fn refused(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}
