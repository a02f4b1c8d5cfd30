//! Each statement is understood by the engines that it is meant for, and answers with the same columns on both.

use std::collections::BTreeSet;

use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::audit::AuditFilter;
use pim_data::backend::{Db, DbError, Described, Engine, Form, SqlPair, Statement};
use pim_data::consistency::Consistency;
use pim_data::repository::Page;

use super::world as server;
use crate::world as embedded;
use server::{Account, CustomerNote, ShopResource, cx, keyed, read, tell, trail_of, write};

/// A column of an expression has no form on the embedded engine, and a name of its own there.
fn agree(ours: &Described, theirs: &Described) -> bool {
    theirs.form == Form::Unsaid || (ours.form, &ours.name) == (theirs.form, &theirs.name)
}

async fn described(db: &Db, sql: &SqlPair) -> Option<Vec<Described>> {
    match db.describe(sql).await {
        Ok(columns) => Some(columns),
        Err(DbError::NoText { .. }) => None,
        Err(error) => panic!("{:?}: {error:?} is not understood: {sql:?}", db.engine()),
    }
}

#[tokio::test]
async fn every_statement_is_prepared_on_both_engines_and_answers_alike() {
    let (files, servers) = (embedded::World::new(1).await, server::World::new(1).await);
    let file = files.cluster.database(ShardId(0)).expect("a shard").clone();
    let owner = servers.powerful(ShardId(0)).await;
    let (mut both, mut one) = (0, 0);
    for sql in servers.cluster.schema().statements() {
        let (ours, theirs) = (described(&owner, &sql).await, described(&file, &sql).await);
        let (Some(ours), Some(theirs)) = (&ours, &theirs) else {
            assert!(ours.is_some() || theirs.is_some(), "for neither engine: {sql:?}");
            one += 1;
            continue;
        };
        both += 1;
        assert_eq!(ours.len(), theirs.len(), "{sql:?}");
        assert!(ours.iter().zip(theirs).all(|(a, b)| agree(a, b)), "{ours:?}\n{theirs:?}\n{sql:?}");
        assert!(ours.iter().all(|column| column.form != Form::Unsaid), "{ours:?}\n{sql:?}");
    }
    assert!(both >= 60 && one >= 20, "{both} on both engines, {one} on one");
}

#[tokio::test]
async fn whatever_a_server_was_asked_stands_in_the_inventory() {
    let world = server::World::with(1, |mut settings| {
        // One connection, which remembers all that it has prepared.
        settings.servers.as_mut().expect("servers").settings.connections_max = 1;
        settings
    })
    .await;
    use_everything(&world).await;
    let prepared = "SELECT statement FROM pg_prepared_statements";
    let db = world.cluster.database(ShardId(0)).expect("a shard");
    let prepared = db.query(Statement::of(SqlPair::postgres(prepared))).await.expect("lists");
    let known: BTreeSet<_> =
        world.cluster.schema().statements().iter().filter_map(|sql| sql.text(Engine::Postgres)).collect();
    let mut asked = 0;
    for row in &prepared {
        let text = row.text(0).expect("a text");
        let is_ours = !text.contains("current_setting('fsync')") && !text.contains("pg_prepared_statements");
        assert!(!is_ours || known.contains(text), "not in the inventory: {text}");
        asked += u32::from(is_ours);
    }
    assert!(asked >= 15, "{asked} statements");
}

/// What a program does with its shards.
async fn use_everything(world: &server::World) {
    let account = world.register().await;
    world.change(account.id, |account| account.points = 1).await.expect("commits");
    let mut unit = world.cluster.begin(&keyed("k-1", "{}"), account.id);
    for _ in 0..2 {
        let id = Id::child_of(account.id.bucket(), unit.at());
        let note = CustomerNote { id, version: 0, customer: account.id, account: account.id, text: String::new() };
        unit.save(&write(ShopResource::Note), &note).expect("saves");
    }
    tell(&mut unit, "noted");
    unit.answer(200, &serde_json::json!({}));
    unit.commit().await.expect("commits");
    let (mut unit, permit) = (world.cluster.begin(&cx(), account.id), read(ShopResource::Account));
    tell(&mut unit, "an event without a row");
    unit.commit().await.expect("commits");
    let bulk = world.cluster.begin(&cx(), Id::<server::Customer>::random());
    world.cluster.commit_bulk(ShardId(0), vec![bulk]).await.expect("commits");
    let cluster = &world.cluster;
    for consistency in [Consistency::Strong, Consistency::Eventual] {
        cluster.read::<Account>(&cx(), &permit, account.id, &consistency).await.expect("reads");
    }
    let page = Page { after: None, limit: 5 };
    cluster.list::<Account>(&cx(), &permit, account.id, page, &Consistency::Strong).await.expect("lists");
    cluster.history::<Account>(&cx(), &permit, account.id, Page::FIRST).await.expect("reads");
    cluster.as_of::<Account>(&cx(), &permit, account.id, Timestamp::from_micros(1)).await.expect("reads");
    for filter in [
        AuditFilter::Entity(account.id.uuid()),
        AuditFilter::User("u-1".to_owned()),
        AuditFilter::Request(uuid::Uuid::nil()),
    ] {
        trail_of(cluster, filter).await;
    }
    cluster.checkpoint_audit().await.expect("signs");
    cluster.verify_audit().await.expect("reads");
    cluster.sweep_idempotency().await.expect("sweeps");
    cluster.retained().await.expect("reads");
    cluster.health().await;
}
