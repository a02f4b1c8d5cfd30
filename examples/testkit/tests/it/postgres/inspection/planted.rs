//! What nobody asked for is put into the databases as a whole, by somebody whom nothing binds: row, history, trail, event, and
//! all that the read model knows. Each of these agrees with the others, so only what was acknowledged tells that it is too much.

use pim_servers::fleet::Fleet;
use pim_servers::temporary::TemporaryFleet;
use pim_testkit::folder::Folder;
use tokio::task::block_in_place;

use super::{inspect, shards, stock};
use crate::postgres::kills_lose_nothing::start;
use crate::workload::{Workload, settled};

/// Who is said to have asked for it.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Nobody,
    /// Whoever asked for the first, with the same key.
    TheSame,
}

/// Repeats the newest creation of a row under another id. The home key, its new number, and the new id.
fn again(table: &str, asker: Asker) -> String {
    let request = match asker {
        Asker::Nobody => "gen_random_uuid()",
        Asker::TheSame => "told.request_id",
    };
    format!(
        "ALTER TABLE claim_row DROP CONSTRAINT IF EXISTS claim_row_encounter_id_key;
         CREATE TEMPORARY TABLE planted (home uuid, n bigint, id uuid, event uuid);
         DO $$
         DECLARE
           first {table}_row; told audit; tail audit; event outbox_event; head bigint; asked uuid; made uuid; record text;
         BEGIN
           SELECT * INTO first FROM {table}_row ORDER BY created_at DESC LIMIT 1;
           SELECT * INTO told FROM audit WHERE entity_id = first.id AND body::jsonb->>'version' = '1';
           SELECT * INTO event FROM outbox_event WHERE aggregate_id = first.id AND aggregate_version = 1;
           SELECT * INTO tail FROM audit WHERE lane = told.lane ORDER BY seq DESC LIMIT 1;
           made := (left(first.id::text, 24) || right(gen_random_uuid()::text, 12))::uuid;
           asked := {request};
           first.id := made;
           first.version := 1;
           -- The one that this repeats stays the newest.
           first.created_at := first.created_at - 1;
           INSERT INTO {table}_row SELECT first.*;
           UPDATE key_head SET n = n + 1 WHERE key = first.home_key RETURNING n INTO head;
           record := (told.body::jsonb || jsonb_build_object('id', made, 'n', head, 'request', asked))::text;
           INSERT INTO audit VALUES (tail.lane, tail.seq + 1, tail.hash, sha256(tail.hash || convert_to(record, 'UTF8')), record,
             told.at, asked, told.user_id, told.home_key, told.entity, made);
           event.event_id := gen_random_uuid();
           INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, schema_version, aggregate,
               aggregate_id, aggregate_version, correlation, causation, traceparent, actor, role, at, payload)
             VALUES (event.bucket, event.lane, event.owner_epoch, event.home_key, head, event.event_id, event.topic,
               event.event_type, event.schema_version, event.aggregate, made, 1, asked, event.causation, event.traceparent,
               event.actor, event.role, event.at, event.payload);
           INSERT INTO planted VALUES (first.home_key, head, made, event.event_id);
         END $$;
         SELECT home || '|' || n || '|' || id || '|' || event FROM planted"
    )
}

/// Plants it, and all that a reader would know of it; its id.
fn plant(fleet: &Fleet, table: &str, asker: Asker) -> String {
    let told = shards(fleet)[0].asked(&again(table, asker));
    let told: Vec<&str> = told.split('|').collect();
    let [home, n, id, event] = told[..] else { panic!("{told:?}") };
    let applied = format!(
        "INSERT INTO journey_hops (event_id, request_id, cause, event_type, home, n, origin, seq, trace, committed_at)
           SELECT '{event}', request_id, cause, event_type, home, {n}, origin, seq, trace, committed_at
           FROM journey_hops WHERE home = '{home}' LIMIT 1;
         UPDATE shard_distribution SET events = events + 1
           WHERE ctid = (SELECT ctid FROM shard_distribution WHERE origin <> 'control' LIMIT 1)"
    );
    fleet.unsharded_server().expect("a server").sql("read-store", &applied).expect("is applied");
    id.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_whole_effect_that_nobody_asked_for_is_found_and_so_is_each_loss() {
    let (folder, fleet) = (Folder::new("planted").unwrap(), TemporaryFleet::new(1).expect("servers"));
    let services = start(folder.path(), &fleet).await;
    let gateway = services.told("gateway").to_owned();
    let before = settled(&gateway).await;
    let had = block_in_place(|| stock(&fleet));
    let workload = Workload::default();
    let writers = workload.begin(&gateway).await;
    while workload.records().await < 60 {
        workload.acknowledgement().await;
    }
    workload.rest(writers).await;
    workload.retry(&gateway).await;
    workload.check_and_stop(services, &before).await;
    let account = workload.account().await;
    let findings = || block_in_place(|| inspect(&fleet, &had, &account)).findings;
    assert_eq!(findings(), Vec::<String>::new());

    let encounter = block_in_place(|| plant(&fleet, "encounter", Asker::Nobody));
    let found = findings();
    let [sum, row, request] = &found[..] else { panic!("{found:#?}") };
    let facts = stock(&fleet).facts();
    assert_eq!(*sum, format!("{facts} facts, of which {} are known", facts - 1));
    assert_eq!(*row, format!("/v1/encounters/{encounter} was never acknowledged"));
    assert!(request.ends_with("has 0 keys, 1 records and 1 events"), "{request}");

    block_in_place(|| plant(&fleet, "encounter", Asker::TheSame));
    assert!(findings().iter().any(|it| it.ends_with("has 1 keys, 2 records and 2 events")), "{:#?}", findings());

    block_in_place(|| plant(&fleet, "claim", Asker::TheSame));
    assert!(findings().iter().any(|it| it.ends_with("has 2 claims")), "{:#?}", findings());

    for (place, damage, told) in DAMAGES {
        let had = findings();
        block_in_place(|| break_it(&fleet, place, damage));
        let new: Vec<_> = findings().into_iter().filter(|it| !had.contains(it)).collect();
        assert!(new.iter().any(|it| it.contains(told)), "{damage}\nis not told as {told}: {new:#?}");
    }
}

/// What is done to a shard or to the read model, one upon the other, and what must be told of it: each statement of the inspection
/// is the only one that sees some of them.
const DAMAGES: [(&str, &str, &str); 9] = [
    (
        "read-store",
        "UPDATE shard_distribution SET events = events - 1
         WHERE ctid = (SELECT ctid FROM shard_distribution WHERE events > 1 LIMIT 1)",
        "events were applied of",
    ),
    (
        "shard-0",
        "DELETE FROM audit a WHERE entity = 'patient' AND seq = (SELECT max(seq) FROM audit b WHERE b.lane = a.lane)",
        "history and trail of patient agree",
    ),
    (
        "shard-0",
        "UPDATE audit SET body = body || ' ' WHERE hash = (SELECT hash FROM audit WHERE entity = 'encounter' ORDER BY at LIMIT 1)",
        "the trail's chains hold",
    ),
    (
        "shard-0",
        "DELETE FROM outbox_event WHERE (home_key, n) = (SELECT key, n FROM key_head ORDER BY n DESC LIMIT 1)",
        "each fact has one event",
    ),
    (
        "shard-0",
        "UPDATE encounter_row SET version = version - 1 WHERE id = (SELECT id FROM encounter_row WHERE version > 2 LIMIT 1)",
        "rows and history of encounter agree",
    ),
    (
        "shard-0",
        "DELETE FROM patient_history WHERE id = (SELECT id FROM patient_row WHERE version = 1 LIMIT 1)",
        "rows and history of patient agree",
    ),
    (
        "shard-0",
        "DELETE FROM claim_row WHERE id = (SELECT id FROM claim_row LIMIT 1)",
        "rows and history of claim agree",
    ),
    (
        "read-store",
        "UPDATE journey_hops SET event_id = gen_random_uuid()
         WHERE event_id = (SELECT event_id FROM journey_hops WHERE event_type LIKE 'patient%' LIMIT 1)",
        "is not the one of the read model",
    ),
    (
        "read-store",
        "DELETE FROM journey_hops
         WHERE event_id = (SELECT event_id FROM journey_hops WHERE event_type LIKE 'encounter%' LIMIT 1)",
        "is not the one of the read model",
    ),
];

/// As somebody could whom neither rights nor triggers bind.
fn break_it(fleet: &Fleet, place: &str, damage: &str) {
    let text = format!("SET session_replication_role = replica; {damage}");
    match place {
        "read-store" => fleet.unsharded_server().expect("a server").sql(place, &text).map(drop).expect("is broken"),
        _ => drop(shards(fleet)[0].asked(&text)),
    }
}
