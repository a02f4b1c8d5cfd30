//! The same check of a lab in one process, and of one whose programs are processes of their own.

use anyhow::{Result, ensure};

use crate::folder::Folder;
use crate::nine::Nine;
use crate::program::Program;

/// Checks a small lab without traffic in one process, by its gateway's base URL.
///
/// # Errors
/// When the lab does not start, or does not end well.
pub async fn in_one_process(check: impl AsyncFnOnce(&str)) -> Result<()> {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "5", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await?;
    check(services.told("gateway")).await;
    let (code, summary) = services.stop().await?;
    ensure!(code == Some(0), "{summary:?}");
    Ok(())
}

/// Checks the nine programs, by their gateway's base URL; `name` is that of their folder.
///
/// # Errors
/// When they do not start, or do not end well.
pub async fn in_processes_of_their_own(name: &str, check: impl AsyncFnOnce(&str)) -> Result<()> {
    let folder = Folder::new(name)?;
    let nine = Nine::start(folder.path()).await?;
    check(&nine.gateway).await;
    nine.stop().await.map(drop)
}
