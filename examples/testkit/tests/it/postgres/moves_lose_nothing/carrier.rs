//! A process that carries one move out, and stops where it is told to, so that it can be killed there.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use pim_data::relocation::{MoveError, MoveStep, Mover};
use pim_events::OutboxOutlet;
use pim_lab::rig::PostgresSettings;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use uuid::Uuid;

use super::{open, operator};

/// What it is told, in its environment.
const ORDER: &str = "LAB_TEST_MOVER";
/// The test below, which is its program.
const PROGRAM: &str = "postgres::moves_lose_nothing::carrier::carry_out";
const PATIENCE: Duration = Duration::from_secs(90);

/// The process. Killed when the value goes.
pub(super) struct Carrier {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Carrier {
    pub(super) fn start(postgres: &PostgresSettings, data_dir: &Path, id: Uuid, stop_at: Option<MoveStep>) -> Self {
        let order = json!({"postgres": postgres, "data_dir": data_dir, "id": id, "stop_at": stop_at});
        let mut command = Command::new(std::env::current_exe().expect("this test's program"));
        command.args([PROGRAM, "--exact", "--ignored", "--nocapture"]).env(ORDER, order.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines }
    }

    /// Waits until it has written this step down.
    pub(super) async fn reaches(&mut self, step: MoveStep) {
        let told = async {
            while let Some(line) = self.lines.next_line().await.expect("its output") {
                if serde_json::from_str::<Value>(&line).is_ok_and(|told| told["at"] == step.text()) {
                    return;
                }
            }
            panic!("the mover ended before it was {}", step.text());
        };
        timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("the mover was not {} in time", step.text()));
    }

    /// SIGKILL.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Waits until the move is done.
    pub(super) async fn ends(mut self) {
        let ended = async {
            while self.lines.next_line().await.expect("its output").is_some() {}
            self.child.wait().await.expect("ends")
        };
        let status = timeout(PATIENCE, ended).await.expect("the move was not done in time");
        assert!(status.success(), "{status}");
    }
}

fn tell(step: MoveStep) {
    // The line before may be the test runner's own.
    println!("\n{}", json!({"at": step.text()}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the program of the carrier: it does nothing unless told what"]
async fn carry_out() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: Value = serde_json::from_str(&order).expect("an order");
    let postgres: PostgresSettings = serde_json::from_value(order["postgres"].clone()).expect("settings");
    let stores = open(Path::new(order["data_dir"].as_str().expect("a folder")), &postgres).await;
    let mover = Mover::new(&stores.cluster, Arc::new(OutboxOutlet));
    let id: Uuid = order["id"].as_str().and_then(|id| id.parse().ok()).expect("a move");
    // Ends: whoever started it waits no longer than it is patient.
    loop {
        match step_by_step(&mover, id, order["stop_at"].as_str()).await {
            Ok(()) => return,
            Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("the move failed: {error:?}"),
        }
    }
}

async fn step_by_step(mover: &Mover, id: Uuid, stop_at: Option<&str>) -> Result<(), MoveError> {
    let mut run = mover.take_up(id).await?;
    loop {
        let step = run.record().step;
        tell(step);
        if stop_at == Some(step.text()) {
            std::future::pending::<()>().await;
        }
        if step.is_over() {
            return Ok(());
        }
        run.step(&operator()).await?;
    }
}
