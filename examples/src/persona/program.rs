//! The persona simulator as a program of its own: `plan` prints the manifest, `load` drives a running lab.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use pim_core::clock::Clock;
use pim_core::signal::Spans;
use serde_json::{Value, json};

use super::drive::{Drive, DriveSettings};
use super::plan::Plan;
use super::profile::Profile;
use crate::client::Client;
use crate::rig::{
    Drain, EXIT_PRECONDITION, EXIT_USAGE, HttpKeys, Parts, ServeSettings, Service, SettingsError, bind, sessions,
};
use crate::seed::{self, SeedSettings};
use crate::show::{Lasting, Settings, Traffic};
use crate::signals::Hub;

const PATIENCE: Duration = Duration::from_secs(5);
const NAME: &str = "persona-simulator";
/// Sessions a second where the settings name none.
const RATE: f64 = 2.0;
/// The traffic run says nothing.
const EXIT_INVALID: u8 = 6;

/// Simulated people.
#[derive(Debug, Parser)]
#[command(name = "persona-simulator", disable_version_flag = true, arg_required_else_help = true)]
struct Flags {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Prints the manifests of data set and traffic with their digests; starts nothing.
    Plan {
        /// The lab's settings (YAML), of which seed, data set, traffic and personas count; variables `PIM_…` overlay them.
        #[arg(long, value_name = "FILE")]
        profile: Option<PathBuf>,
        /// Decides the plan.
        #[arg(long)]
        seed: Option<u64>,
        /// Sessions a second.
        #[arg(long, value_parser = rate)]
        rate: Option<f64>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Drives load at a gateway; serves its own health meanwhile.
    Load {
        /// Base URL of the gateway.
        #[arg(long, value_parser = base_url)]
        gateway: String,
        /// Base URL of the broker, whose keys say who may ask for the spans of the calls; without it nobody may.
        #[arg(long, value_parser = base_url)]
        broker: Option<String>,
        /// Sessions a second.
        #[arg(long, value_parser = rate)]
        rate: Option<f64>,
        /// How long, such as `30s` or `5m`; until told to stop when absent.
        #[arg(long = "for", value_name = "DURATION")]
        duration: Option<Lasting>,
        /// The lab's settings (YAML), of which seed, traffic and personas count; variables `PIM_…` overlay them.
        #[arg(long, value_name = "FILE")]
        profile: Option<PathBuf>,
        /// Decides the plan.
        #[arg(long)]
        seed: Option<u64>,
        /// Where health is served.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// JSON objects, one a line.
        #[arg(long)]
        json: bool,
    },
}

fn rate(text: &str) -> Result<f64, &'static str> {
    match text.parse()? {
        Traffic::Rate(rate) => Ok(rate),
        Traffic::Off => Err("must be sessions a second"),
    }
}

fn base_url(text: &str) -> Result<String, &'static str> {
    const RULE: &str = "must be a base URL such as http://127.0.0.1:8080";
    let uri: http::Uri = text.parse().map_err(|_| RULE)?;
    let is_usable = uri.scheme_str() == Some("http") && uri.authority().is_some() && uri.query().is_none();
    if is_usable { Ok(text.trim_end_matches('/').to_owned()) } else { Err(RULE) }
}

/// Seed, rate and profile of the traffic, and the data set: flags over settings.
struct Asked {
    seed: u64,
    rate: f64,
    profile: Profile,
    dataset: SeedSettings,
}

impl Asked {
    fn of(profile: Option<&Path>, seed: Option<u64>, rate: Option<f64>) -> Result<Self, SettingsError> {
        let settings = Settings::of(profile)?;
        let planned = match settings.traffic {
            Traffic::Rate(rate) => rate,
            Traffic::Off => RATE,
        };
        let seed = seed.unwrap_or(settings.seed);
        let dataset = SeedSettings { seed, ..settings.dataset() };
        Ok(Self { seed, rate: rate.unwrap_or(planned), profile: settings.personas, dataset })
    }
}

fn refused(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match Flags::parse().verb {
        Verb::Plan { profile, seed, rate, json } => {
            let asked = match Asked::of(profile.as_deref(), seed, rate) {
                Ok(asked) => asked,
                Err(error) => return refused(EXIT_USAGE, &error.into()),
            };
            let plan = Plan::new(asked.seed, asked.rate).with_profile(asked.profile).manifest();
            let mut manifest = serde_json::to_value(plan).unwrap_or(Value::Null);
            manifest["dataset"] = serde_json::to_value(seed::manifest(&asked.dataset)).unwrap_or(Value::Null);
            println!("{}", if json { manifest.to_string() } else { format!("{manifest:#}") });
            ExitCode::SUCCESS
        }
        Verb::Load { gateway, broker, profile, rate, duration, seed, listen, json } => {
            let Asked { seed, rate, profile, .. } = match Asked::of(profile.as_deref(), seed, rate) {
                Ok(asked) => asked,
                Err(error) => return refused(EXIT_USAGE, &error.into()),
            };
            let duration = duration.map(Duration::from);
            let settings = DriveSettings { gateway, rate, seed, profile, duration, spans: Spans::default() };
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let outcome = runtime
                .context("cannot start the runtime")
                .and_then(|runtime| runtime.block_on(load(settings, broker, listen, json)));
            outcome.unwrap_or_else(|error| refused(EXIT_PRECONDITION, &error))
        }
    }
}

async fn load(
    mut settings: DriveSettings,
    broker: Option<String>,
    listen: SocketAddr,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let drain = Drain::new();
    drain.on_signal();
    // Nobody could sign in later either: say so now, instead of reporting a run without requests.
    check_gateway(&settings.gateway).await?;
    let bound = bind(ServeSettings::at(listen)).await?;
    let openapi = json!({"openapi": "3.1.0", "paths": {}});
    let hub = Hub::new(None)?;
    settings.spans = hub.traces().spans(NAME);
    let mut service = Service::new(Parts { name: NAME, cluster: None, drain: drain.clone(), openapi, hub });
    if let Some(broker) = broker {
        let keys = HttpKeys::at(format!("{broker}/jwks.json").parse().context("--broker is no URL")?);
        service = service.spans(&sessions(keys, Clock::system()));
    }
    if json {
        println!("{}", json!({"event": "ready", "service": NAME, "url": bound.url()}));
    }
    let serving = tokio::spawn(bound.serve(service.into_router(), drain.clone()));
    let traffic = Drive::start(&settings);
    let over = async {
        match settings.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = over => {}
        () = drain.begun() => {}
    }
    let report = traffic.stop().await;
    drain.begin();
    let _ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
    let mut document = serde_json::to_value(&report).unwrap_or(Value::Null);
    document["event"] = "summary".into();
    document["verdict"] = if report.valid { "ok" } else { "invalid" }.into();
    println!("{}", if json { document.to_string() } else { format!("{document:#}") });
    Ok(if report.valid { ExitCode::SUCCESS } else { ExitCode::from(EXIT_INVALID) })
}

async fn check_gateway(gateway: &str) -> anyhow::Result<()> {
    let (url, asked) = (format!("{gateway}/v1/dev/token"), json!({"role": "sre"}));
    let granted = Client::new().post_json(&url, &asked, PATIENCE).await;
    granted.with_context(|| format!("the gateway at {gateway} does not answer as one: is a lab running there?"))?;
    Ok(())
}
