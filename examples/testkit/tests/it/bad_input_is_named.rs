//! Bad input over real sockets: each a problem of its own with the request's id, never a 500, and nothing half-written.

mod case;
mod cases;
mod place;

use std::collections::BTreeMap;

use pim_data::backend::{SqlPair, Statement};
use pim_lab::workers::Stores;
use pim_testkit::raw::RawAnswer;

use self::case::Case;
use self::place::Place;

/// Rows of every table of every shard and of the control database.
async fn rows(stores: &Stores) -> BTreeMap<String, u64> {
    const TABLES: &str =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut counts = BTreeMap::new();
    for source in stores.cluster.sources() {
        let db = stores.cluster.database(source).expect("a database");
        for table in db.query(Statement::sqlite(TABLES)).await.expect("reads") {
            let name = table.text(0).expect("a name");
            let count = Statement::of(SqlPair::generated(format!("SELECT count(*) FROM {name}")));
            let found = db.query(count).await.expect("reads");
            counts.insert(format!("{source}/{name}"), found[0].count(0).expect("a count"));
        }
    }
    counts
}

/// What is wrong with an answer; nothing when it is the problem that was expected.
fn faults_of(case: &Case, answer: &RawAnswer) -> Vec<String> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    must((answer.status, answer.problem()) == case.expected, "another answer");
    must(answer.header("content-type") == Some("application/problem+json"), "no problem document");
    must(answer.body["status"] == answer.status, "the document says another status");
    must(answer.body["title"].as_str().is_some_and(|title| !title.is_empty()), "no title");
    let id = answer.body["request_id"].as_str();
    must(id.is_some() && id == answer.header("x-pim-request-id"), "the document names another request");
    must(answer.status < 500, "our fault");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn by_table() {
    let place = Place::open().await;
    let stores = &place.lab.stores;
    let mut before = rows(stores).await;
    assert!(before.values().sum::<u64>() > 100, "there is something that could change: {before:?}");
    let cases = cases::all(&place);
    assert!(cases.len() > 80, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let answer = match place.send(case).await {
            Ok(answer) => answer,
            Err(error) => {
                wrong.push(format!("{}: {error:#}", case.name));
                continue;
            }
        };
        let mut found = faults_of(case, &answer);
        let after = rows(stores).await;
        if after != before {
            let changed = after.iter().filter(|(table, count)| before.get(*table) != Some(count));
            found.push(format!("wrote {:?}", changed.collect::<Vec<_>>()));
            before = after;
        }
        if !found.is_empty() {
            wrong.push(format!("{}: {found:?}\n    expected {:?}\n    found {answer:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    place.close().await;
}
