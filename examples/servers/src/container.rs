//! A server in a container, which goes away with the value, or with the process, however it ends.

use std::error::Error;
use std::ffi::OsStr;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::iter;
use std::thread;
use std::time::Duration;

use testcontainers::core::{IntoContainerPort as _, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _, TestcontainersError};

use crate::guard::Guard;
use crate::image;
use crate::shared::LOGIN_MAX;

const PASSWORD: &str = "only-for-tests";
const PORT: u16 = 5432;
const PATIENCE: Duration = Duration::from_secs(120);
/// On standard error: the official image writes that of its initialisation to standard output.
const READY: &str = "database system is ready to accept connections";
/// A process may be killed while the engine makes what it has asked for: then there is none yet, and the next look finds it.
const CLEAN_UP: &str = r#"
for look in 1 2 3; do
    [ -n "$(docker rm --force --volumes "$1")" ] && break
    sleep 1
done
"#;

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The engine says no.
    #[error("cannot start {image} (`.ci/setup` builds one, and {variable} names another): {why}")]
    Start {
        /// Name and tag.
        image: String,
        /// The variable that names another.
        variable: &'static str,
        /// What it said.
        why: String,
    },
    /// Nothing could be started that waits for it.
    #[error("cannot guard the container")]
    Guard(#[from] io::Error),
}

/// A running container.
#[derive(Debug)]
pub struct Contained {
    id: String,
    image: String,
    port: u16,
    /// Removes it; declared last so that nothing of ours outlives it.
    _guard: Guard,
}

impl Contained {
    /// The connection string of the superuser.
    #[must_use]
    pub fn dsn(&self) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// What the engine calls it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Name and tag of its image.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }
}

/// Starts PostgreSQL and returns when it takes connections.
///
/// # Errors
/// When the engine has no such image and cannot get it, or the server does not become ready.
pub fn postgres() -> Result<Contained, ContainerError> {
    // Another one's process may have the same number, where an engine serves several machines.
    let called = format!("pim-postgres-{}-{:016x}", std::process::id(), RandomState::new().build_hasher().finish());
    // Before anything is asked for: it is known by its name from its first moment on.
    let guard = Guard::arm(CLEAN_UP, &[OsStr::new(&called)])?;
    let (name, tag) = image::POSTGRES.name_and_tag();
    let image = format!("{name}:{tag}");
    let refused =
        |why: String| ContainerError::Start { image: image.clone(), variable: image::POSTGRES.variable(), why };
    // Tests ask from inside and outside of a runtime: this has a thread and a runtime of its own.
    let started = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(start(&called, &name, &tag)).map_err(io::Error::other)
    });
    let started = started.join().unwrap_or_else(|_| Err(io::Error::other("the client panicked")));
    let (id, port) = started.map_err(|why| refused(told(&why)))?;
    Ok(Contained { port, _guard: guard, image, id })
}

async fn start(called: &str, name: &str, tag: &str) -> Result<(String, u16), TestcontainersError> {
    let image =
        GenericImage::new(name, tag).with_exposed_port(PORT.tcp()).with_wait_for(WaitFor::message_on_stderr(READY));
    let request = image.with_env_var("POSTGRES_PASSWORD", PASSWORD).with_startup_timeout(PATIENCE);
    let request = request.with_container_name(called);
    // Nothing here has to survive the machine, and a suite makes hundreds of connections.
    let settings = [("max_connections", "200"), LOGIN_MAX].map(|(name, value)| format!("--{name}={value}"));
    let request = request.with_cmd(iter::once("postgres".to_owned()).chain(settings));
    let container: ContainerAsync<GenericImage> = request.start().await?;
    let port = container.get_host_port_ipv4(PORT).await?;
    let id = container.id().to_owned();
    // Its own clean-up does not see the end of a process: the guard does it.
    std::mem::forget(container);
    Ok((id, port))
}

/// An error with its causes, in a line.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}
