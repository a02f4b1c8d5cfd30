//! Each statement that stands in the sources is understood by the engines that it is meant for, and answers with the same columns
//! on both: also those of rooms that have no inventory. What is put together at run time is not read here.

mod sources;

use std::path::Path;

use pim_core::clock::Clock;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbSettings, Described, Form};
use pim_data::cluster::{Access, CONTROL};
use pim_lab::rig::PostgresSettings;
use pim_lab::signals::Hub;
use pim_lab::workers::{Place, Stores};
use pim_testkit::folder::Folder;

use self::sources::{Found, statements_in};
use super::databases::Databases;

const CRATES: [&str; 3] = ["../../pim-data/src", "../../pim-events/src", "../src"];

async fn open(folder: &Path, postgres: &PostgresSettings) -> Stores {
    let place = Place { data_dir: &folder.join("data"), shards: Some(1), postgres };
    let hub = Hub::new(None).expect("a hub");
    Stores::open_at(place, Access::Shared, Clock::system(), &hub).await.expect("opens")
}

/// Where a statement may be meant for, in the same order on both engines.
async fn described(places: &[Db], found: &Found) -> Result<(usize, Vec<Described>), String> {
    let mut refusals = Vec::new();
    for (index, db) in places.iter().enumerate() {
        match db.describe(&found.pair).await {
            Ok(columns) => return Ok((index, columns)),
            Err(error) => refusals.push(format!("{error:?}")),
        }
    }
    Err(refusals.join("\n"))
}

/// A column of an expression has no form on the embedded engine, and a name of its own there.
fn agree(ours: &Described, theirs: &Described) -> bool {
    theirs.form == Form::Unsaid || (ours.form, &ours.name) == (theirs.form, &theirs.name)
}

#[tokio::test]
async fn every_statement_of_the_sources_is_prepared_on_both_engines_and_answers_alike() {
    let (on_files, on_servers) = (Folder::new("agree").expect("a folder"), Folder::new("agree").expect("a folder"));
    let databases = Databases::new(on_servers.path(), 1);
    let files = open(on_files.path(), &PostgresSettings::default()).await;
    let _servers = open(on_servers.path(), &databases.settings).await;
    let bus = Db::open(&on_files.path().join("data").join("bus.db"), DbSettings::default()).await.expect("opens");
    let shard = |id| files.cluster.database(id).expect("is open");
    let ours = [shard(ShardId(0)), shard(CONTROL), files.reads.db().clone(), bus];
    let mut theirs = Vec::new();
    for place in ["shard-0", "control", "read-store"] {
        theirs.push(databases.superuser(place).await);
    }
    let (mut both, mut one, mut wrong) = (0, 0, Vec::new());
    for source in CRATES {
        for found in statements_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join(source)) {
            let on_file = if found.sqlite { Some(described(&ours, &found).await) } else { None };
            let on_server = if found.postgres { Some(described(&theirs, &found).await) } else { None };
            let (file, server) = match (on_file, on_server) {
                (Some(Err(refusals)), _) | (_, Some(Err(refusals))) => {
                    wrong.push(format!("{found}\n{refusals}"));
                    continue;
                }
                (Some(Ok(file)), Some(Ok(server))) => (file, server),
                _ => {
                    one += 1;
                    continue;
                }
            };
            both += 1;
            let is_alike = file.1.len() == server.1.len() && server.1.iter().zip(&file.1).all(|(a, b)| agree(a, b));
            // What a lock answers is nothing, and read by nobody.
            let is_unsaid = |it: &Described| it.form == Form::Unsaid && !it.name.starts_with("pg_advisory_");
            if !is_alike || server.1.iter().any(is_unsaid) {
                wrong.push(format!("{found}\n{file:?}\n{server:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {both} and {one}:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(both >= 80 && one >= 60, "{both} on both engines, {one} on one");
}
