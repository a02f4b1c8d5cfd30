//! The nine programs as processes of their own, on one data directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use http::HeaderValue;
use pim_core::clock::Clock;
use pim_data::cluster::Access;
use pim_lab::broker::gateway_secret;
use pim_lab::seed::{SeedSettings, seed};
use pim_lab::signals::Hub;
use pim_lab::workers::Stores;
use pim_servers::port;

use crate::program::Program;
use crate::session::session_of;

/// As many as the programs make by default.
const SHARDS: u16 = 4;
/// Sessions a second of the personas that call meanwhile.
const RATE: &str = "1";

/// The programs of the lab.
#[derive(Debug)]
pub struct Nine {
    /// In the order of their start.
    programs: Vec<Program>,
    /// Base URL of the gateway.
    pub gateway: String,
    /// Base URL of the broker.
    pub broker: String,
    /// Base URL of every program's own listener, by name; the gateway's is its internal one.
    pub internal: BTreeMap<&'static str, String>,
    /// The data directory that they share.
    pub data_dir: PathBuf,
}

/// How they are started: what all of them are told, and where their log lines go.
struct Start<'a> {
    common: [&'a str; 4],
    logs: Option<&'a Path>,
}

impl Start<'_> {
    /// A program with what all are told.
    async fn common(&self, name: &str, more: &[&str]) -> Result<Program> {
        self.alone(name, &[&self.common[..], more].concat()).await
    }

    /// A program with these arguments alone.
    async fn alone(&self, name: &str, arguments: &[&str]) -> Result<Program> {
        let Some(logs) = self.logs else { return Program::start(name, arguments).await };
        let log = File::create(logs.join(format!("{name}.log"))).context("cannot make a log file")?;
        Program::start_logging(name, arguments, Stdio::from(log)).await
    }
}

impl Nine {
    /// Starts them all, each on a free port: the gateway last but one, then personas who call it all the time.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start(data_dir: &Path) -> Result<Self> {
        Self::start_logging(data_dir, None).await
    }

    /// The same, with the log lines of each in `<name>.log` of a folder.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start_logging(data_dir: &Path, logs: Option<&Path>) -> Result<Self> {
        furnish(data_dir).await?;
        let told = data_dir.display().to_string();
        let start = Start { common: ["--data-dir", told.as_str(), "--listen", "127.0.0.1:0"], logs };
        let broker = start.common("session-broker", &[]).await?;
        let broker_url = broker.told("url").to_owned();
        let jwks = format!("{broker_url}/jwks.json");
        let mut internal = BTreeMap::from([("session-broker", broker_url.clone())]);
        let mut programs = vec![broker];
        for name in SERVICES {
            let service = start.common(name, &["--jwks-url", &jwks]).await?;
            internal.insert(name, service.told("url").to_owned());
            programs.push(service);
        }
        let jwks_setting = format!("jwks_url={jwks}");
        for worker in ["outbox-processor", "projection-worker"] {
            let worker = (worker, start.common(worker, &["--set", &jwks_setting]).await?);
            internal.insert(worker.0, worker.1.told("url").to_owned());
            programs.push(worker.1);
        }
        // These two ask what starts after them, so their ports are chosen before.
        internal.insert("gateway", format!("http://{}", port::reserve()?));
        let personas = port::reserve()?;
        internal.insert("persona-simulator", format!("http://{personas}"));
        let admin = start_admin(&start, &jwks, &internal).await?;
        internal.insert("admin-service", admin.told("url").to_owned());
        programs.push(admin);
        let front = start_gateway(&start, &broker_url, &internal).await?;
        let gateway = front.told("url").to_owned();
        programs.push(front);
        let personas = personas.to_string();
        let load =
            ["load", "--gateway", &gateway, "--broker", &broker_url, "--rate", RATE, "--listen", &personas, "--json"];
        programs.push(start.alone("persona-simulator", &load).await?);
        Ok(Self { programs, gateway, broker: broker_url, internal, data_dir: data_dir.to_owned() })
    }

    /// The session context that services are shown for an access token, as the gateway gets it from the broker.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn session_of(&self, access_token: &str) -> Result<HeaderValue> {
        session_of(&self.broker, &gateway_secret(&self.data_dir)?, access_token).await
    }

    /// Kills one of them, by the name of its service.
    ///
    /// # Errors
    /// When there is none, or it cannot be killed.
    pub async fn kill(&mut self, service: &str) -> Result<()> {
        let found = self.programs.iter().position(|program| program.told("service") == service);
        let Some(found) = found else { anyhow::bail!("no {service} is running") };
        self.programs.remove(found).kill().await
    }

    /// Tells them to stop, the gateway first; returns the exit codes.
    ///
    /// # Errors
    /// When one of them does not end.
    pub async fn stop(self) -> Result<Vec<Option<i32>>> {
        let mut codes = Vec::new();
        for program in self.programs.into_iter().rev() {
            codes.push(program.stop().await?.0);
        }
        Ok(codes)
    }
}

/// Makes facilities, providers, and the personas who work there; does nothing to a directory that has been filled.
async fn furnish(data_dir: &Path) -> Result<()> {
    let hub = Hub::new(None)?;
    let stores = Stores::open(data_dir, Some(SHARDS), Access::Shared, Clock::system(), &hub).await?;
    seed(&stores, &SeedSettings { patients: 0, seed: 1, history_percent: 0 }, |_| {}).await?;
    Ok(())
}

const SERVICES: [&str; 3] = ["patient-service", "encounter-service", "billing-service"];

async fn start_admin(start: &Start<'_>, jwks: &str, internal: &BTreeMap<&'static str, String>) -> Result<Program> {
    let known: Vec<String> =
        internal.iter().map(|(name, url)| format!("programs.{}={url}", name.replace('-', "_"))).collect();
    let mut arguments = vec!["--jwks-url", jwks];
    for setting in &known {
        arguments.extend(["--set", setting]);
    }
    start.common("admin-service", &arguments).await
}

async fn start_gateway(start: &Start<'_>, broker: &str, internal: &BTreeMap<&'static str, String>) -> Result<Program> {
    let mut settings = vec![format!("broker_url={broker}")];
    for room in ["patient", "encounter", "billing", "admin"] {
        let url = internal.get(format!("{room}-service").as_str()).context("every service has started")?;
        settings.push(format!("{room}_url={url}"));
    }
    let inside = internal.get("gateway").context("the gateway has an internal address")?;
    settings.push(format!("internal_listen={}", inside.trim_start_matches("http://")));
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    start.common("gateway", &arguments).await
}
