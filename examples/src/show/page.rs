//! The ready page: addresses, tokens, and four commands that work as printed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::compose::{Lab, backlog};

const ROLES: [&str; 4] = ["patient", "clinician", "admin", "sre"];
const PATIENCE: Duration = Duration::from_secs(5);

/// What the page tells.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    gateway: String,
    programs: BTreeMap<&'static str, String>,
    tokens: BTreeMap<&'static str, Value>,
    pub(super) ready_ms: u64,
    /// Events that read models have not folded yet: what was seeded a moment ago. None while a store does not tell.
    backlog: Option<u64>,
    data_dir: String,
}

impl Ready {
    /// Signs one persona of each role in.
    pub(super) async fn of(lab: &Lab, ready_ms: u64) -> anyhow::Result<Self> {
        let client = Client::new();
        let mut tokens = BTreeMap::new();
        for role in ROLES {
            let url = format!("{}/v1/dev/token", lab.gateway);
            tokens.insert(role, client.post_json(&url, &json!({"role": role}), PATIENCE).await?);
        }
        let data_dir = lab.stores.cluster.data_dir().display().to_string();
        // A shard that is away keeps nobody from the others.
        let backlog = backlog(&lab.stores).await.ok();
        Ok(Self { gateway: lab.gateway.clone(), programs: lab.programs.clone(), tokens, ready_ms, backlog, data_dir })
    }

    /// As one JSON object.
    pub(super) fn as_json(&self) -> Value {
        let tokens: BTreeMap<_, _> = self.tokens.iter().map(|(role, told)| (*role, &told["access_token"])).collect();
        json!({
            "event": "ready",
            "gateway": self.gateway,
            "admin": self.programs.get("admin-service"),
            "broker": self.programs.get("session-broker"),
            "services": self.programs,
            "tokens": tokens,
            "ready_ms": self.ready_ms,
            "backlog": self.backlog,
            "rss_mib": resident_mib(),
            "pid": std::process::id(),
            "data_dir": self.data_dir,
        })
    }

    /// As a page for people.
    pub(super) fn as_text(&self) -> String {
        let gateway = &self.gateway;
        let mut text = format!("\nready after {} ms, {:.0} MiB resident\n\n", self.ready_ms, resident_mib());
        match self.backlog {
            Some(0) => {}
            Some(events) => text.push_str(&format!("read models still fold {events} events of what was seeded\n\n")),
            None => text.push_str("a store does not answer: how many events wait is not known\n\n"),
        }
        for (name, url) in &self.programs {
            text.push_str(&format!("  {name:<18} {url}\n"));
        }
        text.push_str("\ntokens, good for 15 minutes:\n\n");
        for (role, told) in &self.tokens {
            let token = told["access_token"].as_str().unwrap_or_default();
            text.push_str(&format!("  export {}={token}\n", role.to_uppercase()));
        }
        let patient = self.tokens["patient"]["patient_id"].as_str().unwrap_or("PATIENT_ID").to_owned();
        text.push_str("\ntry, after the exports above:\n\n");
        for (role, path) in [
            // The record itself: read models may still be folding what was just seeded.
            ("PATIENT", format!("/v1/patients/{patient}")),
            ("CLINICIAN", "/v1/patients?name=a&limit=3".to_owned()),
            ("ADMIN", "/v1/admin/facilities?limit=3".to_owned()),
            ("SRE", "/v1/admin/runs/summary".to_owned()),
        ] {
            text.push_str(&format!("  curl -s -H \"Authorization: Bearer ${role}\" '{gateway}{path}'\n"));
        }
        text.push_str("\nCtrl-C drains and prints a summary.\n");
        text
    }
}

/// Memory of this process that is in use, in MiB.
pub(super) fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0);
    (kib / 102.4).round() / 10.0
}
