//! Starting a program that is no domain service: flags, settings, runtime, exit code.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Drain;
use super::settings::{Layers, SettingsError};

/// A bad flag or configuration.
pub const EXIT_USAGE: u8 = 2;
/// A port in use, or a data directory that cannot be used.
pub const EXIT_PRECONDITION: u8 = 3;

/// Settings of a program, which know what their types alone cannot say.
pub trait Checked: Serialize + DeserializeOwned + Default {
    /// Refuses what cannot be used, before anything is touched.
    ///
    /// # Errors
    /// [`SettingsError`] naming the key and the fix.
    fn check(&self) -> Result<(), SettingsError> {
        Ok(())
    }
}

/// Flags that every program takes.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Flags {
    /// Settings file (YAML); variables `PIM_…` overlay it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Only check and print the settings.
    #[arg(long)]
    check_config: bool,
    /// Where to listen.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The data directory.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// One setting, as `key=value`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Reads flags and settings, then runs `run` until it ends; it is told by the drain when to.
pub fn launch<T, F, Fut>(port: u16, run: F) -> ExitCode
where
    T: Checked,
    F: FnOnce(T, Drain) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let flags = Flags::parse();
    let settings = match settings::<T>(&flags, port) {
        Ok(settings) => settings,
        Err(error) => return refused(EXIT_USAGE, &error.into()),
    };
    if flags.check_config {
        print!("{}", serde_norway::to_string(&settings).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime");
    let outcome = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let drain = Drain::new();
            drain.on_signal();
            run(settings, drain).await
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refused(EXIT_PRECONDITION, &error),
    }
}

fn settings<T: Checked>(flags: &Flags, port: u16) -> Result<T, SettingsError> {
    let default_listen = SocketAddr::from(([127, 0, 0, 1], port)).to_string();
    let mut layers = Layers::<T>::new().flag("listen", Some(default_listen))?;
    if let Some(path) = &flags.config {
        layers = layers.file(path)?;
    }
    layers = layers.environment(std::env::vars())?;
    layers = layers.flag("listen", flags.listen.map(|it| it.to_string()))?;
    layers = layers.flag("data_dir", flags.data_dir.as_ref().map(|path| path.display().to_string()))?;
    for pair in &flags.set {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Numbers and booleans as they are, everything else as text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::from(value));
        layers = layers.flag(key, Some(value))?;
    }
    let settings = layers.into_settings();
    settings.check()?;
    Ok(settings)
}

fn refused(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}
