//! One round of probes: every server is asked what it is, and the answers are judged together.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use futures_util::future::{join, join_all};
use futures_util::stream::FuturesUnordered;
use pim_core::role::ClosedEnum as _;
use pim_core::shard::EndpointRole;

use super::{Group, PrimaryState, Standing};
use crate::backend::{DbError, Demand, NotLetIn};
use crate::cluster::CONTROL;
use crate::cluster::endpoint::{Answer, EndpointFinding, Seen, finding_of};
use crate::degradation::{Degraded, DegradedStage};

/// Connection strings and addresses are looked up every so many rounds, and whenever something is wrong.
const ROUNDS_TO_REFRESH: u64 = 4;

type Asked = Result<Answer, DbError>;

impl Group {
    /// Asks every server and draws the consequences.
    pub(in crate::cluster) async fn look(&self, is_alarmed: bool) {
        let round = self.rounds.fetch_add(1, Ordering::SeqCst) + 1;
        let is_silent = self.standing.borrow().state == PrimaryState::Silent;
        if is_alarmed || is_silent || round % ROUNDS_TO_REFRESH == 1 {
            self.refresh().await;
        }
        let patience = self.settings.probe_max;
        let before = *self.standing.borrow();
        let answers = self.ask(before.term).await;
        let after = self.judge(before, round, &answers);
        self.show(after, &answers);
        // Nobody comes back to what was left meanwhile.
        self.standing.send_modify(|now| *now = Standing { left: now.left, ..after });
        self.tell(before, after);
        if (before.endpoint, before.term) != (after.endpoint, after.term) {
            // From here on a change of the new name is noticed too.
            self.refresh().await;
        }
        if let Some(Ok(answer)) = answers.get(after.endpoint)
            && after.state != PrimaryState::Silent
            && answer.told_term != Some(after.term)
        {
            self.endpoints[after.endpoint].take_office(patience).await;
        }
        let waits = matches!(answers.get(after.endpoint), Some(Ok(answer)) if answer.waiting > 0);
        if waits && may_stand_alone(after.degraded) {
            self.release().await;
        }
    }

    /// Every server's answer. Once there is a primary of a newer term, nobody waits for those who are late.
    async fn ask(&self, known: u64) -> Vec<Asked> {
        let patience = self.settings.probe_max;
        let asked =
            self.endpoints.iter().enumerate().map(async |(index, endpoint)| (index, endpoint.ask(patience).await));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut answers: Vec<Asked> = self.endpoints.iter().map(|_| Err(DbError::Late)).collect();
        while let Some((index, answer)) = asked.next().await {
            let is_newer = answer.as_ref().is_ok_and(|it| !it.is_standby && it.term > known && self.is_ours(it));
            answers[index] = answer;
            if is_newer && known > 0 {
                break;
            }
        }
        answers
    }

    async fn refresh(&self) {
        let endpoints = join_all(self.endpoints.iter().map(|endpoint| endpoint.refresh()));
        join(endpoints, self.writer.refresh()).await;
        if let Some(owner) = &self.owner {
            owner.refresh().await;
        }
    }

    fn is_ours(&self, answer: &Answer) -> bool {
        answer.keyspace == self.keyspace && answer.shard == Some(u64::from(self.shard.0))
    }

    /// Who is the primary by these answers: the one of the highest term. A lower term than one that was seen is never it.
    pub(super) fn judge(&self, before: Standing, round: u64, answers: &[Asked]) -> Standing {
        let primaries = answers.iter().enumerate().filter_map(|(index, answer)| {
            let answer = answer.as_ref().ok().filter(|answer| !answer.is_standby && self.is_ours(answer))?;
            Some((answer.term, index == before.endpoint, index, answer))
        });
        let best = primaries
            .filter(|(term, ..)| *term >= before.term)
            .max_by_key(|&(term, is_it, index, _)| (term, is_it, std::cmp::Reverse(index)));
        let Some((term, _, endpoint, answer)) = best else {
            let has_missed = self.endpoints[before.endpoint].seen().misses > 0;
            let is_silent = answers.get(before.endpoint).is_none_or(|answer| says_it_is_gone(answer, has_missed));
            let state = if is_silent { PrimaryState::Silent } else { before.state };
            return Standing { state, round, ..before };
        };
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if (endpoint, term) != (before.endpoint, before.term) {
            self.follow(endpoint, term);
        }
        if term != before.term {
            marks.clear();
        }
        marks.note(answer.asked_at, answer.position);
        let alone = may_stand_alone(answer.degraded);
        // Whoever waits although nobody has to began before that was so.
        let state = if answer.waiting > 0 && !alone { PrimaryState::NoStandby } else { PrimaryState::Ready };
        self.writer.stand_alone(alone);
        if let Some(owner) = &self.owner {
            owner.stand_alone(alone);
        }
        Standing { endpoint, term, state, degraded: answer.degraded, round, left: before.left }
    }

    /// Has writes go to an endpoint from now on, as to the primary of a term.
    fn follow(&self, endpoint: usize, term: u64) {
        let (demand, name) = (Demand { primary: true, term }, &self.endpoints[endpoint].dsn_ref);
        self.writer.turn_to(name, demand);
        if let Some(owner) = &self.owner {
            owner.turn_to(&format!("{name}-owner"), demand);
        }
        for endpoint in &self.endpoints {
            endpoint.know_term(term);
        }
    }

    /// Takes note of what each server is.
    pub(super) fn show(&self, standing: Standing, answers: &[Asked]) {
        for (index, (endpoint, answer)) in self.endpoints.iter().zip(answers).enumerate() {
            let seen = self.seen_in(standing, index, answer);
            let before = endpoint.show(seen);
            self.signals.endpoint(before.finding, seen.finding);
            self.tell_endpoint(index, before.finding, seen.finding);
            if let Some(lag) = endpoint.lag(std::time::Instant::now()) {
                self.signals.lag(lag);
            }
        }
    }

    fn seen_in(&self, standing: Standing, index: usize, answer: &Asked) -> Seen {
        let answer = match answer {
            Ok(answer) => answer,
            // What is not known any more is not used any more. One late answer alone says little: its rows only grow older.
            Err(error) => {
                let before = self.endpoints[index].seen();
                let misses = before.misses + u32::from(is_late(error));
                let finding = if misses == 1 { before.finding } else { Some(finding_of(error)) };
                return Seen { finding, misses, ..before };
            }
        };
        if !self.is_ours(answer) {
            // A standby may not have got so far as to know whose rows it will have.
            let is_nobody = answer.shard.is_none() && answer.is_standby;
            let finding = if is_nobody { EndpointFinding::UnknownLag } else { EndpointFinding::OtherShard };
            return Seen { finding: Some(finding), ..Seen::default() };
        }
        if !answer.is_standby {
            let is_former = answer.term < standing.term;
            let waits = index == standing.endpoint && standing.state == PrimaryState::NoStandby;
            let finding = if is_former {
                Some(EndpointFinding::FormerPrimary)
            } else if waits {
                Some(EndpointFinding::NoStandby)
            } else if answer.is_read_only {
                Some(EndpointFinding::ReadOnly)
            } else {
                answer.degraded.map(|_| EndpointFinding::Degraded)
            };
            return Seen { role: Some(EndpointRole::Primary), term: answer.term, fresh_at: None, finding, misses: 0 };
        }
        // Positions compare within one history only: whose rows it has is told by the term that it has replayed.
        let follows = answer.told_term == Some(standing.term);
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh_at = marks.instant_of(answer.position).filter(|_| follows);
        let finding = if fresh_at.is_none() { Some(EndpointFinding::UnknownLag) } else { None };
        Seen { role: Some(EndpointRole::Replica), term: answer.told_term.unwrap_or(0), fresh_at, finding, misses: 0 }
    }

    /// Says what an operator has to mend about a server, or has mended, once. Of what comes and goes with failovers, or is told of the
    /// shard already, nothing is said. The server is told by its place in the map, from nought on: names are nobody's to log.
    fn tell_endpoint(&self, index: usize, before: Option<EndpointFinding>, after: Option<EndpointFinding>) {
        let shard = (self.shard != CONTROL).then_some(self.shard);
        let (before, after) = (before.filter(needs_mending), after.filter(needs_mending));
        match after {
            same if same == before => {}
            Some(finding) => {
                let (code, fix) = (finding.name(), finding.fix());
                pim_core::warn!("shard.endpoint_unsound", shard_id = shard, endpoint = index, code = code, fix = fix);
            }
            None => pim_core::info!("shard.endpoint_sound", shard_id = shard, endpoint = index),
        }
    }

    fn tell_degraded(&self, before: Standing, after: Standing) {
        let stage = |standing: Standing| standing.degraded.map(|degraded| degraded.stage);
        if stage(before) == stage(after) {
            return;
        }
        let shard = (self.shard != CONTROL).then_some(self.shard);
        match stage(after) {
            Some(DegradedStage::On) => pim_core::error!("shard.degraded", shard_id = shard, term = after.term),
            Some(DegradedStage::Ending) => {
                pim_core::warn!("shard.degrading_unconfirmed", shard_id = shard, term = after.term);
            }
            None => pim_core::info!("shard.degrading_ended", shard_id = shard, term = after.term),
        }
    }

    /// Says what has changed, once.
    fn tell(&self, before: Standing, after: Standing) {
        let shard = (self.shard != CONTROL).then_some(self.shard);
        if before.term != 0 && (before.term, before.endpoint) != (after.term, after.endpoint) {
            self.signals.failed_over();
            // What the one before acknowledged alone may be lost.
            let degraded = before.degraded.is_some();
            pim_core::warn!(
                "shard.primary_changed",
                shard_id = shard,
                term = after.term,
                term_before = before.term,
                endpoint = after.endpoint,
                endpoint_before = before.endpoint,
                degraded_before = degraded
            );
        }
        self.tell_degraded(before, after);
        if before.state == after.state {
            return;
        }
        match after.state {
            PrimaryState::Ready => pim_core::info!("shard.primary_ready", shard_id = shard, term = after.term),
            PrimaryState::NoStandby => {
                pim_core::error!("shard.commits_wait_for_standby", shard_id = shard, term = after.term);
            }
            PrimaryState::Silent => pim_core::error!("shard.primary_silent", shard_id = shard, term = after.term),
        }
    }
}

const fn needs_mending(finding: &EndpointFinding) -> bool {
    use EndpointFinding::{FormerPrimary, NotDurable, OtherShard, ReadOnly, Refused};
    matches!(finding, Refused | NotDurable | OtherShard | FormerPrimary | ReadOnly)
}

/// Whether commits need wait for no standby.
fn may_stand_alone(degraded: Option<Degraded>) -> bool {
    degraded.is_some_and(|degraded| degraded.stage == DegradedStage::On)
}

/// Whether a server does not do its office any more; one that only lets nobody else in still may.
fn says_it_is_gone(answer: &Asked, has_missed: bool) -> bool {
    match answer {
        // It is a standby by now, another shard's, or of a term that is over.
        Ok(_) => true,
        Err(error) if is_late(error) => has_missed,
        Err(error) => matches!(
            error,
            DbError::Unreachable { .. }
                | DbError::NotLetIn { why: NotLetIn::Starting, .. }
                | DbError::Lost
                | DbError::Closed
        ),
    }
}

const fn is_late(error: &DbError) -> bool {
    matches!(error, DbError::Late | DbError::Unanswered)
}
