//! A fault strikes where and as often as it was leased, and ends with its lease, whoever forgot it.

use std::time::Duration;

use pim_core::chaos::{ChaosRegistry, Fault, FaultKind, LATENCY_MAX, LEASE_MAX, LeaseError, Share};
use pim_core::clock::{Clock, Timestamp};
use pim_core::problem::IntoProblem as _;
use tokio::time::{Instant, sleep, timeout};

pim_core::closed_enum! {
    enum Point { Commit = "commit", Relay = "relay" }
}

const SECOND: Duration = Duration::from_secs(1);

fn registry() -> (ChaosRegistry<Point>, Clock) {
    let clock = Clock::manual(Timestamp::from_micros(0));
    (ChaosRegistry::new(clock.clone()), clock)
}

#[tokio::test]
async fn an_error_ends_with_its_lease() {
    let (chaos, clock) = registry();
    assert!(chaos.inject(Point::Commit).await.is_ok());
    let lease = chaos.arm(Point::Commit, Fault::Error, Share::ALL, 10 * SECOND).unwrap();
    assert_eq!(lease.ends_at.as_micros(), 10_000_000);
    assert_eq!(chaos.clone().inject(Point::Commit).await.unwrap_err().to_string(), "fault injected at commit");
    assert!(chaos.inject(Point::Relay).await.is_ok(), "and strikes nowhere else");
    clock.advance(10 * SECOND - Duration::from_micros(1));
    let injected = chaos.inject(Point::Commit).await.unwrap_err();
    assert_eq!(injected.into_problem().kind().slug, "unavailable");
    clock.advance(Duration::from_micros(1));
    assert!(chaos.inject(Point::Commit).await.is_ok());
    assert_eq!((chaos.active(), chaos.lease(Point::Commit), chaos.disarm(Point::Commit)), (vec![], None, None));
    assert_eq!((chaos.struck(Point::Commit), chaos.struck(Point::Relay)), (2, 0));
    // And a new one can be taken in its place.
    let again = chaos.arm(Point::Commit, Fault::Error, Share::ALL, SECOND).unwrap();
    assert_eq!(chaos.active(), [(Point::Commit, again)]);
    assert!(chaos.inject(Point::Commit).await.is_err());
    chaos.disarm_all();
    assert!(chaos.inject(Point::Commit).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn latency_is_added_but_not_beyond_the_lease() {
    let (chaos, _) = registry();
    chaos.arm(Point::Commit, Fault::Latency(3 * SECOND), Share::ALL, 60 * SECOND).unwrap();
    let begun = Instant::now();
    assert!(chaos.inject(Point::Commit).await.is_ok());
    assert_eq!(begun.elapsed(), 3 * SECOND);
    let clock = Clock::manual(Timestamp::from_micros(0));
    let chaos = ChaosRegistry::<Point>::new(clock.clone());
    chaos.arm(Point::Commit, Fault::Latency(3 * SECOND), Share::ALL, SECOND).unwrap();
    let ends = async {
        sleep(SECOND).await;
        clock.advance(SECOND);
    };
    let begun = Instant::now();
    let (outcome, ()) = tokio::join!(chaos.inject(Point::Commit), ends);
    assert!(outcome.is_ok() && begun.elapsed() <= SECOND + Duration::from_millis(50), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_call_goes_on_when_the_lease_ends_or_is_ended() {
    let (chaos, clock) = registry();
    chaos.arm(Point::Relay, Fault::Stall, Share::ALL, LEASE_MAX).unwrap();
    assert!(timeout(60 * SECOND, chaos.inject(Point::Relay)).await.is_err(), "it hangs");
    let stalled = tokio::spawn({
        let chaos = chaos.clone();
        async move { chaos.inject(Point::Relay).await }
    });
    sleep(SECOND).await;
    assert!(!stalled.is_finished());
    clock.advance(LEASE_MAX);
    assert!(timeout(SECOND, stalled).await.unwrap().unwrap().is_ok());
    chaos.arm(Point::Relay, Fault::Stall, Share::ALL, LEASE_MAX).unwrap();
    let ended = async {
        sleep(SECOND).await;
        assert!(chaos.disarm(Point::Relay).is_some());
    };
    let (outcome, ()) = timeout(2 * SECOND, async { tokio::join!(chaos.inject(Point::Relay), ended) }).await.unwrap();
    assert!(outcome.is_ok());
}

/// As if it were set back all the time.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_prolongs_no_lease() {
    let (chaos, _stands_still) = registry();
    chaos.arm(Point::Commit, Fault::Error, Share::ALL, LEASE_MAX).unwrap();
    chaos.arm(Point::Relay, Fault::Stall, Share::ALL, LEASE_MAX).unwrap();
    let stalled = tokio::spawn({
        let chaos = chaos.clone();
        async move { chaos.inject(Point::Relay).await }
    });
    sleep(LEASE_MAX - Duration::from_millis(1)).await;
    assert!(chaos.inject(Point::Commit).await.is_err() && !stalled.is_finished());
    sleep(Duration::from_millis(1)).await;
    assert!(chaos.inject(Point::Commit).await.is_ok());
    assert_eq!((chaos.active(), chaos.disarm(Point::Relay)), (vec![], None));
    assert!(timeout(SECOND, stalled).await.unwrap().unwrap().is_ok());
    chaos.arm(Point::Commit, Fault::Error, Share::ALL, SECOND).unwrap();
    assert!(chaos.inject(Point::Commit).await.is_err(), "the same end by the clock, but another lease");
}

#[tokio::test]
async fn a_share_strikes_exactly_so_many_of_a_hundred() {
    for percent in [1, 7, 50, 99, 100] {
        let (chaos, _) = registry();
        chaos.arm(Point::Commit, Fault::Error, Share::percent(percent).unwrap(), SECOND).unwrap();
        let mut struck = 0;
        for _ in 0..1000 {
            struck += u32::from(chaos.inject(Point::Commit).await.is_err());
        }
        assert_eq!(struck, u32::from(percent) * 10);
    }
}

#[test]
fn leases_without_bounds_are_refused() {
    let (chaos, _) = registry();
    let arm = |fault, duration| chaos.arm(Point::Commit, fault, Share::ALL, duration);
    assert_eq!(arm(Fault::Error, Duration::ZERO), Err(LeaseError::Duration));
    assert_eq!(arm(Fault::Error, LEASE_MAX + SECOND), Err(LeaseError::Duration));
    assert_eq!(arm(Fault::Latency(Duration::ZERO), SECOND), Err(LeaseError::Latency));
    assert_eq!(arm(Fault::Latency(LATENCY_MAX + SECOND), SECOND), Err(LeaseError::Latency));
    assert_eq!((Share::percent(0), Share::percent(101)), (Err(LeaseError::Share), Err(LeaseError::Share)));
    assert_eq!(chaos.active(), []);
    assert!(arm(Fault::Latency(LATENCY_MAX), LEASE_MAX).is_ok());
    assert_eq!(Fault::Stall.kind(), FaultKind::Stall);
    assert_eq!(LeaseError::Share.into_problem().kind().slug, "invalid-body");
}
