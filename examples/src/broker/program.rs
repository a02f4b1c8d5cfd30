//! The session broker as a program of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pim_core::clock::Clock;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Broker, BrokerSettings, KEY_ROTATION, Profile, url};
use crate::rig::{Checked, DRAIN_GRACE_MS, Drain, ServeSettings, SettingsError, bind};
use crate::signals;

/// Settings of the broker program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerProgram {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Its base URL as gateway and callers reach it, and the issuer of its tokens; where it listens, unless something is set. To be
    /// set where that is no address for others (`0.0.0.0`, `[::]`, behind a proxy), and the gateway's `broker_url` to the same.
    /// All who come through one proxy count as one network: together they begin 120 sign-ins at once, and two a second from then on.
    pub public_url: Option<String>,
    /// The data directory, for keys, revocations and personas.
    pub data_dir: PathBuf,
    /// `lab` lets the development identity provider run; `production` refuses to start it.
    pub profile: Profile,
    /// Seconds between two signing keys: 60 to 7,776,000. A key is published ten minutes before it signs, and until its last
    /// token is over.
    pub key_rotation_secs: u64,
    /// For how long readiness says no before the listener closes, so that nobody sends more.
    pub drain_grace_ms: u64,
}

impl Default for BrokerProgram {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            public_url: None,
            data_dir: PathBuf::from("target/pim-data"),
            profile: Profile::Lab,
            key_rotation_secs: KEY_ROTATION.as_secs(),
            drain_grace_ms: DRAIN_GRACE_MS,
        }
    }
}

impl Checked for BrokerProgram {
    fn check(&self) -> Result<(), SettingsError> {
        if self.public_url.as_deref().is_none_or(url::is_base_url) {
            return Ok(());
        }
        let (key, origin) = ("public_url".to_owned(), "the settings".to_owned());
        Err(SettingsError::Value { key, origin, rule: format!("must be {}", url::RULE) })
    }
}

impl BrokerProgram {
    /// Runs the broker until it is told to stop.
    ///
    /// # Errors
    /// When the port or the keys cannot be had, or the profile forbids it.
    pub async fn run(self, drain: Drain) -> anyhow::Result<()> {
        let bound = bind(ServeSettings::at(self.listen)).await?;
        let issuer = self.public_url.unwrap_or_else(|| bound.url());
        let settings = BrokerSettings {
            url: issuer.clone(),
            data_dir: self.data_dir,
            profile: self.profile,
            key_rotation: Duration::from_secs(self.key_rotation_secs),
            clock: Clock::system(),
        };
        // Before the broker, which may have something to say.
        let (_telemetry, hub) = signals::install("session-broker", pim_telemetry::LogSettings::default(), true)?;
        let broker = Broker::new(settings)?;
        let ready = json!({"event": "ready", "service": "session-broker", "url": bound.url(), "issuer": issuer});
        println!("{ready}");
        let router = broker.into_router(drain.clone(), hub);
        bound.serve(router, drain.later_by(Duration::from_millis(self.drain_grace_ms))).await;
        Ok(())
    }
}
