//! One worker a partition: fetches, hands batches to the engine, drains what is un-parked, rests.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;

use super::ledger::Place;
use super::{Engine, Sink, Step};
use crate::bus::Subscriber;
use crate::pace::{Pace, Stop, rest, sleep};

pub(crate) struct Worker<S> {
    pub(crate) engine: Arc<Engine<S>>,
    pub(crate) bus: Arc<dyn Subscriber>,
    pub(crate) place: Place,
}

impl<S: Sink> Worker<S> {
    /// Runs until stopped. Failures are logged and retried with growing pauses; nothing ends the worker, no panic either.
    pub(crate) async fn run(self, mut stop: Stop) {
        let mut pace = Pace::new(self.engine.settings.pause_max());
        while !stop.is_set() {
            // What was under way is taken back with its transaction, and the position is read again.
            let working = AssertUnwindSafe(self.work(&mut pace, &mut stop)).catch_unwind();
            if working.await.is_err() {
                let place = &self.place;
                pim_core::error!("consumer.panicked", consumer = place.consumer, partition = place.partition);
                sleep(pace.pause(), &mut stop).await;
            }
        }
    }

    async fn work(&self, pace: &mut Pace, stop: &mut Stop) {
        let mut wake = self.bus.arrivals(&self.place.topic, self.place.partition);
        let mut position = None;
        while !stop.is_set() {
            wake.mark_unchanged();
            match self.turn(&mut position, stop).await {
                Ok(true) => pace.reset(),
                Ok(false) => rest(pace.pause(), &mut wake, stop).await,
                Err(code) => {
                    pim_core::warn!(
                        "consumer.waits",
                        consumer = self.place.consumer,
                        partition = self.place.partition,
                        code = code,
                    );
                    sleep(pace.pause(), stop).await;
                }
            }
        }
    }

    /// One look: true when there was something to do.
    async fn turn(&self, position: &mut Option<u64>, stop: &Stop) -> Result<bool, &'static str> {
        let goes_on = || !stop.is_set();
        let drained = self.engine.drain(&self.place, goes_on).await.map_err(|error| error.code())?;
        let from = match *position {
            Some(from) => from,
            None => self.engine.position(&self.place).await.map_err(|_| "store")?,
        };
        *position = Some(from);
        let max = self.engine.settings.batch_max;
        let fetched = self.bus.fetch(&self.place.topic, self.place.partition, from, max).await;
        let records = fetched.map_err(|_| "bus")?;
        if records.is_empty() {
            return Ok(drained);
        }
        // Unless all goes well the next look reads the stored position again.
        *position = None;
        let absorbed = self.engine.absorb_while(&self.place, (from, &records), &goes_on).await;
        match absorbed.map_err(|error| error.code())? {
            Step::Next(next) => {
                *position = Some(next);
                Ok(true)
            }
            Step::Lost | Step::Ended => Ok(true),
            Step::Stopped | Step::Outdated => Ok(drained),
        }
    }
}
