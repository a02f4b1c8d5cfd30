//! Replaying parked sequences: chosen by consumer, key, type, time or cause; shown before it is done.

use std::collections::BTreeMap;

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Statement};
use uuid::Uuid;

use super::UnparkError;
use crate::projection::{ReadStore, StoreError};

/// Most keys that one replay takes; ask again for more.
const KEYS_MAX: u64 = 1000;
const HOUR_MICROS: i64 = 3_600_000_000;

/// Which parked keys to apply again: those with an event that fits everything that is given.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplaySelection {
    /// Of this consumer.
    pub consumer: Option<String>,
    /// This key.
    pub key: Option<Uuid>,
    /// With an event of this type.
    pub event_type: Option<String>,
    /// With an event written at or after this instant.
    pub from: Option<Timestamp>,
    /// With an event written before this instant.
    pub until: Option<Timestamp>,
    /// With an event that this event caused.
    pub causation: Option<Uuid>,
}

/// A parked key that a replay takes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ReplayedKey {
    /// Of which consumer.
    pub consumer: String,
    /// Which key.
    pub key: Uuid,
}

/// What a replay does, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReplayPlan {
    /// The keys, at most a thousand.
    pub keys: Vec<ReplayedKey>,
    /// Their held events by type.
    pub by_type: BTreeMap<String, u64>,
    /// Their held events by the hour in which they were written.
    pub by_hour: BTreeMap<String, u64>,
}

impl ReadStore {
    /// What [`ReadStore::replay`] would take. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn plan_replay(&self, selection: &ReplaySelection) -> Result<ReplayPlan, StoreError> {
        let asked = Statement::same(
            "WITH chosen AS (
               SELECT k.consumer, k.home_key FROM held_key k
               JOIN held_event e ON e.consumer = k.consumer AND e.home_key = k.home_key
               WHERE k.reason = 'poison' AND k.consumer = coalesce(?, k.consumer) AND k.home_key = coalesce(?, k.home_key)
                 AND e.event_type = coalesce(?, e.event_type) AND e.event_at >= coalesce(?, e.event_at)
                 AND e.event_at < coalesce(?, e.event_at + 1)
                 AND e.causation IS NOT DISTINCT FROM coalesce(?, e.causation)
               GROUP BY k.consumer, k.home_key ORDER BY min(k.since) LIMIT ?)
             SELECT c.consumer, c.home_key, e.event_type, e.event_at / ?, count(*) FROM chosen c
             JOIN held_event e ON e.consumer = c.consumer AND e.home_key = c.home_key
             GROUP BY 1, 2, 3, 4 ORDER BY 1, 2",
        );
        let (consumer, event_type) = (selection.consumer.as_deref(), selection.event_type.as_deref());
        let asked = asked.bind(consumer).bind(selection.key).bind(event_type).bind(selection.from);
        let asked = asked.bind(selection.until).bind(selection.causation).bind(KEYS_MAX).bind(HOUR_MICROS);
        let mut plan = ReplayPlan::default();
        for row in self.query(asked).await? {
            let key = ReplayedKey {
                consumer: row.text(0).map_err(DbError::from)?.to_owned(),
                key: row.uuid(1).map_err(DbError::from)?,
            };
            let hour = Timestamp::from_micros(row.int(3).map_err(DbError::from)?.saturating_mul(HOUR_MICROS));
            let events = row.count(4).map_err(DbError::from)?;
            *plan.by_type.entry(row.text(2).map_err(DbError::from)?.to_owned()).or_default() += events;
            *plan.by_hour.entry(hour.to_string()).or_default() += events;
            if plan.keys.last() != Some(&key) {
                plan.keys.push(key);
            }
        }
        Ok(plan)
    }

    /// Un-parks the keys that fit, and says which. Their consumers apply them in order.
    ///
    /// # Errors
    /// [`StoreError::Db`]; keys before the failure are un-parked, and asking again takes the rest.
    pub async fn replay(&self, selection: &ReplaySelection) -> Result<ReplayPlan, StoreError> {
        let plan = self.plan_replay(selection).await?;
        for ReplayedKey { consumer, key } in &plan.keys {
            match self.unpark(consumer, *key).await {
                // Somebody else released it, or it is held for another reason by now.
                Ok(()) | Err(UnparkError::NotHeld | UnparkError::Gap | UnparkError::Rewound) => {}
                // Only who gives commands again reads the log.
                Err(UnparkError::TooLong { .. } | UnparkError::Bus(_)) => {}
                Err(UnparkError::Store(error)) => return Err(error.into()),
            }
        }
        Ok(plan)
    }
}
