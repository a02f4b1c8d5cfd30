//! Which types and versions a program knows, and how old payloads become new ones.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{DomainEvent, Event};

type Upcaster = Arc<dyn Fn(Value) -> Result<Value, &'static str> + Send + Sync>;

#[derive(Clone)]
struct Known {
    version: u16,
    aggregate: &'static str,
    topic: &'static str,
    upcasters: BTreeMap<u16, Upcaster>,
}

/// The event types that a program knows. Cheap to clone.
///
/// ```
/// use pim_events::{DomainEvent, Registry};
/// # use serde::{Deserialize, Serialize};
/// # use uuid::Uuid;
/// #[derive(Serialize, Deserialize)]
/// struct Moved { who: Uuid, metres: u32 }
/// impl DomainEvent for Moved {
///     const TYPE: &'static str = "thing.moved";
///     const VERSION: u16 = 2;
///     const AGGREGATE: &'static str = "thing";
///     fn aggregate_id(&self) -> Uuid { self.who }
///     fn aggregate_version(&self) -> u64 { 1 }
/// }
/// let registry = Registry::builder()
///     .event::<Moved>()
///     .upcast("thing.moved", 1, |mut old| {
///         let feet = old["feet"].as_u64().ok_or("feet is not a number")?;
///         old["metres"] = (feet * 3 / 10).into();
///         Ok(old)
///     })
///     .build()?;
/// assert_eq!(registry.version_of("thing.moved"), Some(2));
/// # Ok::<(), pim_events::RegistryError>(())
/// ```
#[derive(Clone, Default)]
pub struct Registry(Arc<BTreeMap<&'static str, Known>>);

/// Collects event types; see [`Registry::builder`].
#[derive(Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct RegistryBuilder {
    known: BTreeMap<&'static str, Known>,
    upcasters: Vec<(&'static str, u16, Upcaster)>,
    twice: Option<&'static str>,
}

/// A registry that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two events share a type, or two upcasters a step.
    #[error("event type {event_type} is registered twice")]
    Twice {
        /// Which type.
        event_type: &'static str,
    },
    /// A name that is not 1 to 64 characters of `a-z 0-9 . _ -`, or version 0.
    #[error("event type {event_type} is not a lower-case dotted name with a version from 1")]
    Name {
        /// Which type.
        event_type: &'static str,
    },
    /// Its aggregate or topic has a name of another form, so that it could not travel.
    #[error("{what} {name} of event type {event_type} is not a lower-case dotted name of at most 64 characters")]
    Part {
        /// Which type.
        event_type: &'static str,
        /// `aggregate` or `topic`.
        what: &'static str,
        /// What it is called.
        name: &'static str,
    },
    /// An older version cannot be read.
    #[error("event type {event_type} has no upcaster from version {from}: add one with `.upcast`")]
    Chain {
        /// Which type.
        event_type: &'static str,
        /// The version that has no way up.
        from: u16,
    },
    /// An upcaster for a type or step that does not exist.
    #[error("upcaster of {event_type} from version {from} leads nowhere: register the event, in a higher version")]
    Stray {
        /// Which type.
        event_type: &'static str,
        /// From which version.
        from: u16,
    },
}

/// A payload that cannot be brought to the version that this program knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpcastError {
    /// The type is not registered.
    #[error("event type is not known here")]
    UnknownType,
    /// The payload is newer than this program.
    #[error("schema version {found} is newer than {known}")]
    UnknownVersion {
        /// The payload's version.
        found: u16,
        /// The newest one known.
        known: u16,
    },
    /// An upcaster refused the payload.
    #[error("upcast from version {from} failed: {reason}")]
    Refused {
        /// From which version.
        from: u16,
        /// The upcaster's own static reason.
        reason: &'static str,
    },
}

impl Registry {
    /// Starts an empty registry.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// Whether any type of a topic is one of these.
    pub(crate) fn has_any(&self, topic: &str, handles: impl Fn(&str) -> bool) -> bool {
        self.0.iter().any(|(event_type, known)| known.topic == topic && handles(event_type))
    }

    /// The newest version of a type.
    #[must_use]
    pub fn version_of(&self, event_type: &str) -> Option<u16> {
        self.0.get(event_type).map(|known| known.version)
    }

    /// Every registered type with version, aggregate and topic, in order of name.
    pub fn types(&self) -> impl Iterator<Item = (&'static str, u16, &'static str, &'static str)> {
        self.0.iter().map(|(name, known)| (*name, known.version, known.aggregate, known.topic))
    }

    /// The same event with its payload in the newest version.
    ///
    /// # Errors
    /// [`UpcastError`]; all of them are permanent for this program.
    pub fn upcast(&self, mut event: Event) -> Result<Event, UpcastError> {
        let known = self.0.get(event.event_type.as_str()).ok_or(UpcastError::UnknownType)?;
        if event.schema_version == known.version {
            return Ok(event);
        }
        if event.schema_version > known.version || event.schema_version == 0 {
            return Err(UpcastError::UnknownVersion { found: event.schema_version, known: known.version });
        }
        let refused = |from, reason| UpcastError::Refused { from, reason };
        let first = event.schema_version;
        let mut value: Value =
            serde_json::from_str(event.payload.get()).map_err(|_| refused(first, "payload is not json"))?;
        for from in first..known.version {
            let step = known.upcasters.get(&from).ok_or(refused(from, "no upcaster"))?;
            value = step(value).map_err(|reason| refused(from, reason))?;
        }
        event.payload =
            RawValue::from_string(value.to_string()).map_err(|_| refused(first, "upcast payload is not json"))?;
        event.schema_version = known.version;
        Ok(event)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl RegistryBuilder {
    /// Adds a type in its newest version.
    pub fn event<E: DomainEvent>(mut self) -> Self {
        let known = Known { version: E::VERSION, aggregate: E::AGGREGATE, topic: E::TOPIC, upcasters: BTreeMap::new() };
        if self.known.insert(E::TYPE, known).is_some() {
            self.twice = Some(E::TYPE);
        }
        self
    }

    /// Adds the step from version `from` of a type to the next one. It works on raw JSON, before decoding.
    pub fn upcast(
        mut self,
        event_type: &'static str,
        from: u16,
        step: impl Fn(Value) -> Result<Value, &'static str> + Send + Sync + 'static,
    ) -> Self {
        self.upcasters.push((event_type, from, Arc::new(step)));
        self
    }

    /// Checks names, duplicates and that every older version has a way up.
    ///
    /// # Errors
    /// [`RegistryError`] names the type that is wrong.
    pub fn build(self) -> Result<Registry, RegistryError> {
        if let Some(event_type) = self.twice {
            return Err(RegistryError::Twice { event_type });
        }
        let mut all = self.known;
        for (event_type, from, step) in self.upcasters {
            let stray = RegistryError::Stray { event_type, from };
            let known = all.get_mut(event_type).filter(|known| (1..known.version).contains(&from)).ok_or(stray)?;
            if known.upcasters.insert(from, step).is_some() {
                return Err(RegistryError::Twice { event_type });
            }
        }
        for (event_type, known) in &all {
            if !is_name(event_type) || known.version == 0 {
                return Err(RegistryError::Name { event_type });
            }
            for (what, name) in [("aggregate", known.aggregate), ("topic", known.topic)] {
                if !is_name(name) {
                    return Err(RegistryError::Part { event_type, what, name });
                }
            }
            if let Some(from) = (1..known.version).find(|from| !known.upcasters.contains_key(from)) {
                return Err(RegistryError::Chain { event_type, from });
            }
        }
        Ok(Registry(Arc::new(all)))
    }
}

/// Whether a text may name an event type, an aggregate or a topic.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}
