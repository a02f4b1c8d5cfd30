//! Of a read model a permit shows exactly the rows of its scope, however a query is put; what could see past that is not run.

use async_trait::async_trait;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Policy, Reach, Read, Scope};
use pim_data::backend::{Row, SqlPair, Statement};
use pim_data::consistency::ConsistencyToken;
use pim_data::scope::{ScopeError, ScopedTable};
use pim_events::{ApplyError, Event, Projection, ReadTable, ReadTx, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::rig::{Folder, Rig};

pim_core::roles! { enum Caller { Reader = "reader", Clerk = "clerk", Owner = "owner" } }
pim_core::actions! { enum Action { Look = "look": Read } }
pim_core::resources! { enum Resource { Shelf = "shelf" } }

/// Books of members at branches, and sums that are nobody's.
struct Shelf {
    scopes: &'static [ScopedTable],
}

const SCOPES: &[ScopedTable] = &[ScopedTable { name: "shelf", home: Some("member"), facility: Some("branch") }];
const ROWS: i64 = 50;
/// Members and branches; one more stands for nobody and nowhere.
const EACH: u128 = 4;

#[async_trait]
impl Projection for Shelf {
    fn name(&self) -> &'static str {
        "shelf"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE shelf (number bigint PRIMARY KEY, member uuid, branch uuid); CREATE TABLE sums (number bigint)",
            "CREATE TABLE shelf (number INTEGER PRIMARY KEY, member BLOB, branch BLOB); CREATE TABLE sums (number INTEGER)",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[
            ReadTable { name: "shelf", columns: &["number", "member", "branch"] },
            ReadTable { name: "sums", columns: &["number"] },
        ]
    }

    fn scopes(&self) -> &'static [ScopedTable] {
        self.scopes
    }

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn apply(&self, _tx: &mut ReadTx, _batch: &[Event]) -> Result<(), ApplyError> {
        Ok(())
    }
}

const SHELF: Shelf = Shelf { scopes: SCOPES };

fn uuid(number: u128) -> Option<Uuid> {
    // No digit alone tells them apart, and each has letters.
    (number < EACH).then(|| Uuid::from_u128((0xabcd_ef00_u128 << 64) | (number + 1)))
}

/// Whose a row is, and where.
fn place(number: i64) -> (Option<Uuid>, Option<Uuid>) {
    let number = u128::try_from(number).expect("is not negative");
    (uuid(number % (EACH + 1)), uuid(number / (EACH + 1) % (EACH + 1)))
}

async fn filled(folder: &Folder) -> Rig {
    let rig = Rig::open(folder.path()).await;
    rig.store.install(&SHELF).await.expect("is sound");
    let mut tx = rig.store.db().begin().await.expect("begins");
    for number in 0..ROWS {
        let (member, branch) = place(number);
        let row = Statement::same("INSERT INTO shelf VALUES (?, ?, ?)").bind(number).bind(member).bind(branch);
        tx.query(row).await.expect("writes");
    }
    tx.query(Statement::same("INSERT INTO sums VALUES (50)")).await.expect("writes");
    tx.commit().await.expect("commits");
    rig
}

fn permit(scope: &Scope) -> Permit<Read> {
    let policy = Policy::builder(1)
        .permit(Caller::Reader, Action::Look, Resource::Shelf, Reach::Own)
        .permit(Caller::Clerk, Action::Look, Resource::Shelf, Reach::SameFacility)
        .permit(Caller::Owner, Action::Look, Resource::Shelf, Reach::All);
    let actor = |role| Actor::new("u-1".parse().expect("a subject"), role);
    let actor = match scope {
        Scope::Own(own) => actor(Caller::Reader).with_own_record(*own),
        Scope::Facilities(facilities) => actor(Caller::Clerk).with_facilities(facilities).expect("a few"),
        Scope::All => actor(Caller::Owner),
    };
    policy.build().expect("is sound").authorize(&actor, Action::Look, Resource::Shelf).expect("is granted")
}

fn scopes() -> impl Strategy<Value = Scope> {
    let one = || (0..EACH).prop_map(|number| uuid(number).expect("somebody"));
    prop_oneof![
        one().prop_map(Scope::Own),
        proptest::collection::vec(one(), 1..4).prop_map(|all| Scope::Facilities(all.into())),
        Just(Scope::All),
    ]
}

fn numbers(rows: &[Row]) -> Vec<i64> {
    rows.iter().map(|row| row.int(0).expect("a number")).collect()
}

/// Guard: `scope::within`.
#[test]
fn as_a_plain_filter_has_it() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = Folder::new();
    let rig = runtime.block_on(filled(&folder));
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(scopes(), 0..ROWS), |(scope, from)| {
        runtime.block_on(agree(&rig, &scope, from));
        Ok(())
    });
    outcome.expect("store and filter agree");
}

async fn agree(rig: &Rig, scope: &Scope, from: i64) {
    let permit = permit(scope);
    assert_eq!(permit.scope(), scope);
    let seen: Vec<i64> = (0..ROWS)
        .filter(|number| {
            let (member, branch) = place(*number);
            scope.sees(member.unwrap_or(Uuid::nil()), branch)
        })
        .collect();
    let behind: Vec<i64> = seen.iter().copied().filter(|number| *number >= from).take(7).collect();
    let all = |text| Statement::same(text);
    for (statement, expected) in [
        (all("SELECT number FROM shelf ORDER BY number"), &seen),
        (all("SELECT s.number FROM Shelf AS s WHERE 1 = 0 OR s.member IS NULL OR 1 = 1 ORDER BY 1"), &seen),
        (all("SELECT number FROM shelf WHERE number >= ? ORDER BY number LIMIT ?").bind(from).bind(7_i64), &behind),
        (
            all("SELECT number FROM (SELECT number FROM shelf UNION SELECT number FROM shelf) x \
                 WHERE number IN (SELECT number FROM shelf) ORDER BY number"),
            &seen,
        ),
        (all("SELECT s.number FROM shelf s LEFT JOIN shelf t ON t.number = s.number ORDER BY t.number"), &seen),
    ] {
        let told = format!("{scope:?} {statement:?}");
        let rows = rig.store.select(&permit, &SHELF, statement).await.expect("reads");
        assert_eq!(&numbers(&rows), expected, "{told}");
    }
    let sums = rig.store.select(&permit, &SHELF, all("SELECT number FROM sums")).await.expect("reads");
    assert_eq!(!sums.is_empty(), *scope == Scope::All, "of what is nobody's, {scope:?}");
}

#[tokio::test]
async fn what_could_see_past_it_is_not_run() {
    let folder = Folder::new();
    let rig = filled(&folder).await;
    for (text, refusal) in [
        ("SELECT consumer FROM inbox_head", ScopeError::Table { name: "inbox_head".to_owned() }),
        ("SELECT number FROM shelf, inbox_head", ScopeError::Table { name: "inbox_head".to_owned() }),
        ("SELECT number FROM main.shelf", ScopeError::Table { name: "main.shelf".to_owned() }),
        ("DELETE FROM shelf", ScopeError::Form),
        ("SELECT 1; SELECT number FROM shelf", ScopeError::Form),
    ] {
        // Also for somebody who may see all: it is the program that is mistaken.
        let refused = rig.store.select(&permit(&Scope::All), &SHELF, Statement::same(text)).await;
        assert!(matches!(&refused, Err(StoreError::Scope(found)) if *found == refusal), "{text}: {refused:?}");
    }
    let numbered = Statement::of(SqlPair::joined(
        SqlPair::generated_postgres("SELECT number FROM shelf WHERE number = ?".to_owned()),
        SqlPair::same("SELECT number FROM shelf WHERE number = ?"),
    ));
    let refused = rig.store.select(&permit(&Scope::All), &SHELF, numbered.bind(1_i64)).await;
    assert!(matches!(refused, Err(StoreError::Scope(ScopeError::Form))), "{refused:?}");
}

#[tokio::test]
async fn a_column_that_is_not_there_is_named_when_the_model_is_installed() {
    const TABLE: &[ScopedTable] = &[ScopedTable { name: "shelves", home: None, facility: None }];
    const COLUMN: &[ScopedTable] = &[ScopedTable { name: "shelf", home: Some("membre"), facility: Some("branch") }];
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    for (scopes, table, column) in [(TABLE, "shelves", "*"), (COLUMN, "shelf", "membre")] {
        let refused = rig.store.install(&Shelf { scopes }).await.unwrap_err();
        let StoreError::Lacks { table: told, column: missing, .. } = refused else { panic!("{refused:?}") };
        assert_eq!((told, missing), (table, column));
    }
}

/// Guard: `ReadStore::select_after` is `query_after` within a scope.
#[tokio::test]
async fn within_the_scope_whoever_has_seen_something_waits_for_it() {
    let folder = Folder::new();
    let rig = filled(&folder).await;
    let own = uuid(0).expect("somebody");
    let permit = permit(&Scope::Own(own));
    let asked = async |seen: &ConsistencyToken| {
        let until = Instant::now() + Duration::from_millis(500);
        let all = Statement::same("SELECT number FROM shelf ORDER BY number");
        rig.store.select_after(&permit, &SHELF, seen, until, all).await
    };
    let rows = asked(&ConsistencyToken::default()).await.expect("reads");
    assert_eq!(numbers(&rows), (0..ROWS).filter(|number| place(*number).0 == Some(own)).collect::<Vec<_>>());
    let behind = asked(&ConsistencyToken::of(own, 1)).await;
    assert!(matches!(&behind, Err(StoreError::Behind { consumer, .. }) if consumer == "shelf"), "{behind:?}");
}
