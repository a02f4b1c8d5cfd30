//! Dead letters: what consumers hold, page by page, and how it is applied after all.

use std::str::FromStr;

use axum::extract::{Path, State};
use pim_core::clock::Timestamp;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::{Read, Write};
use pim_events::{DeadPlace, DeadRecord, HeldKey, HeldPlace, ReplaySelection, UnparkError};
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Intent, known_consumer, operate, unavailable};
use crate::rig::{Answer, Asked, Command, Endpoints, Failure, May, Nothing, Operation, PageQuery, page_of};
use crate::workers::Stores;

/// The key goes on by itself, or has never been seen.
const KEY_NOT_HELD: ProblemType = ProblemType::new("key-not-held", 404, "The consumer does not hold this key");
/// An event before those that are held is missing; when it comes the key goes on by itself.
const KEY_WAITS: ProblemType =
    ProblemType::new("key-waits-for-event", 409, "The key waits for an event that is missing");
/// Only a rebuild of the read model helps.
const KEY_REWOUND: ProblemType =
    ProblemType::new("key-rewound", 409, "The key's history was rewound: rebuild the read model");
/// Going through its events again would take too much at once, so it stays held.
const KEY_TOO_LONG: ProblemType =
    ProblemType::new("key-too-long", 409, "The log has too many events of the key to go through them again");

/// No event has this type; `event_types` lists those that there are.
const UNKNOWN_EVENT_TYPE: ProblemType = ProblemType::new("unknown-event-type", 404, "There is no such type of event");

/// Events of a held key that its entry shows; how many there are is told beside.
const LETTERS_MAX: u32 = 20;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/dead-letters", "Lists what consumers hold"), dead_letters)
        .serve(Operation::operate("/v1/admin/dead-letters/replay", "Applies what is held again"), replay)
        .serve(Operation::operate("/v1/admin/dead-letters/{consumer}/{key}/unpark", "Lets a held key go on"), unpark)
}

/// Two lists in one document, each with a place of its own.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Places {
    /// How many items of each list, 1 to 200
    limit: Option<u32>,
    /// The next_cursor of the page before
    cursor: Option<String>,
    /// The next_unreadable_cursor of the page before
    unreadable_cursor: Option<String>,
}

async fn dead_letters(
    State(stores): State<Stores>,
    May(_permit): May<Read>,
    Asked(asked): Asked<Places>,
) -> Result<Answer, Failure> {
    let (of_keys, of_records) =
        (PageQuery::new(asked.limit, asked.cursor), PageQuery::new(asked.limit, asked.unreadable_cursor));
    let limit = of_keys.limit()?;
    let place = of_keys.cursor()?.map_or(Ok(HeldPlace::start()), |cursor| held_place(cursor.key()))?;
    let held = stores.reads.held_keys_behind(&place, None, limit).await.map_err(unavailable)?;
    let mut items = Vec::with_capacity(held.len());
    for key in &held {
        let letters = stores.reads.dead_letters(&key.consumer, key.key, 0, LETTERS_MAX).await.map_err(unavailable)?;
        items.push(json!({"held": key, "events": letters}));
    }
    let place = of_records.cursor()?.map_or(Ok(DeadPlace::start()), |cursor| dead_place(cursor.key()))?;
    let records = stores.reads.dead_records_behind(&place, limit).await.map_err(unavailable)?;
    let (held, records) = (page_of(&held, limit, key_text), page_of(&records, limit, record_text));
    Answer::ok(&json!({
        "items": items,
        "next_cursor": held["next_cursor"],
        "unreadable": records["items"],
        "next_unreadable_cursor": records["next_cursor"],
    }))
}

fn key_text(key: &HeldKey) -> String {
    format!("{}/{}/{}", key.since.as_micros(), key.consumer, key.key)
}

fn record_text(record: &DeadRecord) -> String {
    let DeadRecord { consumer, topic, partition, offset, at, .. } = record;
    format!("{}/{consumer}/{topic}/{partition}/{offset}", at.as_micros())
}

fn held_place(text: &str) -> Result<HeldPlace, Failure> {
    let parts: Vec<&str> = text.split('/').collect();
    let [since, consumer, key] = parts[..] else { return Err(Problem::of(problem::INVALID_CURSOR).into()) };
    Ok(HeldPlace { since: time(since)?, consumer: consumer.to_owned(), key: part(key)? })
}

fn dead_place(text: &str) -> Result<DeadPlace, Failure> {
    let parts: Vec<&str> = text.split('/').collect();
    let [at, consumer, topic, partition, offset] = parts[..] else {
        return Err(Problem::of(problem::INVALID_CURSOR).into());
    };
    let (consumer, topic) = (consumer.to_owned(), topic.to_owned());
    Ok(DeadPlace { at: time(at)?, consumer, topic, partition: part(partition)?, offset: part(offset)? })
}

fn time(text: &str) -> Result<Timestamp, Failure> {
    part(text).map(Timestamp::from_micros)
}

fn part<T: FromStr>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| Problem::of(problem::INVALID_CURSOR).into())
}

async fn unpark(
    State(stores): State<Stores>,
    May(permit): May<Write>,
    Path((consumer, key)): Path<(String, String)>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    let key = Uuid::try_parse(&key).map_err(|_| Problem::of(problem::INVALID_ID).detail("the key of a held key"))?;
    known_consumer(&consumer)?;
    let intent = Intent::new("dead_letter.unpark", format!("{consumer}/{key}"), json!({}));
    let effect = async {
        let command = crate::workers::commands().into_iter().find(|command| command.name() == consumer);
        let unparked = match command {
            Some(command) => stores.reads.unpark_command(&stores.bus, command.as_ref(), key).await,
            None => stores.reads.unpark(&consumer, key).await,
        };
        match unparked {
            Ok(()) => Answer::ok(&json!({"consumer": consumer, "key": key, "unparked": true})),
            Err(error) => Err(why_held(error)),
        }
    };
    operate(&stores.cluster, &permit, &command.cx, intent, effect).await
}

/// Each reason why a key cannot be un-parked is a problem of its own, because each is mended in another way.
fn why_held(error: UnparkError) -> Failure {
    match error {
        UnparkError::NotHeld => Problem::of(KEY_NOT_HELD).into(),
        UnparkError::Gap => Problem::of(KEY_WAITS).into(),
        UnparkError::Rewound => Problem::of(KEY_REWOUND).into(),
        UnparkError::TooLong { most } => {
            Problem::of(KEY_TOO_LONG).detail(format!(
                "the log has more than {most} events of the key: it stays held, and what its commands were to do is done by hand"
            )).into()
        }
        other => unavailable(other),
    }
}

/// Body of a replay: which parked keys, and whether to only say which they are.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = Replay)]
#[serde(deny_unknown_fields)]
struct Replaying {
    #[serde(default)]
    selection: Selection,
    /// Only says which keys they are.
    #[serde(default)]
    dry_run: bool,
}

/// Those with an event that fits everything that is given.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = ReplaySelection)]
#[serde(deny_unknown_fields)]
struct Selection {
    /// Of this consumer.
    consumer: Option<String>,
    /// This key.
    #[schema(value_type = Option<String>, format = "uuid")]
    key: Option<Uuid>,
    /// With an event of this type.
    event_type: Option<String>,
    /// With an event written at or after this instant.
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// With an event written before this instant.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// With an event that this event caused.
    #[schema(value_type = Option<String>, format = "uuid")]
    causation: Option<Uuid>,
}

impl From<Selection> for ReplaySelection {
    fn from(asked: Selection) -> Self {
        let Selection { consumer, key, event_type, from, until, causation } = asked;
        Self { consumer, key, event_type, from, until, causation }
    }
}

async fn replay(
    State(stores): State<Stores>,
    May(permit): May<Write>,
    command: Command<Replaying>,
) -> Result<Answer, Failure> {
    let Replaying { selection, dry_run } = command.body;
    // What is asked for goes into the trail, where no text of anybody's own belongs.
    selection.consumer.as_deref().map_or(Ok(()), known_consumer)?;
    selection.event_type.as_deref().map_or(Ok(()), |name| known_event_type(&stores, name))?;
    let selection = &ReplaySelection::from(selection);
    if dry_run {
        let plan = stores.reads.plan_replay(selection).await.map_err(unavailable)?;
        return Answer::ok(&json!({"dry_run": true, "plan": plan}));
    }
    let asked = serde_json::to_value(selection).unwrap_or_default();
    let effect = async {
        let plan = stores.reads.replay(selection).await.map_err(unavailable)?;
        Answer::ok(&json!({"dry_run": false, "plan": plan}))
    };
    let intent = Intent::new("dead_letter.replay", "", asked);
    operate(&stores.cluster, &permit, &command.cx, intent, effect).await
}

fn known_event_type(stores: &Stores, name: &str) -> Result<(), Problem> {
    if stores.registry.version_of(name).is_some() {
        return Ok(());
    }
    let known: Vec<&'static str> = stores.registry.types().map(|(known, ..)| known).collect();
    Err(Problem::of(UNKNOWN_EVENT_TYPE).with("event_types", known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_a_problem_of_its_own() {
        let told = |error| match why_held(error) {
            Failure::Problem(problem) => (problem.kind().slug, problem.status().as_u16()),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(UnparkError::NotHeld), ("key-not-held", 404));
        assert_eq!(told(UnparkError::Gap), ("key-waits-for-event", 409));
        assert_eq!(told(UnparkError::Rewound), ("key-rewound", 409));
        assert_eq!(told(UnparkError::TooLong { most: 9 }), ("key-too-long", 409));
        assert_eq!(told(UnparkError::Bus(pim_events::BusError::Closed)).1, 503);
    }
}
