//! The rate table never grows, never forgets a key over its limit for a fresh one, and never lets more through than allowed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pim_core::rate::{Decision, Limit, RateTable};
use tokio::time::{Instant, advance};

const SECOND: Duration = Duration::from_secs(1);

fn passes(decision: Decision) -> bool {
    matches!(decision, Decision::Pass { .. })
}

#[tokio::test(start_paused = true)]
async fn five_hundred_thousand_keys_do_not_grow_it_nor_free_a_limited_key() {
    let table = RateTable::new(1024);
    let limit = Limit::new(1, SECOND, 10).unwrap();
    let before = table.bytes();
    while passes(table.check("greedy", limit, 1)) {}
    for key in 0..500_000_u32 {
        let _fresh = table.check(&key, limit, 1);
    }
    assert_eq!(table.bytes(), before);
    assert_eq!(before, 8 * 1024);
    assert!(!passes(table.check("greedy", limit, 1)), "fresh keys are less restrictive, so they evict each other");
    advance(SECOND).await;
    assert!(passes(table.check("greedy", limit, 1)), "and one call a second is still its right");
    assert!(!passes(table.check("greedy", limit, 1)));
}

#[tokio::test(start_paused = true)]
async fn over_time_the_rate_is_exact() {
    let table = RateTable::new(4);
    let limit = Limit::new(10, SECOND, 5).unwrap();
    let begun = Instant::now();
    let mut passed = 0_u128;
    for _ in 0..2000 {
        passed += u128::from(passes(table.check("k", limit, 1)));
        advance(Duration::from_millis(37)).await;
        let due = begun.elapsed().as_millis() / 100;
        assert!(passed <= 5 + due, "{passed} after {due} intervals");
    }
    assert!(passed >= begun.elapsed().as_millis() / 100, "no call is lost to rounding: {passed}");
}

#[tokio::test(start_paused = true)]
async fn the_wait_it_names_is_exact() {
    let table = RateTable::new(4);
    let limit = Limit::new(1, SECOND, 3).unwrap();
    assert_eq!(table.check("k", limit, 2), Decision::Pass { remaining: 1 });
    let Decision::Wait(wait) = table.check("k", limit, 2) else { panic!("one is left") };
    assert_eq!(wait, SECOND);
    advance(wait - Duration::from_millis(1)).await;
    assert!(!passes(table.check("k", limit, 2)));
    advance(Duration::from_millis(1)).await;
    assert!(passes(table.check("k", limit, 2)));
}

#[tokio::test(start_paused = true)]
async fn a_call_above_the_burst_passes_after_the_wait_it_is_told_and_owes_the_rest() {
    let table = RateTable::new(4);
    let limit = Limit::new(1, SECOND, 3).unwrap();
    assert_eq!(table.check("k", limit, 1), Decision::Pass { remaining: 2 });
    for wait in [SECOND, 4 * SECOND, 4 * SECOND] {
        assert_eq!(table.check("k", limit, 4), Decision::Wait(wait));
        advance(wait - Duration::from_millis(1)).await;
        assert!(!passes(table.check("k", limit, 4)));
        advance(Duration::from_millis(1)).await;
        assert_eq!(table.check("k", limit, 4), Decision::Pass { remaining: 0 });
    }
    assert_eq!(table.check("k", limit, 1), Decision::Wait(2 * SECOND), "one second of it is owed");
    assert!(passes(table.check("vast", limit, u32::MAX)));
    assert!(!passes(table.check("vast", limit, 1)));
}

#[tokio::test(start_paused = true)]
async fn no_more_pass_where_calls_do_not_divide_the_period() {
    let table = RateTable::new(4);
    let limit = Limit::new(30_000, SECOND, 1).unwrap();
    let begun = Instant::now();
    let mut passed = 0;
    while begun.elapsed() < SECOND / 10 {
        passed += u32::from(passes(table.check("k", limit, 1)));
        advance(Duration::from_micros(1)).await;
    }
    assert!((2900..=3000).contains(&passed), "{passed} in a tenth of a second");
}

#[test]
fn threads_together_never_pass_more_than_the_limit() {
    let table = RateTable::new(64);
    let limit = Limit::new(1, 3600 * SECOND, 100).unwrap();
    let passed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    passed.fetch_add(u32::from(passes(table.check("k", limit, 1))), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 100);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    assert!(Limit::new(0, SECOND, 1).is_err());
    assert!(Limit::new(1, SECOND, 0).is_err());
    let refused = Limit::new(1_000_001, SECOND, 1).expect_err("more than one a microsecond");
    assert!(refused.to_string().contains("1,000,000 a second"), "{refused}");
    assert!(Limit::new(1, Duration::MAX, 1).is_err());
    assert!(Limit::new(1, 365 * 24 * 3600 * SECOND, u32::MAX).is_err(), "a burst of ages");
    assert!(Limit::new(1_000_000, SECOND, 1).is_ok());
}
