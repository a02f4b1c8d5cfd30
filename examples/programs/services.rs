//! Every part of the lab in one process.

use std::process::ExitCode;

use pim_lab::compose::{Lab, LabSettings};
use pim_lab::rig::{Drain, EXIT_PRECONDITION};

fn main() -> ExitCode {
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().enable_all().build() else {
        return ExitCode::from(EXIT_PRECONDITION);
    };
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_PRECONDITION)
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let drain = Drain::new();
    drain.on_signal();
    let lab = Lab::start(LabSettings {
        data_dir: "target/pim-data".into(),
        listen: ([127, 0, 0, 1], 8080).into(),
        shards: Some(4),
        in_flight_max: 512,
        persona_calls_per_second: 1000,
    })
    .await?;
    println!("{:#?}", lab.programs);
    drain.begun().await;
    let (stores, settled) = lab.stop().await;
    let summary = pim_lab::runs::summarize(&stores, pim_core::clock::Timestamp::from_micros(0)).await?;
    println!("{settled:?} {summary:#?}");
    Ok(())
}
