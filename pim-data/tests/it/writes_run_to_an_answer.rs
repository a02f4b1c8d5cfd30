//! A write is run until it has an answer, which is the same for whoever asks again; what a run collected that was not the last one is nowhere.

use std::sync::atomic::{AtomicU32, Ordering};

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_data::cluster::Cluster;
use pim_data::unit::{Answer, Unit, UnitError, Written};
use serde_json::json;

use super::world::{Account, Customer, DepotRow, ShopResource, World, cx, keyed, tell, write};

/// As somebody's own error is that hides what it was made of.
#[derive(Debug)]
struct Refused(String);

impl From<UnitError> for Refused {
    fn from(error: UnitError) -> Self {
        Self(error.code().to_owned())
    }
}

/// Counts runs.
#[derive(Default)]
struct Runs(AtomicU32);

impl Runs {
    fn begin(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn made(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Registers under a key: nothing is loaded, so that only the commit finds out.
async fn register(cluster: &Cluster, cx: &RequestContext) -> Result<Written, Refused> {
    let account = &Account::new(Id::<Customer>::derive(cx.idempotency().expect("a key").scope(), 0));
    let change = |mut unit: Unit| async move {
        unit.save(&write(ShopResource::Account), account)?;
        tell(&mut unit, "registered");
        Ok((unit, Answer::created(account)?))
    };
    cluster.write(cx, account.id, change).await
}

/// Adds to the points of an account that must be open, and closes it. `meanwhile` is somebody else, who may be there in each run.
async fn close<Fut: Future<Output = ()>>(
    world: &World,
    cx: &RequestContext,
    id: Id<Customer>,
    runs: &Runs,
    meanwhile: impl Fn(u32) -> Fut,
) -> Result<Written, Refused> {
    let meanwhile = &meanwhile;
    let change = |mut unit: Unit| async move {
        let run = runs.begin();
        let permit = write(ShopResource::Account);
        let mut account = unit.load::<Account>(&permit, id).await?.ok_or_else(|| Refused("none".to_owned()))?;
        if account.state == "closed" {
            return Err(Refused("closed".to_owned()));
        }
        meanwhile(run).await;
        (account.state, account.points) = ("closed".to_owned(), account.points + 10);
        unit.save(&permit, &account)?;
        tell(&mut unit, &format!("run {run}"));
        Ok((unit, Answer::new(202, json!({"run": run, "points": account.points}))))
    };
    world.cluster.write(cx, id, change).await
}

fn replay_of(first: Written) -> Written {
    let mut again = first;
    again.is_replay = true;
    again
}

async fn nobody(_run: u32) {}

#[tokio::test]
async fn whoever_asks_again_gets_the_same() {
    let world = World::new(2).await;
    let first = register(&world.cluster, &keyed("k-1", "{}")).await.expect("writes");
    let id: Id<Customer> = first.body["id"].as_str().expect("an id").parse().expect("of a customer");
    assert_eq!((first.status, first.is_replay, first.token.n_of(id.uuid())), (201, false, Some(1)));
    world.change(id, |account| account.points = 1).await.expect("commits");
    let again = register(&world.cluster, &keyed("k-1", "{}")).await.expect("is answered");
    assert_eq!(again, replay_of(first));
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM fact").await, 2, "one of each write");
}

/// Guard: the answer of the first, where the rules refuse a second and hide from whom they have it.
#[tokio::test]
async fn an_answer_is_found_before_the_rules_are_asked() {
    let (world, runs) = (World::new(1).await, Runs::default());
    let account = world.register().await;
    let first = close(&world, &keyed("k-1", "{}"), account.id, &runs, nobody).await.expect("writes");
    let again = close(&world, &keyed("k-1", "{}"), account.id, &runs, nobody).await.expect("is answered");
    assert_eq!(again, replay_of(first));
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 2);
    let refused = close(&world, &keyed("k-2", "{}"), account.id, &runs, nobody).await.expect_err("is closed");
    assert_eq!(refused.0, "closed", "to another request it is one");
}

#[tokio::test]
async fn another_body_under_the_same_key_is_refused() {
    let (world, runs) = (World::new(1).await, Runs::default());
    register(&world.cluster, &keyed("k-1", "{}")).await.expect("writes");
    let refused = register(&world.cluster, &keyed("k-1", "{\"more\":1}")).await.expect_err("another body");
    assert_eq!(refused.0, "unit.idempotency_mismatch");
    let account = world.register().await;
    close(&world, &keyed("k-2", "{}"), account.id, &runs, nobody).await.expect("writes");
    let refused = close(&world, &keyed("k-2", "{\"more\":1}"), account.id, &runs, nobody).await;
    assert_eq!(refused.expect_err("another body").0, "unit.idempotency_mismatch");
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact").await, 3, "what was first, and the account");
}

/// Guard: a lost race is found by the commit, and only what the last run has collected is written.
#[tokio::test]
async fn only_the_last_run_counts() {
    let (world, runs) = (&World::new(1).await, Runs::default());
    let account = world.register().await;
    let faster = async |run| {
        if run < 3 {
            world.change(account.id, |account| account.points += 1).await.expect("is faster");
        }
    };
    let written = close(world, &keyed("k-1", "{}"), account.id, &runs, faster).await.expect("writes");
    assert_eq!((runs.made(), written.is_replay), (3, false));
    assert_eq!(written.body, json!({"run": 3, "points": 12}), "on what the others have written");
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 12);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact WHERE text LIKE 'run %'").await, 1);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact WHERE text = 'run 3'").await, 1);
    let again = close(world, &keyed("k-1", "{}"), account.id, &runs, nobody).await.expect("is answered");
    assert_eq!(again.body, written.body);
}

/// Guard: the change's own error hides that its load lost a race.
#[tokio::test]
async fn a_race_that_a_load_has_lost_is_run_again() {
    let (world, runs) = (&World::new(1).await, &Runs::default());
    let account = world.register().await;
    let change = |mut unit: Unit| async move {
        let (run, permit) = (runs.begin(), write(ShopResource::Account));
        unit.load::<Account>(&permit, account.id).await?.expect("is there");
        if run == 1 {
            world.change(account.id, |account| account.points += 1).await.expect("is faster");
        }
        let again = unit.load::<Account>(&permit, account.id).await;
        let mut account = again.map_err(|_| Refused("something".to_owned()))?.expect("is there");
        account.points += 10;
        unit.save(&permit, &account)?;
        tell(&mut unit, "changed");
        Ok::<_, Refused>((unit, Answer::ok(&account)?))
    };
    world.cluster.write(&cx(), account.id, change).await.expect("the second run writes");
    assert_eq!((runs.made(), world.count(account.id, "SELECT points FROM account_row").await), (2, 11));
}

#[tokio::test]
async fn a_race_is_lost_a_bounded_number_of_times() {
    let (world, runs) = (&World::new(1).await, Runs::default());
    let account = world.register().await;
    let faster = async |_run| {
        world.change(account.id, |account| account.points += 1).await.expect("is faster");
    };
    let refused = close(world, &cx(), account.id, &runs, faster).await.expect_err("others are faster each time");
    assert_eq!((refused.0.as_str(), runs.made()), ("unit.conflict", 8));
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact WHERE text LIKE 'run %'").await, 0);
}

#[tokio::test]
async fn a_rule_that_refuses_is_asked_once_and_writes_nothing() {
    let (world, runs) = (World::new(1).await, &Runs::default());
    let account = &world.register().await;
    let change = |mut unit: Unit| async move {
        runs.begin();
        unit.save(&write(ShopResource::Account), &Account::new(account.id))?;
        tell(&mut unit, "refused");
        Err::<(Unit, Answer), _>(Refused("a rule".to_owned()))
    };
    let refused = world.cluster.write(&keyed("k-1", "{}"), account.id, change).await.expect_err("refused");
    assert_eq!((refused.0.as_str(), runs.made()), ("a rule", 1));
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 1);
    close(&world, &keyed("k-1", "{}"), account.id, runs, nobody).await.expect("a refusal is no answer");
}

#[tokio::test]
async fn rows_of_the_control_database_are_written_so_too() {
    let world = World::new(1).await;
    let depot = &DepotRow { id: Id::random(), version: 0, code: "north".to_owned() };
    let open = async || {
        let change = |mut unit: Unit| async move {
            unit.save(&write(ShopResource::Depot), depot)?;
            tell(&mut unit, "opened");
            Ok::<_, Refused>((unit, Answer::created(depot)?))
        };
        world.cluster.write_control(&keyed("k-1", "{}"), depot.id, change).await.expect("writes")
    };
    let first = open().await;
    assert_eq!((first.status, first.is_replay), (201, false));
    assert_eq!(open().await, replay_of(first));
}
