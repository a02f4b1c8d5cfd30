use std::sync::Arc;
use std::time::{Duration, Instant};

use pim_core::shard::{EndpointRole, ShardId};

use super::*;
use crate::backend::{Dial, SecretError, Secrets};
use crate::cluster::endpoint::Answer;

/// Nothing in here connects.
#[derive(Debug)]
struct Nowhere;

impl Secrets for Nowhere {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        Err(SecretError::Absent { name: name.to_owned(), place: "nowhere".to_owned() })
    }
}

fn group(endpoints: usize) -> Group {
    let settings = ServerSettings { connections_max: 4, ..ServerSettings::default() };
    let dial = Dial::new(Arc::new(Nowhere), settings);
    let names: Vec<_> = (0..endpoints).map(|number| format!("e-{number}")).collect();
    let endpoint = |name: &String| Endpoint::new(name, name, &dial).expect("an endpoint");
    Group::new(Members {
        shard: ShardId(3),
        keyspace: "pim".to_owned(),
        endpoints: names.iter().map(endpoint).collect(),
        primary: 0,
        writer: Db::dial("e-0", dial.clone()).expect("a database"),
        owner: None,
        alarm: Arc::default(),
        settings,
        signals: DataSignals::unbound(),
    })
}

fn primary(term: u64, position: u64) -> Result<Answer, DbError> {
    Ok(Answer {
        asked_at: Instant::now(),
        is_standby: false,
        term,
        position,
        told_term: Some(term),
        keyspace: "pim".to_owned(),
        shard: Some(3),
        waiting: 0,
        degraded: None,
        is_read_only: false,
    })
}

fn standby(told_term: u64, position: u64) -> Result<Answer, DbError> {
    primary(0, position).map(|answer| Answer { is_standby: true, told_term: Some(told_term), ..answer })
}

fn gone() -> Result<Answer, DbError> {
    Err(DbError::Lost)
}

/// Judges a round and returns who is the primary of which term, and whether it can be used.
fn after(group: &Group, answers: &[Result<Answer, DbError>]) -> (usize, u64, PrimaryState) {
    let before = *group.standing.borrow();
    let standing = group.judge(before, group.rounds.fetch_add(1, Ordering::SeqCst) + 1, answers);
    group.show(standing, answers);
    group.standing.send_replace(standing);
    (standing.endpoint, standing.term, standing.state)
}

#[test]
fn the_primary_of_the_highest_term_is_followed_and_one_of_a_lower_term_never() {
    use PrimaryState::{Ready, Silent};
    let group = group(2);
    assert_eq!(after(&group, &[primary(1, 100), standby(1, 100)]), (0, 1, Ready));
    assert_eq!(after(&group, &[gone(), standby(1, 100)]), (0, 1, Silent));
    assert_eq!(after(&group, &[gone(), primary(2, 110)]), (1, 2, Ready));
    assert_eq!(group.writer.name(), "e-1");
    assert_eq!(after(&group, &[primary(1, 900), primary(2, 120)]), (1, 2, Ready), "the former one is back");
    assert_eq!(group.endpoints[0].health().finding, Some(EndpointFinding::FormerPrimary));
    assert_eq!(after(&group, &[primary(1, 900), gone()]), (1, 2, Silent), "also when nobody else is there");
    assert_eq!(group.writer.name(), "e-1");
    assert_eq!(after(&group, &[primary(3, 130), standby(2, 120)]), (0, 3, Ready));
}

#[test]
fn whoever_it_is_stays_it_and_strangers_never_are() {
    let group = group(2);
    assert_eq!(after(&group, &[standby(1, 1), primary(1, 1)]).0, 1);
    assert_eq!(after(&group, &[primary(1, 1), primary(1, 1)]).0, 1, "two names of one server");
    let stranger = primary(9, 1).map(|answer| Answer { shard: Some(4), ..answer });
    assert_eq!(after(&group, &[stranger, primary(1, 1)]), (1, 1, PrimaryState::Ready));
    assert_eq!(group.endpoints[0].health().finding, Some(EndpointFinding::OtherShard));
    assert_eq!(group.stranger(), Some("e-0"));
    let early = standby(1, 1).map(|answer| Answer { shard: None, ..answer });
    after(&group, &[early, primary(1, 1)]);
    assert_eq!(group.endpoints[0].health().finding, Some(EndpointFinding::UnknownLag), "it does not know yet");
}

#[test]
fn one_late_answer_silences_nobody_and_two_do() {
    let group = group(1);
    assert_eq!(after(&group, &[primary(1, 1)]).2, PrimaryState::Ready);
    assert_eq!(after(&group, &[Err(DbError::Unanswered)]).2, PrimaryState::Ready);
    assert_eq!(after(&group, &[Err(DbError::Unanswered)]).2, PrimaryState::Silent);
    assert_eq!(after(&group, &[primary(1, 1)]).2, PrimaryState::Ready);
    let full = Err(DbError::NotLetIn { place: "e-0".to_owned(), why: crate::backend::NotLetIn::TooMany });
    assert_eq!(after(&group, &[full]).2, PrimaryState::Ready, "those who are in may go on");
}

#[test]
fn a_replica_answers_when_its_lag_is_known_and_within_the_bound() {
    let group = group(2);
    let fit = |most| group.replica(most, &[]).map(|(index, _)| index);
    assert_eq!(fit(None), None, "nobody has been asked yet");
    after(&group, &[primary(1, 100), standby(1, 99)]);
    assert_eq!(fit(None), None, "it is behind everything that is known");
    assert_eq!(group.endpoints[1].health().finding, Some(EndpointFinding::UnknownLag));
    after(&group, &[primary(1, 200), standby(1, 150)]);
    assert_eq!(fit(None), Some(1));
    assert_eq!(fit(Some(Duration::ZERO)), None, "as old as the first mark");
    assert_eq!(group.replica(None, &[1]).map(|(index, _)| index), None, "it was asked already");
    let (_, endpoint) = group.replica(None, &[]).expect("a replica");
    for _ in 0..3 {
        endpoint.breaker.fail(Instant::now(), Instant::now());
    }
    assert_eq!(fit(None), None, "calls to it fail");
    endpoint.breaker.succeed();
    after(&group, &[primary(1, 300), gone()]);
    assert_eq!(fit(None), None, "it is not there");
}

#[test]
fn a_replica_of_another_history_has_no_known_lag() {
    let group = group(3);
    after(&group, &[primary(1, 100), standby(1, 100), standby(1, 100)]);
    // The third had more of the lost primary's log than the one that was promoted.
    after(&group, &[gone(), primary(2, 110), standby(1, 500)]);
    assert_eq!(group.endpoints[2].health().finding, Some(EndpointFinding::UnknownLag));
    assert_eq!(group.replica(None, &[]).map(|(index, _)| index), None);
    after(&group, &[gone(), primary(2, 120), standby(2, 120)]);
    assert_eq!(group.replica(None, &[]).map(|(index, _)| index), Some(2));
    assert_eq!(group.endpoints[2].health().role, Some(EndpointRole::Replica));
}

#[test]
fn of_two_replicas_the_less_busy_one_is_asked() {
    let group = group(3);
    after(&group, &[primary(1, 100), standby(1, 100), standby(1, 100)]);
    let _busy: Vec<_> = (0..50).map(|_| group.endpoints[1].load.begin(Instant::now())).collect();
    assert!((0..100).all(|_| group.replica(None, &[]).map(|(index, _)| index) == Some(2)));
}

#[tokio::test]
async fn reads_fall_back_under_a_cap() {
    let group = group(2);
    let soon = || tokio::time::Instant::now() + Duration::from_millis(20);
    let first = group.fall_back(soon()).await.expect("half of the connections");
    let second = group.fall_back(soon()).await.expect("half of the connections");
    assert!(matches!(group.fall_back(soon()).await, Err(DbError::Late)));
    drop(first);
    drop((group.fall_back(soon()).await.expect("a place is free again"), second));
}

#[tokio::test]
async fn whoever_waits_for_a_primary_goes_on_with_the_next_one_or_is_told_why() {
    let group = Arc::new(group(2));
    let soon = || tokio::time::Instant::now() + Duration::from_millis(20);
    after(&group, &[gone(), standby(1, 1)]);
    let refused = group.ready(soon(), Need::Read).await;
    assert!(matches!(&refused, Err(DbError::NoPrimary { place }) if place == "e-0"), "{refused:?}");
    let waiting = tokio::spawn({
        let group = Arc::clone(&group);
        async move { group.ready(tokio::time::Instant::now() + Duration::from_secs(20), Need::Write).await }
    });
    tokio::task::yield_now().await;
    after(&group, &[gone(), primary(2, 1)]);
    waiting.await.expect("no panic").expect("goes on");
    let waits = primary(2, 1).map(|answer| Answer { waiting: 1, ..answer });
    after(&group, &[gone(), waits]);
    group.ready(soon(), Need::Read).await.expect("reads go on");
    let refused = group.ready(soon(), Need::Write).await;
    assert!(matches!(&refused, Err(DbError::NoStandby { place }) if place == "e-1"), "{refused:?}");
}

#[tokio::test]
async fn a_failed_call_waits_for_a_round_that_began_afterwards() {
    let group = group(1);
    after(&group, &[primary(1, 1)]);
    let soon = tokio::time::Instant::now() + Duration::from_millis(20);
    // The last round says that all is well, but it was before the call failed.
    let lost = || DbError::ReadOnly { place: "e-0".to_owned() };
    assert!(matches!(group.recover(soon, Need::Read, lost()).await, Err(DbError::NoPrimary { .. })));
    assert!(matches!(group.recover(soon, Need::Read, DbError::Busy).await, Err(DbError::Busy)), "no server's fault");
}

/// Guard: `Group::recover` and `Group::ready`. Repeats must not become most of the load of a server that comes back.
#[tokio::test]
async fn calls_are_repeated_for_as_long_as_calls_have_paid_for_it() {
    let group = group(1);
    after(&group, &[primary(1, 1)]);
    // As of an hour on: until then time earns nothing, and calls do.
    let later = Instant::now() + Duration::from_secs(3_600);
    while group.budget.withdraw(later) {}
    let soon = || tokio::time::Instant::now() + Duration::from_millis(20);
    let repeat = async || group.recover(soon(), Need::Read, DbError::Closed).await;
    assert!(matches!(repeat().await, Err(DbError::Closed)), "nothing is left");
    for _ in 0..5 {
        group.ready(soon(), Need::Read).await.expect("serves");
    }
    assert!(matches!(repeat().await, Err(DbError::NoPrimary { .. })), "five calls pay for one, which waits");
    assert!(matches!(repeat().await, Err(DbError::Closed)), "and for no other");
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let group = group(1);
    after(&group, &[gone()]);
    let all = u32::try_from(PARKED_MAX).expect("a small number");
    let _others = group.parked.acquire_many(all).await.expect("places");
    let until = tokio::time::Instant::now() + Duration::from_secs(3600);
    assert!(matches!(group.ready(until, Need::Write).await, Err(DbError::NoPrimary { .. })));
}

/// What a primary says that has a commit waiting for a standby.
fn waiting(degraded: Option<Degraded>) -> Result<Answer, DbError> {
    primary(1, 100).map(|answer| Answer { waiting: 1, degraded, ..answer })
}

#[test]
fn commits_need_wait_for_nobody_while_the_primary_says_that_degrading_is_on() {
    let since = pim_core::clock::Timestamp::from_micros(7);
    let degraded = |stage| Some(Degraded { since, stage });
    let group = group(1);
    assert_eq!(after(&group, &[waiting(None)]).2, PrimaryState::NoStandby);
    assert!(!group.writer.stands_alone());
    let on = degraded(DegradedStage::On);
    assert_eq!(after(&group, &[waiting(on)]).2, PrimaryState::Ready, "whoever waits began before");
    assert!(group.writer.stands_alone());
    assert_eq!(group.endpoints[0].health().finding, Some(EndpointFinding::Degraded));
    assert_eq!(after(&group, &[gone()]).2, PrimaryState::Silent);
    assert_eq!(group.degraded(), on, "what may be lost with it is not forgotten");
    let ending = degraded(DegradedStage::Ending);
    assert_eq!(after(&group, &[waiting(ending)]).2, PrimaryState::NoStandby);
    assert!(!group.writer.stands_alone());
    after(&group, &[primary(1, 200).map(|answer| Answer { degraded: ending, ..answer })]);
    assert_eq!(group.endpoints[0].health().finding, Some(EndpointFinding::Degraded), "nobody has confirmed it");
    after(&group, &[primary(1, 300)]);
    assert_eq!((group.endpoints[0].health().finding, group.degraded()), (None, None));
}

/// Guard: `Group::recover`. The same call would be refused until the budget or the caller's time is used up.
#[tokio::test]
async fn whoever_is_refused_by_a_setting_is_not_sent_there_again() {
    let group = group(1);
    let set_so = || primary(1, 1).map(|answer| Answer { is_read_only: true, ..answer });
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    let refused = || DbError::ReadOnly { place: "e-0".to_owned() };
    let recover = async |answer| {
        let look = async { after(&group, &[answer]) };
        tokio::join!(group.recover(until, Need::Write, refused()), look).0
    };
    assert!(matches!(recover(set_so()).await, Err(DbError::ReadOnly { .. })));
    assert!(recover(primary(1, 1)).await.is_ok(), "it takes writes again");
}
