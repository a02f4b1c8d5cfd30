//! Flags of `services`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use pim_core::clock::Timestamp;
use pim_data::backup::RestorePoint;
use serde::{Deserialize, Serialize};

use crate::gateway::CALLS_PER_SECOND_MAX;
use crate::jobs::UpkeepSettings;
use crate::persona::Profile;
use crate::rig::{Layers, PostgresSettings, SettingsError};
use crate::seed::SeedSettings;

/// Most shards of a map.
const SHARDS_MAX: i64 = 1024;
/// Most patients: as many as there are synthetic numbers.
const PATIENTS_MAX: i64 = 90_000_000;
const HISTORY_PERCENT_MAX: i64 = 100;

/// Most requests at once that may be allowed.
const IN_FLIGHT_MAX: i64 = 65_536;

/// The whole platform in one process, on embedded shards, over real loopback HTTP.
#[derive(Clone, Debug, Parser)]
#[command(name = "services", disable_version_flag = true)]
pub struct Flags {
    /// Settings file (YAML); variables `PIM_…` overlay it, flags overlay both.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept [default: target/pim-data].
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    data_dir: Option<PathBuf>,
    /// Keeps everything in a directory that is removed at the end.
    #[arg(long)]
    ephemeral: bool,
    /// Where the gateway listens [default: 127.0.0.1:8080]; the other parts take free ports.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Shards of a new data directory [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=SHARDS_MAX))]
    shards: Option<u16>,
    /// Synthetic patients of a new data directory [default: 10000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=PATIENTS_MAX))]
    patients: Option<u32>,
    /// Of a new data directory, how many patients in a hundred have a visit and its claim behind them [default: 2].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=HISTORY_PERCENT_MAX))]
    history: Option<u8>,
    /// Seed of data and traffic [default: 1].
    #[arg(long, value_name = "N", value_parser = whole)]
    seed: Option<u64>,
    /// Persona sessions a second, or `off` [default: 2].
    #[arg(long, value_name = "RATE|off")]
    traffic: Option<Traffic>,
    /// Ends by itself after this time, such as `30s` or `5m`; without it Ctrl-C ends it.
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<Lasting>,
    /// Brings the databases up to date, makes the data set and ends; events are moved by whoever comes next.
    #[arg(long, conflicts_with = "duration")]
    pub seed_only: bool,
    /// Puts this backup into the data directory, which must not be there yet, verifies it, and ends.
    #[arg(long, value_name = "BACKUP", requires = "data_dir")]
    pub(super) restore: Option<PathBuf>,
    /// With `--restore`: the data directory that was backed up, or a copy, for what is newer there than the backup, such as
    /// signed checkpoints [default: where it was, if it is there].
    #[arg(long, value_name = "DIR", requires = "restore")]
    origin: Option<PathBuf>,
    /// With `--restore`: the instant (RFC 3339) up to which the servers have been recovered.
    #[arg(long, value_name = "TIME", requires = "restore", value_parser = instant)]
    recovered_to: Option<Timestamp>,
    /// Says whether this backup is whole, and ends.
    #[arg(long, value_name = "BACKUP", conflicts_with = "restore")]
    pub(super) check_backup: Option<PathBuf>,
    /// One JSON object a line on standard output.
    #[arg(long)]
    pub json: bool,
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "must be an address with a port, such as 127.0.0.1:8080")
}

fn instant(text: &str) -> Result<Timestamp, &'static str> {
    text.parse().map_err(|_| "must be a time such as 2026-03-02T09:00:00Z")
}

fn whole(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "must be a whole number, 0 or above")
}

/// How much traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum Traffic {
    /// None.
    Off,
    /// So many sessions a second.
    Rate(f64),
}

impl FromStr for Traffic {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "must be `off` or sessions a second, above 0 and at most 10000";
        if text == "off" {
            return Ok(Self::Off);
        }
        let rate: f64 = text.parse().map_err(|_| RULE)?;
        if rate > 0.0 && rate <= 10_000.0 { Ok(Self::Rate(rate)) } else { Err(RULE) }
    }
}

/// As a file may write it: a rate needs no quotes.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be `off` or sessions a second, above 0 and at most 10000")]
enum Written {
    Text(String),
    Number(f64),
}

impl TryFrom<Written> for Traffic {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Number(rate) => rate.to_string().parse(),
        }
    }
}

impl From<Traffic> for String {
    fn from(traffic: Traffic) -> Self {
        match traffic {
            Traffic::Off => "off".to_owned(),
            Traffic::Rate(rate) => rate.to_string(),
        }
    }
}

/// A duration such as `500ms`, `30s`, `5m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasting(Duration);

impl From<Lasting> for Duration {
    fn from(Lasting(duration): Lasting) -> Self {
        duration
    }
}

impl FromStr for Lasting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "must be a duration such as 500ms, 30s, 5m or 1h";
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| RULE)?;
        let unit_ms = match &text[digits..] {
            "ms" => 1,
            "s" | "" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(RULE),
        };
        number.checked_mul(unit_ms).map(|ms| Self(Duration::from_millis(ms))).ok_or(RULE)
    }
}

/// Settings of `services`, from all layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(super) data_dir: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) shards: u16,
    pub(super) postgres: PostgresSettings,
    pub(super) patients: u32,
    pub(super) history_percent: u8,
    pub(crate) seed: u64,
    pub(crate) traffic: Traffic,
    pub(crate) personas: Profile,
    pub(super) in_flight_max: usize,
    pub(super) persona_calls_per_second: u32,
    pub(super) upkeep: UpkeepSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("target/pim-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            shards: 4,
            postgres: PostgresSettings::default(),
            patients: 10_000,
            history_percent: 2,
            seed: 1,
            traffic: Traffic::Rate(2.0),
            personas: Profile::default(),
            in_flight_max: 512,
            persona_calls_per_second: 1_000,
            upkeep: UpkeepSettings::default(),
        }
    }
}

impl Settings {
    /// Defaults, a file and the environment, for a program that takes some of the lab's settings.
    pub(crate) fn of(file: Option<&Path>) -> Result<Self, SettingsError> {
        let layers = Layers::<Self>::new();
        let layers = if let Some(path) = file { layers.file(path)? } else { layers };
        let settings = layers.environment(std::env::vars())?.into_settings();
        settings.check()?;
        Ok(settings)
    }

    /// What a new data directory is filled with.
    pub(crate) const fn dataset(&self) -> SeedSettings {
        SeedSettings { patients: self.patients, seed: self.seed, history_percent: self.history_percent }
    }

    /// What a type alone cannot say.
    fn check(&self) -> Result<(), SettingsError> {
        self.personas.check()?;
        let bounds = [
            ("shards", i64::from(self.shards), 1, SHARDS_MAX),
            ("patients", i64::from(self.patients), 0, PATIENTS_MAX),
            ("history_percent", i64::from(self.history_percent), 0, HISTORY_PERCENT_MAX),
            ("in_flight_max", i64::try_from(self.in_flight_max).unwrap_or(i64::MAX), 1, IN_FLIGHT_MAX),
            ("persona_calls_per_second", i64::from(self.persona_calls_per_second), 1, i64::from(CALLS_PER_SECOND_MAX)),
        ];
        for (key, value, from, to) in bounds {
            if !(from..=to).contains(&value) {
                let rule = format!("is {value}, must be from {from} to {to}");
                return Err(SettingsError::Value { key: key.to_owned(), origin: "the settings".to_owned(), rule });
            }
        }
        self.upkeep.check().map_err(|error| SettingsError::Value {
            key: format!("upkeep.{}", error.key),
            origin: "the settings".to_owned(),
            rule: error.to_string(),
        })?;
        self.postgres.places()?;
        Ok(())
    }
}

impl Flags {
    /// Defaults, file, environment and flags, in this order.
    pub(super) fn settings(&self) -> Result<Settings, SettingsError> {
        let mut layers = Layers::<Settings>::new();
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        let layers = layers.environment(std::env::vars())?;
        let layers = layers.flag("data_dir", self.data_dir.as_ref().map(|path| path.display().to_string()))?;
        let layers = layers.flag("listen", self.listen.map(|address| address.to_string()))?;
        let layers = layers.flag("shards", self.shards)?.flag("patients", self.patients)?.flag("seed", self.seed)?;
        let layers = layers.flag("history_percent", self.history)?;
        let settings = layers.flag("traffic", self.traffic.map(String::from))?.into_settings();
        settings.check()?;
        Ok(settings)
    }

    /// Which state is restored.
    pub(super) fn restore_point(&self) -> RestorePoint {
        RestorePoint { to: self.recovered_to, origin: self.origin.clone() }
    }

    /// How long to run.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.duration.map(|Lasting(duration)| duration)
    }

    pub(super) const fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::persona::{Course, Plan};

    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles/weekday.yaml");

    fn keys(tree: &Value, above: &str, into: &mut Vec<String>) {
        for (name, below) in tree.as_object().into_iter().flatten() {
            let key = format!("{above}{name}");
            keys(below, &format!("{key}."), into);
            into.push(key);
        }
    }

    fn sorted(tree: &Value) -> Vec<String> {
        let mut all = Vec::new();
        keys(tree, "", &mut all);
        all.sort();
        all
    }

    #[test]
    fn the_example_profile_has_every_key_and_none_else() {
        let settings = Settings::of(Some(Path::new(EXAMPLE))).unwrap();
        assert_eq!((settings.personas.shape.kind, settings.personas.shape.period_s), (Course::Diurnal, 600));
        let written: Value = serde_norway::from_str(&std::fs::read_to_string(EXAMPLE).unwrap()).unwrap();
        assert_eq!(sorted(&written), sorted(&serde_json::to_value(Settings::default()).unwrap()));
        let shaped = Plan::new(settings.seed, 5.0).with_profile(settings.personas).manifest();
        assert_ne!(shaped.digest, Plan::new(settings.seed, 5.0).manifest().digest);
    }

    #[test]
    fn a_rate_that_no_limit_can_keep_is_refused_by_its_key() {
        for calls in [0, CALLS_PER_SECOND_MAX + 1] {
            let settings = Settings { persona_calls_per_second: calls, ..Settings::default() };
            let refused = settings.check().unwrap_err().to_string();
            assert!(
                refused.contains("`persona_calls_per_second`") && refused.contains("from 1 to 1000000"),
                "{refused}"
            );
        }
        let fastest = Settings { persona_calls_per_second: CALLS_PER_SECOND_MAX, ..Settings::default() };
        assert!(fastest.check().is_ok());
    }

    #[test]
    fn a_rate_needs_no_quotes() {
        let of = |text: &str| serde_norway::from_str::<Traffic>(text).map_err(|error| error.to_string());
        assert_eq!(of("5").unwrap(), Traffic::Rate(5.0));
        assert_eq!(of("'2.5'").unwrap(), Traffic::Rate(2.5));
        assert_eq!(of("off").unwrap(), Traffic::Off);
        for bad in ["0", "-1", "[1]", "fast", "20000"] {
            assert!(of(bad).unwrap_err().contains("`off` or sessions a second"), "{bad}");
        }
    }
}
