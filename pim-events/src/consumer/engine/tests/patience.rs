//! What the engine must do with what took too long.

use super::*;

/// Guard: `take_back` asks the store. What was cut short parks its key where the store answers, and waits for it where it does not.
#[tokio::test]
async fn a_store_that_is_silent_is_what_took_too_long() {
    let folder = Folder::new();
    let mut engine = engine(&folder).await;
    engine.settings.tries_max = 0;
    let place = begun(&engine).await;
    let record = sound(0);
    let took_too_long = || *engine.sink.fails.lock().unwrap() = Some(ApplyError::Later { code: PATIENCE });

    let mut readers = Vec::new();
    for _ in 0..DbSettings::default().readers_max {
        readers.push(engine.db.read().await.unwrap());
    }
    took_too_long();
    let silent = engine.absorb(&place, 0, std::slice::from_ref(&record)).await.unwrap_err();
    drop(readers);
    assert_eq!((silent.class(), held(&engine).await), (FailureClass::Transient, 0), "{silent:?}");

    took_too_long();
    assert_eq!(engine.absorb(&place, 0, std::slice::from_ref(&record)).await.unwrap(), Step::Next(1));
    let rows = engine.db.query(Statement::same("SELECT code FROM held_key")).await.unwrap();
    assert_eq!(rows[0].text(0).unwrap(), PATIENCE);
}

/// Guard: `Ahead::has` gives up when it is told to. It is asked between a command's decision and its commit.
#[tokio::test]
async fn whether_an_event_lies_ahead_is_not_asked_for_ever() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    let event = sound(0).event().unwrap();
    let ahead = Ahead { db: &engine.db, place: &place, position: Some(0) };
    let soon = || tokio::time::Instant::now() + Duration::from_millis(100);
    let mut readers = Vec::new();
    for _ in 0..DbSettings::default().readers_max {
        readers.push(engine.db.read().await.unwrap());
    }
    let asked = tokio::time::timeout(Duration::from_secs(5), ahead.has(&event, soon())).await;
    assert!(matches!(asked, Ok(Err(DbError::Late))), "{asked:?}");
    drop(readers);
    assert!(ahead.has(&event, tokio::time::Instant::now() + Duration::from_secs(10)).await.unwrap());
}
