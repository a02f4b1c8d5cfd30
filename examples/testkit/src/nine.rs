//! The nine programs as processes of their own, on one data directory.

use std::path::Path;

use anyhow::Result;

use crate::program::Program;

/// The programs that serve requests and events.
#[derive(Debug)]
pub struct Nine {
    /// In the order of their start.
    programs: Vec<Program>,
    /// Base URL of the gateway.
    pub gateway: String,
    /// Base URL of the broker.
    pub broker: String,
}

impl Nine {
    /// Starts them all, each on a free port, the gateway last.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start(data_dir: &Path) -> Result<Self> {
        let data_dir = data_dir.display().to_string();
        let common = ["--data-dir", data_dir.as_str(), "--listen", "127.0.0.1:0"];
        let broker = Program::start("session-broker", &common).await?;
        let jwks = format!("{}/jwks.json", broker.told("url"));
        let mut programs = Vec::new();
        let mut settings = vec![format!("broker_url={}", broker.told("url"))];
        for room in ["patient", "encounter", "billing", "admin"] {
            let arguments = [&common[..], &["--jwks-url", &jwks]].concat();
            let service = Program::start(&format!("{room}-service"), &arguments).await?;
            settings.push(format!("{room}_url={}", service.told("url")));
            programs.push(service);
        }
        for worker in ["outbox-processor", "projection-worker"] {
            programs.push(Program::start(worker, &common).await?);
        }
        let mut arguments = common.to_vec();
        for setting in &settings {
            arguments.extend(["--set", setting]);
        }
        let front = Program::start("gateway", &arguments).await?;
        let (gateway, url) = (front.told("url").to_owned(), broker.told("url").to_owned());
        programs.extend([broker, front]);
        Ok(Self { programs, gateway, broker: url })
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
