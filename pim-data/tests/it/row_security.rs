//! Row-level security on a server: agreed with the oracle case by case, and of nobody's scope but the caller's.

use std::collections::BTreeSet;

use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Read, Scope};
use pim_core::role::ClosedEnum as _;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, Engine, Row, SqlPair, Statement, Value};
use pim_data::consistency::Consistency;
use pim_data::repository::Page;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;

use super::world as server;
use crate::world as embedded;

const ROWS: usize = 40;
const FACILITIES: u128 = 6;
/// Each case asks for every row; one in six is of a customer without a record, who may ask for none.
const CASES: u32 = 400;

#[derive(Clone, Debug)]
struct Case {
    role: usize,
    affiliations: Vec<u128>,
    own: Option<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let affiliations = proptest::collection::vec(1..=FACILITIES, 1..9);
    let own = proptest::option::of(0..ROWS);
    (0..server::ShopRole::ALL.len(), affiliations, own).prop_map(|(role, affiliations, own)| Case {
        role,
        affiliations,
        own,
    })
}

/// The same rows in either world.
macro_rules! fill {
    ($module:ident, $world:expr, $rows:expr) => {
        for (id, facility) in $rows {
            let mut account = $module::Account::new(Id::from_uuid(*id).expect("a minted id"));
            account.facility = *facility;
            $world.register_as(account).await;
        }
    };
}

/// Which rows the engine's repository shows to a case, and the permit's scope.
macro_rules! seen {
    ($module:ident, $world:expr, $rows:expr, $case:expr) => {{
        let facilities: Vec<_> = $case.affiliations.iter().map(|number| Uuid::from_u128(*number)).collect();
        let mut actor = Actor::new("u-7".parse().expect("a subject"), $module::ShopRole::ALL[$case.role]);
        actor = actor.with_facilities(&facilities).expect("few facilities");
        if let Some(own) = $case.own {
            actor = actor.with_own_record($rows[own].0);
        }
        let permit = $world.policy.authorize::<Read>(
            &actor,
            $module::ShopAction::Look,
            $module::ShopResource::Account,
        );
        match permit {
            Err(_) => None,
            Ok(permit) => {
                let (mut found, cx) = (BTreeSet::new(), $module::cx_of(actor));
                for (id, _) in $rows {
                    let typed = Id::<$module::Customer>::from_uuid(*id).expect("a minted id");
                    let cluster = &$world.cluster;
                    let row = cluster.read::<$module::Account>(&cx, &permit, typed, &Consistency::Strong).await;
                    found.extend(row.expect("reads").map(|row| row.id.uuid()));
                }
                Some((found, permit.scope().clone()))
            }
        }
    }};
}

/// What the policies alone show: hand-typed SQL with the scope set.
async fn by_policy(db: &Db, scope: &Scope) -> BTreeSet<Uuid> {
    let setting = match scope {
        Scope::All => "all".to_owned(),
        Scope::Own(own) => format!("own {own}"),
        Scope::Facilities(all) => {
            format!("facilities {}", all.iter().map(Uuid::to_string).collect::<Vec<_>>().join(","))
        }
    };
    seen_with(db, &setting).await
}

async fn seen_with(db: &Db, setting: &str) -> BTreeSet<Uuid> {
    let mut tx = db.begin().await.expect("begins");
    tx.script(&format!("SELECT set_config('app.scope', '{setting}', true)")).await.expect("sets the scope");
    let rows = tx.query(Statement::same("SELECT id FROM account")).await.expect("reads");
    rows.iter().map(|row| row.uuid(0).expect("an id")).collect()
}

#[test]
fn both_engines_and_the_oracle_agree_on_every_row() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (files, servers) = runtime.block_on(async { (embedded::World::new(1).await, server::World::new(1).await) });
    let rows: Vec<(Uuid, Option<Uuid>)> = (0..ROWS as u128)
        .map(|number| {
            let facility = (number % 4 != 0).then(|| Uuid::from_u128(1 + number % FACILITIES));
            (Id::<server::Customer>::random().uuid(), facility)
        })
        .collect();
    runtime.block_on(async {
        fill!(embedded, files, &rows);
        fill!(server, servers, &rows);
    });
    let db = servers.cluster.database(ShardId(0)).expect("a shard").clone();
    let asked = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&case(), |case| {
        runtime.block_on(async {
            let (ours, theirs) = (seen!(server, servers, &rows, case), seen!(embedded, files, &rows, case));
            let (Some((ours, scope)), Some((theirs, _))) = (ours, theirs) else { return };
            let visible = rows.iter().filter(|(id, facility)| scope.sees(*id, *facility));
            let oracle: BTreeSet<_> = visible.map(|(id, _)| *id).collect();
            assert_eq!(ours, oracle, "server: {case:?}");
            assert_eq!(theirs, oracle, "embedded engine: {case:?}");
            assert_eq!(by_policy(&db, &scope).await, oracle, "the policies alone: {case:?}");
            asked.set(asked.get() + rows.len());
        });
        Ok(())
    });
    outcome.expect("no difference");
    assert!(asked.get() >= 10_000, "{} pairs of role and row", asked.get());
}

/// What is not the name of a scope to the letter shows no row, and an id of one kind is never taken for one of the other.
#[tokio::test]
async fn a_scope_that_is_none_reaches_nothing() {
    let world = server::World::new(1).await;
    let (id, facility) = (Id::random(), Uuid::from_u128(7));
    let mut account = server::Account::new(id);
    account.facility = Some(facility);
    world.register_as(account).await;
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    let home = id.uuid();
    for sound in ["all".to_owned(), format!("own {home}"), format!("facilities {},{facility}", Uuid::max())] {
        assert_eq!(seen_with(&db, &sound).await, BTreeSet::from([home]), "{sound}");
    }
    let wrong = [
        String::new(),
        "ALL".to_owned(),
        "all ".to_owned(),
        "own".to_owned(),
        "own %".to_owned(),
        "facilities".to_owned(),
        "facilities %".to_owned(),
        home.to_string(),
        facility.to_string(),
        format!("own {facility}"),
        format!("own {home},{home}"),
        format!("owner {facility}"),
        format!("facilities {home}"),
        format!("facilities{facility}"),
    ];
    for setting in wrong {
        assert_eq!(seen_with(&db, &setting).await, BTreeSet::new(), "'{setting}'");
    }
}

/// The scope is set where the id comes from, and ids are compared before the policy is asked, also when no index is used.
#[tokio::test]
async fn the_scope_is_set_before_a_row_is_looked_at_whatever_the_plan() {
    const SCAN: &str = "SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; \
                        SET LOCAL enable_indexonlyscan = off";
    let world = server::World::new(1).await;
    let (account, other) = (world.register().await, world.register().await);
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    let statements = world.cluster.schema().statements();
    let texts = statements.iter().filter_map(|sql| sql.text(Engine::Postgres));
    let texts: BTreeSet<_> = texts.filter(|text| text.contains("set_config('app.scope'") && text.contains(" public.account_row r")).collect();
    assert_eq!(texts.len(), 3, "a read with the key's number, one without, and a load");
    let home = account.id.uuid();
    let scopes = [("all".to_owned(), true), (format!("own {home}"), true), (format!("own {}", other.id), false), ("none".to_owned(), false)];
    for (text, (scope, is_seen)) in texts.iter().flat_map(|text| scopes.iter().map(move |scope| (text, scope))) {
        let mut tx = db.begin().await.expect("begins");
        tx.script(SCAN).await.expect("sets");
        let is_load = text.contains("idempotency");
        let ask = |text: String| {
            let ask = Statement::of(SqlPair::generated_postgres(text));
            let ask = if is_load { ask.bind(&[0_u8; 32]).bind(home) } else { ask };
            ask.bind(scope.as_str()).bind(home)
        };
        let plan = tx.query(ask(format!("EXPLAIN {text}"))).await.expect("plans");
        let is_scan = |row: &Row| row.text(0).expect("text").contains("Seq Scan on account_row");
        assert!(plan.iter().any(is_scan), "{plan:?}");
        let rows = tx.query(ask(text.clone())).await.expect("reads");
        // A load answers with its other columns, whether the row is seen or not.
        let seen = rows.iter().filter(|row| *row.get(if is_load { 5 } else { 1 }) != Value::Null).count();
        assert_eq!(seen, usize::from(*is_seen), "{scope}: {text}");
    }
}

/// What stands in for what a trigger means, where it does not say which it means: each refuses to be called.
const FALSE_FRIENDS: &str = "CREATE SCHEMA elsewhere; GRANT USAGE ON SCHEMA elsewhere TO PUBLIC;
    CREATE TABLE elsewhere.account_history (LIKE public.account_history); GRANT ALL ON elsewhere.account_history TO PUBLIC;
    CREATE FUNCTION elsewhere.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.date_part(text, timestamptz) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.says(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.says(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.says(tid, tid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.says(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.sum(bigint, integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE FUNCTION elsewhere.product(float8, integer) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
    CREATE OPERATOR elsewhere.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = elsewhere.says);
    CREATE OPERATOR elsewhere.= (LEFTARG = text, RIGHTARG = text, FUNCTION = elsewhere.says);
    CREATE OPERATOR elsewhere.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = elsewhere.says);
    CREATE OPERATOR elsewhere.= (LEFTARG = tid, RIGHTARG = tid, FUNCTION = elsewhere.says);
    CREATE OPERATOR elsewhere.> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = elsewhere.says);
    CREATE OPERATOR elsewhere.+ (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = elsewhere.sum);
    CREATE OPERATOR elsewhere.* (LEFTARG = float8, RIGHTARG = integer, FUNCTION = elsewhere.product)";

/// The history is written by its owner, whoever changes a row; where the caller looks for names is nothing to it.
#[tokio::test]
async fn what_runs_as_the_owner_finds_what_it_names() {
    let world = server::World::new(1).await;
    world.register().await;
    let above = world.powerful(ShardId(0)).await;
    let mut tx = above.begin().await.expect("begins");
    tx.script(FALSE_FRIENDS).await.expect("a schema of somebody's own");
    // The other trigger runs as the caller, who can fool nobody but himself.
    tx.script("ALTER FUNCTION public.pim_owned() SET search_path = public").await.expect("alters");
    tx.commit().await.expect("commits");
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    for change in ["points = 7, updated_at = updated_at OPERATOR(pg_catalog.+) 1", "points = 8"] {
        let mut tx = db.begin().await.expect("begins");
        let scope = "SELECT pg_catalog.set_config('app.scope', 'all', true)";
        let path = "SET LOCAL search_path = elsewhere, pg_catalog, public";
        tx.script(&format!("{scope}; {path}; UPDATE public.account_row SET {change}")).await.expect("is not fooled");
        tx.commit().await.expect("commits");
    }
    let periods = "SELECT count(*) FROM account_history WHERE (points < 8) = (valid_to IS NOT NULL)";
    assert_eq!(count(&above, periods).await, 3);
}

/// Every table with rows of entities is forced, every view asks with the caller's rights.
#[tokio::test]
async fn nothing_of_an_entity_is_left_open() {
    let world = server::World::new(1).await;
    let above = world.powerful(ShardId(0)).await;
    let open = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace \
                AND (relname LIKE '%\\_row' OR relname LIKE '%\\_history') AND NOT (relrowsecurity AND relforcerowsecurity)";
    assert_eq!(count(&above, open).await, 0);
    let views = "SELECT count(*) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace \
                 AND NOT coalesce(reloptions @> '{security_invoker=true}', false)";
    assert_eq!(count(&above, views).await, 0);
}

/// What a function reads is of one snapshot: the number beside a row never tells of a newer one.
#[tokio::test]
async fn every_read_is_of_one_snapshot() {
    let world = server::World::new(1).await;
    let above = world.powerful(ShardId(0)).await;
    let reads = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname ~ '^pim_[sh]_'";
    let all = count(&above, reads).await;
    assert!(all >= 4, "{all} reading functions");
    assert_eq!(count(&above, &format!("{reads} AND provolatile = 's'")).await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_no_context_of_an_earlier_request() {
    let world = server::World::with(1, |mut settings| {
        settings.servers.as_mut().expect("servers").settings.connections_max = 2;
        settings
    })
    .await;
    let world = std::sync::Arc::new(world);
    let (mine, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut accounts = Vec::new();
    for facility in [mine, theirs] {
        let mut account = server::Account::new(Id::random());
        account.facility = Some(facility);
        accounts.push(world.register_as(account).await);
    }
    let mut tasks = tokio::task::JoinSet::new();
    // Readers of either facility, writers who may do all, commits that fail, units that are dropped half way, and somebody
    // who asks without a scope, over and over on the same two connections.
    for task in 0..6_usize {
        let (world, accounts) = (std::sync::Arc::clone(&world), accounts.clone());
        tasks.spawn(async move {
            let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
            for round in 0..40_usize {
                match (task + round) % 4 {
                    0 => assert_eq!(left_behind(&db).await, "", "was left behind"),
                    1 => {
                        let clerk = Actor::new("u-7".parse().expect("a subject"), server::ShopRole::Clerk);
                        let clerk = clerk.with_facilities(&[[mine, theirs][task % 2]]).expect("one");
                        let look = (server::ShopAction::Look, server::ShopResource::Account);
                        let permit = world.policy.authorize::<Read>(&clerk, look.0, look.1).expect("granted");
                        for (index, account) in accounts.iter().enumerate() {
                            let cx = server::cx_of(clerk.clone());
                            let row = world
                                .cluster
                                .read::<server::Account>(&cx, &permit, account.id, &Consistency::Strong)
                                .await
                                .expect("reads");
                            assert_eq!(row.is_some(), index == task % 2);
                            let page = Page { after: None, limit: 9 };
                            let strong = Consistency::Strong;
                            let listed = world.cluster.list::<server::Account>(&cx, &permit, account.id, page, &strong);
                            assert_eq!(listed.await.expect("lists").len(), usize::from(index == task % 2));
                            let periods = world.cluster.history::<server::Account>(&cx, &permit, account.id, Page::FIRST).await;
                            assert_eq!(periods.expect("reads").periods.is_empty(), index != task % 2);
                        }
                    }
                    2 => {
                        // Others win at times; that a scope was set and the statement failed is what counts.
                        let _outcome = world.change(accounts[round % 2].id, |account| account.points += 1).await;
                    }
                    _ => {
                        let mut tx = db.begin().await.expect("begins");
                        tx.script("SELECT set_config('app.scope', 'all', true)").await.expect("sets");
                        if round % 2 == 0 {
                            let _refused = tx.script("SELECT 1 / 0").await;
                        }
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no context leaked");
    }
}

/// What writes and reads set for the length of their transaction: whatever entering and leaving set, and a bulk.
fn settings() -> BTreeSet<&'static str> {
    const ENTER: &str = include_str!("../../migrations/postgres/enter.sql");
    let set = ENTER.split("set_config('").skip(1).filter_map(|rest| rest.split('\'').next());
    set.chain(["app.bulk"]).collect()
}

/// Asks which of these are set; those of PostgreSQL's own are something always.
fn which_are_set() -> Statement {
    let which = settings().into_iter().map(|name| {
        if name.starts_with("app.") {
            format!("SELECT '{name}' WHERE current_setting('{name}', true) <> ''")
        } else {
            format!("SELECT name FROM pg_settings WHERE name = '{name}' AND setting <> reset_val")
        }
    });
    let which = which.collect::<Vec<_>>().join(" UNION ALL ");
    let all = format!("SELECT coalesce(string_agg(name, ' '), '') FROM ({which}) AS every(name)");
    Statement::of(SqlPair::generated_postgres(all))
}

/// What an earlier transaction has left to whoever asks without a scope: settings, or rows that are seen.
pub(super) async fn left_behind(db: &Db) -> String {
    let rows = db.query(which_are_set()).await.expect("runs");
    let left = rows[0].text(0).expect("text").to_owned();
    match count(db, "SELECT count(*) FROM account_row").await {
        0 => left,
        seen => format!("{seen} rows {left}"),
    }
}

/// What would be left behind is noticed, each setting by itself.
#[tokio::test]
async fn each_setting_is_asked_for() {
    let world = server::World::new(1).await;
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    let all = settings();
    for name in ["app.user", "app.role", "app.request", "app.trace", "app.bucket", "app.scope", "lock_timeout"] {
        assert!(all.contains(name), "{name} is not found in what entering does: {all:?}");
    }
    for name in all {
        let mut tx = db.begin().await.expect("begins");
        let value = if name == "synchronous_commit" { "local" } else { "77" };
        tx.script(&format!("SELECT set_config('{name}', '{value}', true)")).await.expect("sets");
        let rows = tx.query(which_are_set()).await.expect("runs");
        assert_eq!(rows[0].text(0).expect("text"), name);
    }
    assert_eq!(left_behind(&db).await, "");
}

pub(super) async fn count(db: &Db, sql: &str) -> u64 {
    let rows = db.query(Statement::of(SqlPair::generated_postgres(sql.to_owned()))).await.expect("runs");
    rows[0].count(0).expect("a number")
}
