//! What the database shows and lets be written is exactly what the pure oracle says.

use std::sync::Arc;

use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Read, Write};
use pim_core::role::ClosedEnum as _;
use pim_data::backend::{Engine, Statement};
use pim_data::consistency::Consistency;
use pim_data::repository::Page;
use pim_data::repository::ReadError;
use pim_data::unit::UnitError;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;

use super::ENGINE;
use super::world::{Account, ShopAction, ShopResource, ShopRole, World, cx_of, tell, write};

const FACILITIES: u128 = 5;

fn facility(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

#[derive(Clone, Debug)]
struct Case {
    role: ShopRole,
    affiliations: Vec<u128>,
    own: Option<usize>,
    row: usize,
    writes: bool,
}

fn case(rows: usize) -> impl Strategy<Value = Case> {
    let affiliations = proptest::collection::vec(1..=FACILITIES, 1..4);
    (0..ShopRole::ALL.len(), affiliations, proptest::option::of(0..rows), 0..rows, any::<bool>()).prop_map(
        |(role, affiliations, own, row, writes)| Case { role: ShopRole::ALL[role], affiliations, own, row, writes },
    )
}

#[test]
fn a_caller_reaches_exactly_the_rows_of_their_scope() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let world = Arc::new(runtime.block_on(World::new(2)));
    let rows: Vec<Account> = runtime.block_on(async {
        let mut rows = Vec::new();
        for number in 0..12_u128 {
            let mut account = Account::new(Id::random());
            // Every third row belongs to no facility.
            account.facility = (number % 3 != 0).then(|| facility(1 + number % FACILITIES));
            rows.push(world.register_as(account).await);
        }
        rows
    });
    let mut runner = TestRunner::new(Config { cases: 192, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&case(rows.len()), |case| {
        runtime.block_on(agree(&world, &rows, &case));
        Ok(())
    });
    outcome.expect("database and oracle agree");
}

async fn agree(world: &World, rows: &[Account], case: &Case) {
    let facilities: Vec<_> = case.affiliations.iter().map(|number| facility(*number)).collect();
    let mut actor = Actor::new("u-7".parse().expect("a subject"), case.role);
    actor = actor.with_facilities(&facilities).expect("few facilities");
    if let Some(own) = case.own {
        actor = actor.with_own_record(rows[own].id.uuid());
    }
    let row = &rows[case.row];
    let cx = cx_of(actor.clone());
    if case.writes {
        let Ok(permit) = world.policy.authorize::<Write>(&actor, ShopAction::Change, ShopResource::Account) else {
            return;
        };
        let visible = permit.scope().sees(row.id.uuid(), row.facility);
        let mut unit = world.cluster.begin(&cx, row.id);
        let loaded = unit.load::<Account>(&permit, row.id).await.expect("loads");
        assert_eq!(loaded.is_some(), visible, "{case:?}");
        // Without the load's help: the permit of somebody else, the row of a wider one.
        let mut unit = world.cluster.begin(&cx, row.id);
        let wide = write(ShopResource::Account);
        let loaded = unit.load::<Account>(&wide, row.id).await.expect("loads").expect("is there");
        assert_eq!(unit.save(&permit, &loaded).is_ok(), visible, "{case:?}");
    } else {
        let Ok(permit) = world.policy.authorize::<Read>(&actor, ShopAction::Look, ShopResource::Account) else {
            return;
        };
        let visible = permit.scope().sees(row.id.uuid(), row.facility);
        for consistency in [Consistency::Strong, Consistency::Eventual] {
            let seen = world.cluster.read::<Account>(&cx, &permit, row.id, &consistency).await.expect("reads");
            assert_eq!(seen.is_some(), visible, "{case:?}");
        }
        let own = Statement::same("SELECT name, id FROM account WHERE id = ?").bind(row.id.uuid());
        let shard = world.cluster.router().route(&row.id).shard;
        let seen = world.cluster.select::<Account>(&cx, &permit, shard, own).await.expect("reads");
        assert_eq!(
            seen.first().map(|found| found.uuid(1).expect("an id")),
            visible.then_some(row.id.uuid()),
            "{case:?}"
        );
        let past = world.cluster.history::<Account>(&cx, &permit, row.id, Page::FIRST).await.expect("reads");
        assert_eq!(!past.periods.is_empty(), visible, "{case:?}");
    }
}

#[tokio::test]
async fn a_connection_without_context_sees_nothing() {
    let world = World::new(1).await;
    let account = world.register().await;
    let shard = world.cluster.router().route(&account.id).shard;
    let db = world.cluster.database(shard).expect("a shard");
    let rows = db.query(Statement::same("SELECT * FROM account")).await.expect("the view is there");
    assert!(rows.is_empty(), "but empty");
    // The embedded writer has no such table at all: nothing unscoped can be read by a forgotten suffix. A server's has it,
    // and sees nothing in it.
    let mut tx = db.begin().await.expect("begins");
    let seen = tx.query(Statement::same("SELECT * FROM account")).await;
    assert!(if ENGINE == Engine::Sqlite { seen.is_err() } else { seen.is_ok_and(|rows| rows.is_empty()) });
}

#[tokio::test]
async fn the_scope_of_one_read_does_not_leak_into_the_next() {
    let world = World::with(1, |mut settings| {
        settings.readers_max = 1;
        settings
    })
    .await;
    let account = world.register().await;
    let permit = super::world::read(ShopResource::Account);
    let cx = super::world::cx();
    assert!(
        world.cluster.read::<Account>(&cx, &permit, account.id, &Consistency::Strong).await.expect("reads").is_some()
    );
    let shard = world.cluster.router().route(&account.id).shard;
    let db = world.cluster.database(shard).expect("a shard");
    assert!(db.query(Statement::same("SELECT * FROM account")).await.expect("runs").is_empty());
    let select = |text| world.cluster.select::<Account>(&cx, &permit, shard, Statement::same(text));
    assert_eq!(select("SELECT * FROM account").await.expect("reads").len(), 1);
    assert!(db.query(Statement::same("SELECT * FROM account")).await.expect("runs").is_empty());
    select("SELECT no_such_column FROM account").await.expect_err("no such column");
    assert!(db.query(Statement::same("SELECT * FROM account")).await.expect("runs").is_empty());
    let permit = super::world::read(ShopResource::Note);
    let denied = world.cluster.select::<Account>(&cx, &permit, shard, Statement::same("SELECT 1")).await;
    assert!(matches!(denied, Err(ReadError::Denied { .. })));
}

#[tokio::test]
async fn a_write_carries_the_scope_to_the_database() {
    let world = World::new(1).await;
    let (mine, theirs) = (facility(1), facility(2));
    let mut account = Account::new(Id::random());
    account.facility = Some(mine);
    let account = world.register_as(account).await;
    let clerk = Actor::new("u-7".parse().expect("a subject"), ShopRole::Clerk).with_facilities(&[mine]).expect("one");
    let permit = world.policy.authorize::<Write>(&clerk, ShopAction::Change, ShopResource::Account).expect("granted");
    let mut unit = world.cluster.begin(&cx_of(clerk), account.id);
    let seen = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is there");
    unit.save(&permit, &seen).expect("saves");
    tell(&mut unit, "changed");
    // Between load and commit the row goes to another facility, by hand: neither n nor version tells.
    let moved = format!("UPDATE account_row SET facility_id = {}", super::world::uuid(theirs));
    world.raw(account.id, &moved).await.expect("runs");
    assert!(matches!(unit.commit().await, Err(UnitError::Stale { .. })));
}
