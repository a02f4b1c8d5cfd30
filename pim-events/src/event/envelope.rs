//! The envelope as headers: CloudEvents 1.0 in binary mode, so that every bus carries the same attributes.

use std::str::FromStr;

use pim_core::clock::Timestamp;
use pim_core::context::RequestId;
use pim_core::shard::{Bucket, Epoch};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Event;

/// Most bytes that the headers of one record may take. Those of an event take less, whatever it is: its names are short.
pub const HEADER_BYTES_MAX: usize = 4096;

const SPEC_VERSION: &str = "1.0";
const SCHEMA_PREFIX: &str = "urn:pim:event:";

/// Names and values beside a payload. Never personal data, never free text.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Headers(Vec<(String, String)>);

/// A record that is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// A header that every event has is not there.
    #[error("header {name} is missing")]
    Missing {
        /// Which header.
        name: &'static str,
    },
    /// A header cannot be read.
    #[error("header {name} is malformed")]
    Malformed {
        /// Which header.
        name: &'static str,
    },
    /// The payload is no JSON text.
    #[error("payload is not json")]
    Payload,
}

impl Headers {
    /// The value of `name`, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Adds or replaces a header.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    fn parsed<T: FromStr>(&self, name: &'static str) -> Result<T, EnvelopeError> {
        let text = self.get(name).ok_or(EnvelopeError::Missing { name })?;
        text.parse().map_err(|_| EnvelopeError::Malformed { name })
    }

    fn text(&self, name: &'static str) -> Result<String, EnvelopeError> {
        self.get(name).map(str::to_owned).ok_or(EnvelopeError::Missing { name })
    }
}

impl Event {
    /// The attributes of this event, for the wire.
    #[must_use]
    pub fn headers(&self) -> Headers {
        let mut all = vec![
            ("ce_specversion", SPEC_VERSION.to_owned()),
            ("ce_id", self.id.to_string()),
            ("ce_source", self.origin.to_string()),
            ("ce_type", self.event_type.clone()),
            ("ce_subject", format!("{}/{}", self.aggregate, self.aggregate_id)),
            ("ce_time", self.time.to_string()),
            ("ce_dataschema", format!("{SCHEMA_PREFIX}{}:{}", self.event_type, self.schema_version)),
            ("ce_partitionkey", self.home.to_string()),
            ("aggregate", self.aggregate.clone()),
            ("aggregate_version", self.aggregate_version.to_string()),
            ("correlation", self.correlation.to_string()),
            ("traceparent", self.trace.to_string()),
            ("pim-bucket", self.bucket.to_string()),
            ("pim-n", self.n.to_string()),
            ("pim-owner", self.owner_epoch.to_string()),
            ("pim-src", format!("{}/{}", self.origin, self.bucket.lane().get())),
            ("pim-seq", self.seq.to_string()),
            ("pim-actor", self.actor.clone()),
            ("pim-role", self.role.clone()),
        ];
        if let Some(cause) = self.causation {
            all.push(("causation", cause.to_string()));
        }
        Headers(all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// An event from the wire.
    ///
    /// # Errors
    /// [`EnvelopeError`] names the header that is missing or malformed.
    pub fn from_wire(headers: &Headers, payload: &str) -> Result<Self, EnvelopeError> {
        // Another major version may mean anything by the same names.
        if headers.text("ce_specversion")? != SPEC_VERSION {
            return Err(EnvelopeError::Malformed { name: "ce_specversion" });
        }
        let event_type = headers.text("ce_type")?;
        // Another publisher's types are none of ours, and passed over; but no server takes a NUL.
        if event_type.chars().any(char::is_control) {
            return Err(EnvelopeError::Malformed { name: "ce_type" });
        }
        let aggregate_id = headers.text("ce_subject")?;
        let (aggregate, aggregate_id) =
            aggregate_id.rsplit_once('/').ok_or(EnvelopeError::Malformed { name: "ce_subject" })?;
        let schema = headers.text("ce_dataschema")?;
        let schema_version = schema
            .strip_prefix(SCHEMA_PREFIX)
            .and_then(|schema| schema.strip_prefix(event_type.as_str())?.strip_prefix(':')?.parse().ok())
            .ok_or(EnvelopeError::Malformed { name: "ce_dataschema" })?;
        let bucket = Bucket::new(headers.parsed("pim-bucket")?);
        Ok(Self {
            id: headers.parsed("ce_id")?,
            origin: headers.parsed("ce_source")?,
            event_type,
            schema_version,
            time: headers.parsed::<Timestamp>("ce_time")?,
            home: headers.parsed("ce_partitionkey")?,
            bucket: bucket.map_err(|_| EnvelopeError::Malformed { name: "pim-bucket" })?,
            n: headers.parsed("pim-n")?,
            owner_epoch: Epoch(headers.parsed("pim-owner")?),
            aggregate: aggregate.to_owned(),
            aggregate_id: Uuid::try_parse(aggregate_id).map_err(|_| EnvelopeError::Malformed { name: "ce_subject" })?,
            aggregate_version: headers.parsed("aggregate_version")?,
            correlation: headers.parsed::<RequestId>("correlation")?,
            causation: headers.get("causation").map(|_| headers.parsed("causation")).transpose()?,
            trace: headers.parsed("traceparent")?,
            actor: headers.text("pim-actor")?,
            role: headers.text("pim-role")?,
            seq: headers.parsed("pim-seq")?,
            published_at: None,
            payload: RawValue::from_string(payload.to_owned()).map_err(|_| EnvelopeError::Payload)?,
        })
    }
}
