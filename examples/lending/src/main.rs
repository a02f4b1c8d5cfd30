//! Opens the library in a temporary folder, or on the servers that `LENDING_SECRETS` has connection strings of, lends until Ctrl-C or SIGTERM, and says what its telemetry came to.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{Router, get};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use pim_core::id::Id;
use pim_core::signal::SignalRegistry;
use pim_data::backend::FileSecrets;
use pim_lending::door::Door;
use pim_lending::house::{House, Signals};
use pim_lending::loan::{Member, Role, policy};
use pim_lending::sign_in::SignIn;
use pim_telemetry::Telemetry;
use pim_telemetry::exposition::{Format, render};
use pim_telemetry::trace::TraceStore;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

async fn metrics(State(told): State<Arc<(SignalRegistry, TraceStore)>>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accepted);
    ([(CONTENT_TYPE, format.media_type())], render(&told.0, format, &told.1))
}

/// An error with what is behind it: each says what to do about it.
fn reasons(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |behind| format!("{error}: {}", reasons(behind)))
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", reasons(&*error));
            ExitCode::FAILURE
        }
    }
}

/// By a person at the terminal, or by whoever runs services.
async fn told_to_end() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

async fn serve() -> Result<(), Box<dyn Error + Send + Sync>> {
    let telemetry = Telemetry::builder("lending").install()?;
    let (mut registry, traces) = (SignalRegistry::new(), TraceStore::new(10_000));
    let signals = Signals::bind(&mut registry, &traces)?;
    let secrets = std::env::var_os("LENDING_SECRETS").map(|place| Arc::new(FileSecrets::in_folder(place)) as _);
    // A folder belongs to one engine.
    let name = if secrets.is_some() { "pim-lending-on-servers" } else { "pim-lending" };
    let folder = std::env::temp_dir().join(name);
    let (house, works) = House::open(&folder, secrets, &signals).await?;

    let sign_in = SignIn::new()?;
    let desk = pim_lending::desk::routes(house, &policy()?.into(), sign_in.verifier());
    let shown = Router::new().route("/metrics", get(metrics)).with_state(Arc::new((registry, traces)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8090").await?;
    let (member, token) = (Id::<Member>::random(), sign_in.token("u-1", Role::Librarian, None)?);
    println!(
        "curl -s http://127.0.0.1:8090/members/{member}/loans -H 'authorization: Bearer {token}' \\\n  \
         -H 'idempotency-key: first' --json '{{\"title\": \"Middlemarch\"}}'\n\
         curl -s http://127.0.0.1:8090/members/{member}/at-home -H 'authorization: Bearer {token}'\n\
         curl -s http://127.0.0.1:8090/metrics"
    );

    let (stopper, stop) = watch::channel(false);
    let stopped = || {
        let mut stop = stop.clone();
        async move { stop.wait_for(|stop| *stop).await.map(drop).unwrap_or_default() }
    };
    let serving = Door::default().serve(listener, desk.merge(shown), stopped());
    let waiting = async {
        let outcome = told_to_end().await;
        stopper.send_replace(true);
        outcome
    };
    let ((), (), waited) = tokio::join!(serving, works.run(stopped(), stopped()), waiting);
    waited?;
    println!("{:?}", telemetry.shutdown());
    Ok(())
}
