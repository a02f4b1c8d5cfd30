//! What a server refuses a row for is said without anything of the row: in errors, their reasons, problems and the log.

use std::error::Error;

use pim_core::problem::IntoProblem as _;
use pim_data::backend::{DbError, Statement};
use pim_data::unit::UnitError;

use super::world::World;
use crate::lines::Lines;

/// Somebody who does not exist.
const PERSON: &str = "Zoraide Quillington";

/// What refuses a name that begins so, and in which words of a server it would be told.
const RULES: [(&str, &str); 4] = [
    ("checked ", "CHECK (name NOT LIKE 'checked %')"),
    ("cast ", "CHECK (name NOT LIKE 'cast %' OR substr(name, 6)::int > 0)"),
    ("dated ", "CHECK (name NOT LIKE 'dated %' OR substr(name, 7)::timestamptz > now())"),
    ("parsed ", "CHECK (name NOT LIKE 'parsed %' OR substr(name, 8)::jsonb IS NOT NULL)"),
];

/// All that an error shows.
fn shown(error: &dyn Error) -> String {
    let (mut text, mut reason) = (format!("{error} {error:?} {error:#?}"), error.source());
    while let Some(deeper) = reason {
        text = format!("{text}: {deeper} {deeper:?} {deeper:#?}");
        reason = deeper.source();
    }
    text
}

fn holds_nobody(what: &str, text: &str) {
    for part in PERSON.split(' ') {
        assert!(!text.contains(part), "{what}: {text}");
    }
}

#[tokio::test]
async fn of_a_unit_in_whatever_way_it_is_refused() {
    let (lines, _listening) = Lines::listen();
    let world = World::new(1).await;
    let (first, second) = (world.register().await, world.register().await);
    let rules = RULES.map(|(_, rule)| format!("ADD {rule}")).join(", ");
    let lone = "CREATE UNIQUE INDEX lone ON account_row (name) WHERE name <> 'Ada Example'";
    let alter = format!("{lone}; ALTER TABLE account_row {rules}");
    world.raw(first.id, &alter).await.expect("alters");
    world.change(first.id, |account| account.name = PERSON.to_owned()).await.expect("the first of the name");
    let named = async |name: String| {
        let refused = world.change(second.id, |account| account.name.clone_from(&name)).await;
        refused.expect_err("is refused")
    };
    let taken = named(PERSON.to_owned()).await;
    assert!(matches!(taken, UnitError::AlreadyExists { .. }), "{taken:?}");
    let mut refused = vec![taken];
    for (beginning, _) in RULES {
        refused.push(named(format!("{beginning}{PERSON}")).await);
    }
    let engine = |error: &&UnitError| matches!(error, UnitError::Database(DbError::Engine(_)));
    assert_eq!(refused.iter().filter(engine).count(), 3, "{refused:?}");
    for error in refused {
        holds_nobody("an error", &shown(&error));
        holds_nobody("a problem", &format!("{:?}", error.into_problem()));
    }
    holds_nobody("the log", &format!("{:?}", lines.of("shard.call_failed")));
}

#[tokio::test]
async fn of_a_statement_too() {
    let world = World::new(1).await;
    let account = world.register().await;
    let above = world.all_powerful(account.id).await;
    let make = "CREATE TABLE someone (name text NOT NULL UNIQUE CHECK (name <> 'nobody'), short varchar(3), \
                age int, EXCLUDE USING btree (short WITH =))";
    world.raw(account.id, make).await.expect("makes");
    let insert = "INSERT INTO someone (name, short) VALUES (?, ?)";
    let insert = |short: &str| Statement::same(insert).bind(PERSON).bind(short);
    above.query(insert("Zor")).await.expect("the first of the name");
    let raise = format!("DO $$ BEGIN RAISE EXCEPTION '{PERSON}' USING DETAIL = '{PERSON}'; END $$");
    let missing = format!("INSERT INTO someone (name, short) VALUES (NULL, '{}')", &PERSON[..3]);
    let other = format!("INSERT INTO someone (name, short) VALUES ('{PERSON} II', '{}')", &PERSON[..3]);
    let cast = format!("SELECT '{PERSON}'::int");
    let array = format!("SELECT '{{{PERSON}'::text[]");
    let zone = format!("SELECT now() AT TIME ZONE '{PERSON}'");
    for text in [raise, missing, other, cast, array, zone] {
        let error = world.raw(account.id, &text).await.expect_err("is refused");
        holds_nobody(&text, &shown(&error));
    }
    for short in ["Zoo", "Zoraide"] {
        let error = above.query(insert(short)).await.expect_err("is refused");
        holds_nobody(short, &shown(&error));
    }
}

#[tokio::test]
async fn and_what_is_wrong_with_a_statement_is_still_told() {
    let world = World::new(1).await;
    let account = world.register().await;
    let error = world.raw(account.id, "SELECT points FROM nowhere").await.expect_err("is refused");
    let told = shown(&error);
    assert!(told.contains("42P01") && told.contains("nowhere"), "{told}");
    let error = world.raw(account.id, "SELECT 'x'::int").await.expect_err("is refused");
    let told = shown(&error);
    assert!(told.contains("22P02"), "{told}");
    // How a damaged page is found.
    let raise = "DO $$ BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001'; END $$";
    let told = shown(&world.raw(account.id, raise).await.expect_err("is refused"));
    assert!(told.contains("XX001") && told.contains("block 7"), "{told}");
}
