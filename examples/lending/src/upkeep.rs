//! What nobody asks for and a library that runs for years needs: gauges, signatures, and an end to what is old.

use std::future::Future;
use std::time::Duration;

use pim_data::cluster::Cluster;
use pim_events::Retention;
use pim_events::signals::Watch;
use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval};

/// Between two signatures of the trail's end, two sweeps of answers that are a day old, and two looks at the whole trail.
const SIGNS: Duration = Duration::from_secs(15 * 60);
const SWEEPS: Duration = Duration::from_secs(3600);
const VERIFIES: Duration = Duration::from_secs(24 * 3600);

/// It has to run for as long as anything else does.
#[derive(Debug)]
#[must_use = "nothing is looked after until `run`"]
pub struct Upkeep {
    pub(crate) cluster: Cluster,
    pub(crate) watches: [Watch; 2],
    pub(crate) retentions: [Retention; 2],
}

impl Upkeep {
    /// Until `over` says so; then the trail's end is signed, so that nobody cuts off what was done since the last time.
    pub async fn run(self, over: Receiver<bool>) {
        let ([outboxes, consumers], [published, read]) = (self.watches, self.retentions);
        tokio::join!(
            outboxes.run(until(over.clone())),
            consumers.run(until(over.clone())),
            published.run(until(over.clone())),
            read.run(until(over.clone())),
            chores(&self.cluster, until(over)),
        );
        sign(&self.cluster).await;
    }
}

async fn until(mut over: Receiver<bool>) {
    over.wait_for(|over| *over).await.map(drop).unwrap_or_default();
}

async fn chores(cluster: &Cluster, over: impl Future<Output = ()>) {
    let every = |pause| {
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut signs, mut sweeps, mut verifies) = (every(SIGNS), every(SWEEPS), every(VERIFIES));
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return,
            _ = signs.tick() => sign(cluster).await,
            _ = sweeps.tick() => sweep(cluster).await,
            _ = verifies.tick() => verify(cluster).await,
        }
    }
}

async fn sign(cluster: &Cluster) {
    if cluster.checkpoint_audit().await.is_err() {
        pim_core::error!("upkeep.failed", chore = "checkpoint");
    }
}

async fn sweep(cluster: &Cluster) {
    // While some go there may be more.
    loop {
        match cluster.sweep_idempotency().await {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) => return pim_core::error!("upkeep.failed", chore = "sweep"),
        }
    }
}

async fn verify(cluster: &Cluster) {
    match cluster.verify_audit().await {
        Ok(report) if report.verified => {}
        // Somebody has to look: `findings` say where.
        Ok(report) => pim_core::error!("upkeep.trail_differs", findings = report.findings.len()),
        Err(_) => pim_core::error!("upkeep.failed", chore = "verify"),
    }
}
