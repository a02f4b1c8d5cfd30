//! What the engine must do when the program is told to end.

use super::*;

/// Says yes so many times.
fn times(most: usize) -> impl Fn() -> bool + Send + Sync {
    let asked = AtomicUsize::new(0);
    move || asked.fetch_add(1, Ordering::SeqCst) < most
}

/// Guard: `absorb_items` asks before each step. What was done by then is kept, and what is left is done by the next start.
#[tokio::test]
async fn a_batch_ends_between_two_steps() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    let told: Vec<Record> = (0..10).map(|offset| Record { offset, ..sound(0) }).collect();
    engine.sink.sick.store(true, Ordering::SeqCst);
    // Ten, five, two and one of them are tried, and the first is parked; so is the second.
    assert_eq!(engine.absorb_while(&place, (0, &told), &times(5)).await.unwrap(), Step::Next(2));
    assert_eq!((held(&engine).await, engine.position(&place).await.unwrap()), (2, 2));
    assert_eq!(engine.absorb_while(&place, (2, &told[2..]), &times(0)).await.unwrap(), Step::Next(2));
    engine.sink.sick.store(false, Ordering::SeqCst);
    assert_eq!(engine.absorb(&place, 2, &told[2..]).await.unwrap(), Step::Next(10));
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (2, 8));
}

/// Guard: `drain_key` asks before each try. What ends in the middle of its tries is not parked for that.
#[tokio::test]
async fn a_drain_ends_between_two_tries() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    engine.sink.sick.store(true, Ordering::SeqCst);
    assert_eq!(engine.absorb(&place, 0, &[sound(0)]).await.unwrap(), Step::Next(1));
    let tx = engine.db.begin().await.unwrap();
    tx.commit_with(vec![Statement::same("UPDATE held_key SET reason = 'draining'")]).await.unwrap();
    assert!(engine.drain(&place, times(2)).await.unwrap());
    let rows = engine.db.query(Statement::same("SELECT reason FROM held_key")).await.unwrap();
    assert_eq!(rows[0].text(0).unwrap(), "draining");
}
