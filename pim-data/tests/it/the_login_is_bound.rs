//! What the application's login may not do, and that it is for want of rights that it may not.

use std::collections::BTreeSet;

use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbError, SqlPair, Statement, Value};

use super::row_security::{count, left_behind};
use super::world::World;

/// What somebody who has the application's login might try. Each is a matter of rights, and must be refused for that. Saying of
/// themselves that they may see everything (`app.scope`) is not among them: that is what every request does, and nobody can tell
/// them apart.
const ATTEMPTS: &[&str] = &[
    "ALTER TABLE account_row DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE account_row NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE account_history DISABLE ROW LEVEL SECURITY",
    "DROP POLICY account_scope ON account_row",
    "ALTER POLICY account_scope ON account_row USING (true)",
    "CREATE POLICY wide ON account_row USING (true)",
    "ALTER TABLE account_row OWNER TO CURRENT_USER",
    "ALTER TABLE account_row DISABLE TRIGGER ALL",
    "ALTER VIEW account SET (security_invoker = false)",
    "CREATE VIEW wide AS SELECT * FROM account_row",
    "CREATE TABLE copied AS SELECT * FROM account_row",
    "CREATE TEMPORARY TABLE account (id uuid)",
    "CREATE TEMPORARY VIEW account AS SELECT 1",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION wide() RETURNS bigint LANGUAGE sql SECURITY DEFINER RETURN (SELECT count(*) FROM account_row)",
    "CREATE OR REPLACE FUNCTION public.pim_sees(home uuid, facility uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
    "ALTER FUNCTION pim_owned() SECURITY INVOKER",
    "CREATE RULE wide AS ON SELECT TO account_row DO INSTEAD SELECT * FROM account_row",
    "CREATE TRIGGER mine BEFORE INSERT ON account_row FOR EACH ROW EXECUTE FUNCTION pim_append_only()",
    "SET ROLE pim_test_owner",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "ALTER ROLE CURRENT_USER BYPASSRLS",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "CREATE ROLE mine SUPERUSER",
    "GRANT pim_test_owner TO CURRENT_USER",
    "SET session_replication_role = replica",
    "SET row_security = off; SELECT count(*) FROM account_row",
    "DELETE FROM account_row",
    "TRUNCATE account_row",
    "UPDATE account_history SET name = 'x'",
    "DELETE FROM account_history",
    "UPDATE audit SET body = 'x'",
    "DELETE FROM audit",
    "TRUNCATE audit",
    "ALTER TABLE audit DISABLE TRIGGER ALL",
    "UPDATE pim_bucket_owned SET epoch = 99",
    "INSERT INTO pim_bucket_owned VALUES (1, 1, 'owned', NULL, 1)",
    "UPDATE pim_identity SET shard = 9",
    "UPDATE pim_unit_part SET function = 'pim_append_only'",
    "SELECT pim_register_part('fact', 'pim_append_only')",
    "SELECT pim_fence('[]')",
    "SELECT pim_drain('[[1]]')",
    "SELECT pim_lift('[[1]]')",
    "SELECT pim_hand_over('[[1, 2, false]]', 9)",
    "SELECT pim_take('[[1, 99]]', 9)",
    "SELECT pim_retire('[]', 9)",
    "SELECT pim_require('[]', 'owned')",
    "SELECT pim_look('SELECT 1::bigint, NULL::uuid, NULL::uuid, NULL::text', '[]')",
    "SELECT pim_do('[]')",
    "DELETE FROM pim_migration",
    "DELETE FROM pim_routine",
    "COPY account_row TO '/tmp/rows'",
    "COPY account_row FROM PROGRAM 'true'",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "CREATE LANGUAGE mine HANDLER plpgsql_call_handler",
    "ALTER DATABASE postgres SET row_security = off",
    "SELECT pg_reload_conf()",
];

/// As [`ATTEMPTS`], where the server looks first whether a transaction is open.
const BY_ITSELF: &[&str] = &["ALTER SYSTEM SET fsync = off", "CREATE DATABASE mine"];

/// Whether the server says that it is for want of rights (SQLSTATE 42501); nothing else is shown so.
fn is_for_want_of_rights(refused: &Result<(), DbError>) -> bool {
    matches!(refused, Err(DbError::Refused { rule, .. }) if rule.contains("permission or row-level security"))
}

async fn asked(db: &Db, text: &str) -> Result<(), DbError> {
    db.query(Statement::of(SqlPair::generated_postgres(text.to_owned()))).await.map(drop)
}

#[tokio::test]
async fn the_applications_login_cannot_disable_bypass_or_widen_it() {
    let world = World::new(1).await;
    let account = world.register().await;
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    let above = world.powerful(ShardId(0)).await;
    let before = catalogue(&above).await;
    for attempt in ATTEMPTS {
        let mut tx = db.begin().await.expect("begins");
        let refused = tx.script(attempt).await;
        assert!(is_for_want_of_rights(&refused), "{attempt}: {refused:?}");
        drop(tx);
        assert_eq!(catalogue(&above).await, before, "{attempt}");
    }
    for attempt in BY_ITSELF {
        let refused = asked(&db, attempt).await;
        assert!(is_for_want_of_rights(&refused), "{attempt}: {refused:?}");
    }
    // Says that it granted nothing, and is no error.
    let mut tx = db.begin().await.expect("begins");
    tx.script("GRANT ALL ON account_row TO PUBLIC").await.expect("grants nothing");
    tx.commit().await.expect("commits nothing");
    assert_eq!(catalogue(&above).await, before, "granted to everybody");
    assert_eq!(left_behind(&db).await, "", "nothing is seen without a scope");
    let who = "SELECT count(*) FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls OR rolcreaterole \
               OR rolcreatedb OR rolreplication)";
    assert_eq!(count(&db, who).await, 0);
    let owns = "SELECT count(*) FROM pg_class WHERE relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)";
    assert_eq!(count(&db, owns).await, 0, "it owns nothing");
    world.change(account.id, |account| account.points = 1).await.expect("the application goes on");
}

/// Extensions that the server has and this database has not: one that is not there, or needs another one, is refused for that.
#[tokio::test]
async fn nor_make_an_extension_of_those_that_there_are() {
    let world = World::new(1).await;
    let db = world.cluster.database(ShardId(0)).expect("a shard").clone();
    const THERE: SqlPair = SqlPair::postgres(
        "SELECT DISTINCT name::text FROM pg_available_extension_versions v WHERE v.requires IS NULL \
         AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = v.name) ORDER BY 1",
    );
    let there = db.query(Statement::of(THERE)).await.expect("lists");
    // A server without any has nothing of the kind to refuse; others than this one show it.
    for row in there {
        let name = row.text(0).expect("a name");
        let mut tx = db.begin().await.expect("begins");
        let refused = tx.script(&format!("CREATE EXTENSION \"{name}\"")).await;
        assert!(is_for_want_of_rights(&refused), "{name}: {refused:?}");
    }
}

/// Guard: the functions that not everybody may call are those that are tried, by what the server itself says of them.
#[tokio::test]
async fn whatever_is_revoked_has_been_tried() {
    let world = World::new(1).await;
    let above = world.powerful(ShardId(0)).await;
    const REVOKED: SqlPair = SqlPair::postgres(
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace \
         AND NOT has_function_privilege('pim_test_app', oid, 'EXECUTE')",
    );
    let rows = above.query(Statement::of(REVOKED)).await.expect("lists");
    let revoked: BTreeSet<_> = rows.iter().map(|row| row.text(0).expect("a name")).collect();
    let called = |attempt: &&'static str| Some(attempt.strip_prefix("SELECT ")?.split_once('(')?.0);
    let tried: BTreeSet<_> = ATTEMPTS.iter().filter_map(called).filter(|name| name.starts_with("pim_")).collect();
    assert_eq!(revoked, tried);
}

/// What is looked at shows what may be done with a function, and by whom.
#[tokio::test]
async fn a_function_that_everybody_may_call_would_be_noticed() {
    let world = World::new(1).await;
    let above = world.powerful(ShardId(0)).await;
    let before = catalogue(&above).await;
    asked(&above, "GRANT EXECUTE ON FUNCTION pim_do(jsonb) TO PUBLIC").await.expect("grants");
    assert_ne!(catalogue(&above).await, before);
}

/// Whatever the attempts could have changed, as text.
async fn catalogue(db: &Db) -> Vec<Value> {
    const ASK: &str = "SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (\
         SELECT c.oid::text || c.relowner::text || c.relrowsecurity::text || c.relforcerowsecurity::text || coalesce(c.relacl::text, '') \
           || coalesce(c.reloptions::text, '') || c.relhastriggers::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace \
         UNION ALL SELECT p.polname::text || p.polcmd::text || pg_get_expr(p.polqual, p.polrelid) FROM pg_policy p \
         UNION ALL SELECT p.oid::text || md5(p.prosrc) || p.prosecdef::text || coalesce(p.proacl::text, '') FROM pg_proc p WHERE pronamespace = 'public'::regnamespace \
         UNION ALL SELECT t.tgname::text || t.tgrelid::text || t.tgenabled::text FROM pg_trigger t \
         UNION ALL SELECT b::text FROM pim_bucket_owned b UNION ALL SELECT i::text FROM pim_identity i \
         UNION ALL SELECT a.hash::text FROM audit a UNION ALL SELECT h::text FROM account_history h \
         UNION ALL SELECT r::text FROM account_row r) every(line)";
    let rows = db.query(Statement::of(SqlPair::postgres(ASK))).await;
    match rows {
        Ok(rows) => vec![rows[0].get(0).clone()],
        Err(error @ DbError::Engine(_)) => panic!("{error:?}"),
        Err(error) => panic!("{error}"),
    }
}
