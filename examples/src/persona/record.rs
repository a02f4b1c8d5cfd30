//! What a run measured: for each operation response, service and lateness, in high dynamic range histograms.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use http::StatusCode;
use serde::Serialize;

use super::operation::Operation;
use crate::client::ClientError;

const MICROS_MAX: u64 = 600_000_000;
/// A run whose 99th percentile of lateness is above this says nothing.
const LATENESS_P99_MAX: Duration = Duration::from_millis(500);
/// A run of which less than this part of what was due was answered says nothing, in percent.
const ANSWERED_PERCENT_MIN: u64 = 95;

#[derive(Debug)]
struct Series {
    requests: u64,
    response: Histogram<u64>,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
    errors: u64,
}

#[derive(Debug, Default)]
struct Inner {
    by_operation: BTreeMap<Operation, Series>,
    by_persona: BTreeMap<&'static str, u64>,
    requests: u64,
    errors: u64,
    due: u64,
    not_sent: u64,
    broken: u64,
    timed_out: u64,
    cut_short: u64,
    turned_away: u64,
}

/// Collects measurements of many sessions.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Inner>);

/// One measured step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) operation: Operation,
    pub(super) role: &'static str,
    pub(super) lateness: Duration,
    pub(super) service: Duration,
    pub(super) outcome: Outcome,
}

/// What became of a step that came due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered, as was planned.
    Answered,
    /// Answered by a refusal.
    Refused,
    /// Sent, and not answered while anybody waited.
    Silent,
    /// Sent, and the connection or its answer broke off.
    Broken,
    /// Nobody was there to send it to.
    NotSent,
}

impl Outcome {
    /// Of an exchange.
    pub(super) fn of<T>(exchange: &Result<(StatusCode, T), ClientError>) -> Self {
        match exchange {
            Ok((status, _)) if status.is_success() => Self::Answered,
            Ok(_) => Self::Refused,
            Err(error) if error.was_not_sent() => Self::NotSent,
            Err(ClientError::Timeout) => Self::Silent,
            Err(_) => Self::Broken,
        }
    }
}

/// Whether nobody could serve it, where a refusal is a word of the domain: what a session has not learned by it, it would have
/// learned of a sound system.
pub(super) fn is_fault<T>(exchange: &Result<(StatusCode, T), ClientError>) -> bool {
    exchange.as_ref().map_or(true, |(status, _)| {
        status.is_server_error() || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED)
    })
}

impl Recorder {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A step came due.
    pub(super) fn due(&self) {
        self.with(|inner| inner.due += 1);
    }

    /// So many steps came due that nobody could send: their session had not begun, or was not told what they need.
    pub(super) fn missed(&self, steps: u64) {
        self.with(|inner| {
            inner.due += steps;
            inner.not_sent += steps;
        });
    }

    /// A session could not begin; its steps come due all the same.
    pub(super) fn turned_away(&self) {
        self.with(|inner| inner.turned_away += 1);
    }

    /// Steps that have come due.
    #[cfg(test)]
    pub(super) fn due_so_far(&self) -> u64 {
        self.with(|inner| inner.due)
    }

    /// A session could not go on, for example because nobody was found.
    pub(super) fn cut_short(&self) {
        self.with(|inner| inner.cut_short += 1);
    }

    /// A step was done, or was to be.
    pub(super) fn done(&self, measured: Measured) {
        let Measured { operation, role, outcome, .. } = measured;
        let (is_sent, is_error) = (outcome != Outcome::NotSent, outcome != Outcome::Answered);
        self.with(|inner| {
            inner.requests += u64::from(is_sent);
            inner.errors += u64::from(is_error);
            inner.not_sent += u64::from(!is_sent);
            inner.broken += u64::from(outcome == Outcome::Broken);
            inner.timed_out += u64::from(outcome == Outcome::Silent);
            let series = inner.by_operation.entry(operation).or_insert_with(Series::new);
            series.errors += u64::from(is_error);
            if is_sent {
                *inner.by_persona.entry(role).or_default() += 1;
                series.measure(&measured);
            }
        });
    }

    /// How it stands.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.with(|inner| {
            let mut all = fresh();
            for series in inner.by_operation.values() {
                // Histograms of one form always add up.
                let _same_form = all.add(&series.response);
            }
            Snapshot {
                requests: inner.requests,
                errors: inner.errors,
                by_persona: inner.by_persona.clone(),
                p50_ms: in_ms(&all, 50.0),
                p99_ms: in_ms(&all, 99.0),
            }
        })
    }

    /// What it came to, with so many sessions that had not ended.
    pub(super) fn report(&self, unfinished: u64) -> DriveReport {
        self.with(|inner| {
            let mut lateness = fresh();
            for series in inner.by_operation.values() {
                let _same_form = lateness.add(&series.lateness);
            }
            let lateness_p99_ms = in_ms(&lateness, 99.0);
            let mut reasons = Vec::new();
            if inner.due == 0 {
                reasons.push("no request came due".to_owned());
            }
            reasons.extend(inner.unanswered());
            if lateness_p99_ms > LATENESS_P99_MAX.as_secs_f64() * 1000.0 {
                reasons.push(format!("requests were sent late: p99 {lateness_p99_ms:.0} ms"));
            }
            if unfinished > 0 {
                reasons.push(format!("{unfinished} sessions had not ended: their slowest requests are missing"));
            }
            DriveReport {
                requests: inner.requests,
                errors: inner.errors,
                due: inner.due,
                not_sent: inner.not_sent,
                broken: inner.broken,
                timed_out: inner.timed_out,
                cut_short: inner.cut_short,
                turned_away: inner.turned_away,
                unfinished,
                valid: reasons.is_empty(),
                reasons,
                lateness_p99_ms,
                operations: inner.by_operation.iter().map(|(op, series)| (op.name(), series.report())).collect(),
            }
        })
    }
}

impl Inner {
    /// What it means that too little of what was due was answered. A connection that breaks is as fast as one that is refused, and
    /// whoever was not answered in time may have had to wait for ever: neither says how fast the system is.
    fn unanswered(&self) -> Option<String> {
        let Self { due, not_sent, broken, timed_out, .. } = *self;
        let answered = self.requests - broken - timed_out;
        let told = || {
            let why = format!("{not_sent} were not sent, {broken} broke off, {timed_out} timed out");
            format!("{answered} of {due} due requests were answered: {why}")
        };
        (answered * 100 < due * ANSWERED_PERCENT_MIN).then(told)
    }
}

impl Series {
    fn new() -> Self {
        Self { requests: 0, response: fresh(), service: fresh(), lateness: fresh(), errors: 0 }
    }

    /// A step that was sent.
    fn measure(&mut self, measured: &Measured) {
        let Measured { lateness, service, outcome, .. } = *measured;
        self.requests += 1;
        self.lateness.saturating_record(micros(lateness));
        if matches!(outcome, Outcome::Answered | Outcome::Refused) {
            self.service.saturating_record(micros(service));
        }
        // Whom nobody answered has waited at least so long. A connection that broke says nothing of how long an answer takes.
        if outcome != Outcome::Broken {
            // From the intended time: a request that waited because the system was slow has waited.
            self.response.saturating_record(micros(lateness + service));
        }
    }

    fn report(&self) -> OperationReport {
        OperationReport {
            requests: self.requests,
            errors: self.errors,
            response_p50_ms: in_ms(&self.response, 50.0),
            response_p95_ms: in_ms(&self.response, 95.0),
            response_p99_ms: in_ms(&self.response, 99.0),
            response_max_ms: in_ms(&self.response, 100.0),
            service_p50_ms: in_ms(&self.service, 50.0),
            service_p99_ms: in_ms(&self.service, 99.0),
            lateness_p99_ms: in_ms(&self.lateness, 99.0),
        }
    }
}

fn fresh() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "constant bounds that the histogram allows")]
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("bounds of a histogram")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(MICROS_MAX).max(1)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds far below 2^52")]
fn in_ms(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    let micros = if histogram.is_empty() { 0 } else { histogram.value_at_percentile(percentile) };
    micros as f64 / 1000.0
}

/// How a run stands, for a status line.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Requests so far.
    pub requests: u64,
    /// Failures so far, also to send one.
    pub errors: u64,
    /// Requests so far by persona.
    pub by_persona: BTreeMap<&'static str, u64>,
    /// Median response.
    pub p50_ms: f64,
    /// 99th percentile of response.
    pub p99_ms: f64,
}

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DriveReport {
    /// Requests sent.
    pub requests: u64,
    /// What was tried and failed: nobody to send it to, no answer, or a refusal that was not planned.
    pub errors: u64,
    /// Requests that came due, sent or not.
    pub due: u64,
    /// Of these, what was not sent: nobody to send it to, nobody who signs in, or nobody who told what it needs.
    pub not_sent: u64,
    /// Requests that were sent, and whose connection or answer broke off.
    pub broken: u64,
    /// Requests that were sent, and not answered while anybody waited.
    pub timed_out: u64,
    /// Sessions that could not go on, because what they needed was not there although nobody had failed to tell it.
    pub cut_short: u64,
    /// Sessions that could not begin: nobody signed them in, or too many were there.
    pub turned_away: u64,
    /// Sessions that had not ended when patience with them did.
    pub unfinished: u64,
    /// Whether the run says anything: it kept its rate and its times, and was answered.
    pub valid: bool,
    /// Why not, when it does not.
    pub reasons: Vec<String>,
    /// 99th percentile of lateness.
    pub lateness_p99_ms: f64,
    /// By operation.
    pub operations: BTreeMap<&'static str, OperationReport>,
}

impl DriveReport {
    /// Of a run without traffic: nothing was asked, nothing is in doubt.
    #[must_use]
    pub fn silent() -> Self {
        Self { valid: true, ..Self::default() }
    }
}

/// One operation of a run.
#[derive(Clone, Debug, Serialize)]
pub struct OperationReport {
    /// Requests sent.
    pub requests: u64,
    /// Failures, also to send one.
    pub errors: u64,
    /// From the intended time to the answer, or to where patience with it ended: median.
    pub response_p50_ms: f64,
    /// 95th percentile.
    pub response_p95_ms: f64,
    /// 99th percentile.
    pub response_p99_ms: f64,
    /// Longest.
    pub response_max_ms: f64,
    /// From sending to the answer: median.
    pub service_p50_ms: f64,
    /// 99th percentile.
    pub service_p99_ms: f64,
    /// From the intended time to sending: 99th percentile.
    pub lateness_p99_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(lateness_ms: u64) -> Measured {
        Measured {
            operation: Operation::PatientRead,
            role: "clinician",
            lateness: Duration::from_millis(lateness_ms),
            service: Duration::from_millis(2),
            outcome: Outcome::Answered,
        }
    }

    #[test]
    fn a_run_in_which_nothing_came_due_says_nothing() {
        let report = Recorder::default().report(0);
        assert!(!report.valid && report.reasons == ["no request came due"], "{report:?}");
        assert!(DriveReport::silent().valid, "there was no traffic to judge");
    }

    /// Guard: a failure that is fast makes no run look faster.
    #[test]
    fn what_was_not_answered_is_no_answer() {
        let (recorder, slow) = (Recorder::default(), Duration::from_millis(100));
        for outcome in [Outcome::Answered, Outcome::Refused, Outcome::Silent, Outcome::Broken, Outcome::NotSent] {
            let service = if outcome == Outcome::Silent { slow } else { Duration::from_millis(2) };
            recorder.due();
            recorder.done(Measured { service, outcome, ..measured(0) });
        }
        recorder.with(|inner| {
            let series = &inner.by_operation[&Operation::PatientRead];
            let counts = (series.lateness.len(), series.response.len(), series.service.len());
            assert_eq!(counts, (4, 3, 2));
        });
        let report = recorder.report(0);
        let read = &report.operations["patient_read"];
        assert_eq!((report.due, report.requests, report.errors, report.not_sent), (5, 4, 4, 1));
        assert_eq!((read.requests, read.errors), (4, 4));
        assert!(read.response_max_ms >= 99.0 && read.service_p99_ms < 10.0, "{read:?}");
    }

    #[test]
    fn a_run_that_was_late_says_nothing() {
        let recorder = Recorder::default();
        recorder.due();
        recorder.done(measured(900));
        assert!(!recorder.report(0).valid);
    }

    #[test]
    fn a_run_that_missed_its_rate_says_nothing() {
        let recorder = Recorder::default();
        (0..10).for_each(|_| recorder.due());
        recorder.done(measured(0));
        let report = recorder.report(0);
        assert!(!report.valid && report.reasons[0].contains("1 of 10"), "{report:?}");
    }

    fn run_of(unanswered: usize, outcome: Outcome) -> DriveReport {
        let recorder = Recorder::default();
        for number in 0..100 {
            let outcome = if number < unanswered { outcome } else { Outcome::Answered };
            recorder.due();
            recorder.done(Measured { outcome, ..measured(0) });
        }
        recorder.report(0)
    }

    /// Guard: a gateway that takes connections and drops them, or says nothing, is no faster one.
    #[test]
    fn a_run_that_was_not_answered_says_nothing() {
        for outcome in [Outcome::Broken, Outcome::Silent, Outcome::NotSent] {
            assert!(run_of(5, outcome).valid, "{outcome:?}");
            let report = run_of(6, outcome);
            assert!(!report.valid && report.reasons[0].contains("94 of 100"), "{report:?}");
            let counts = (report.not_sent, report.broken, report.timed_out);
            let expected = match outcome {
                Outcome::NotSent => (6, 0, 0),
                Outcome::Broken => (0, 6, 0),
                _ => (0, 0, 6),
            };
            assert_eq!(counts, expected, "{outcome:?}");
        }
        assert!(run_of(50, Outcome::Refused).valid, "errors tell of refusals");
    }

    #[test]
    fn a_refusal_by_the_domain_is_no_fault() {
        let answered = |status: u16| Ok((StatusCode::from_u16(status).unwrap(), ()));
        for status in [200, 201, 400, 403, 404, 409, 422] {
            assert!(!is_fault(&answered(status)), "{status}");
        }
        for status in [401, 429, 500, 502, 503, 504] {
            assert!(is_fault(&answered(status)), "{status}");
        }
        assert!(is_fault::<()>(&Err(ClientError::Timeout)) && is_fault::<()>(&Err(ClientError::Body)));
    }

    #[test]
    fn response_counts_from_the_intended_time() {
        let recorder = Recorder::default();
        recorder.due();
        recorder.done(measured(100));
        let report = recorder.report(0);
        let read = &report.operations["patient_read"];
        assert!(read.response_p50_ms > 100.0 && read.service_p50_ms < 10.0 && report.valid, "{report:?}");
    }
}
