//! The nine programs as processes of their own, on one data directory.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::program::Program;

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
}

impl Nine {
    /// Starts them all, each on a free port: the gateway last but one, then personas who call it all the time.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start(data_dir: &Path) -> Result<Self> {
        let data_dir = data_dir.display().to_string();
        let common = ["--data-dir", data_dir.as_str(), "--listen", "127.0.0.1:0"];
        let broker = Program::start("session-broker", &common).await?;
        let broker_url = broker.told("url").to_owned();
        let jwks = format!("{broker_url}/jwks.json");
        let mut internal = BTreeMap::from([("session-broker", broker_url.clone())]);
        let mut programs = vec![broker];
        for name in SERVICES {
            let arguments = [&common[..], &["--jwks-url", &jwks]].concat();
            let service = Program::start(name, &arguments).await?;
            internal.insert(name, service.told("url").to_owned());
            programs.push(service);
        }
        let jwks_setting = format!("jwks_url={jwks}");
        for worker in ["outbox-processor", "projection-worker"] {
            let arguments = [&common[..], &["--set", &jwks_setting]].concat();
            let worker = (worker, Program::start(worker, &arguments).await?);
            internal.insert(worker.0, worker.1.told("url").to_owned());
            programs.push(worker.1);
        }
        // These two ask what starts after them, so their ports are chosen before.
        internal.insert("gateway", format!("http://{}", free_address()?));
        let personas = free_address()?;
        internal.insert("persona-simulator", format!("http://{personas}"));
        let admin = start_admin(&common, &jwks, &internal).await?;
        internal.insert("admin-service", admin.told("url").to_owned());
        programs.push(admin);
        let front = start_gateway(&common, &broker_url, &internal).await?;
        let gateway = front.told("url").to_owned();
        programs.push(front);
        let personas = personas.to_string();
        let load =
            ["load", "--gateway", &gateway, "--broker", &broker_url, "--rate", RATE, "--listen", &personas, "--json"];
        programs.push(Program::start("persona-simulator", &load).await?);
        Ok(Self { programs, gateway, broker: broker_url, internal })
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

const SERVICES: [&str; 3] = ["patient-service", "encounter-service", "billing-service"];

async fn start_admin(common: &[&str], jwks: &str, internal: &BTreeMap<&'static str, String>) -> Result<Program> {
    let known: Vec<String> =
        internal.iter().map(|(name, url)| format!("programs.{}={url}", name.replace('-', "_"))).collect();
    let mut arguments = [common, &["--jwks-url", jwks]].concat();
    for setting in &known {
        arguments.extend(["--set", setting]);
    }
    Program::start("admin-service", &arguments).await
}

async fn start_gateway(common: &[&str], broker: &str, internal: &BTreeMap<&'static str, String>) -> Result<Program> {
    let mut settings = vec![format!("broker_url={broker}")];
    for room in ["patient", "encounter", "billing", "admin"] {
        let url = internal.get(format!("{room}-service").as_str()).context("every service has started")?;
        settings.push(format!("{room}_url={url}"));
    }
    let inside = internal.get("gateway").context("the gateway has an internal address")?;
    settings.push(format!("internal_listen={}", inside.trim_start_matches("http://")));
    let mut arguments = common.to_vec();
    for setting in &settings {
        arguments.extend(["--set", setting]);
    }
    Program::start("gateway", &arguments).await
}

/// An address that nobody listens on now; whoever is told it may be beaten to it, and then says so.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
