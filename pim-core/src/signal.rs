//! What a signal is: a constant descriptor, closed label sets, and handles that are bound once at start.
//!
//! Every series exists at zero from the start, and emitting looks nothing up: a label set is an index.
//!
//! ```
//! use pim_core::signal::{Catalog, Descriptor, Kind, LabelDescriptor, Purpose, SignalRegistry};
//!
//! pim_core::closed_enum! { pub enum Outcome { Sold = "sold", Refused = "refused" } }
//! const SALES: Descriptor = Descriptor {
//!     name: "shop_sales",
//!     kind: Kind::Counter,
//!     unit: "",
//!     help: "Sales by outcome.",
//!     labels: &[LabelDescriptor { name: "outcome", values: &["sold", "refused"] }],
//!     purpose: Purpose::Red,
//!     buckets: &[],
//!     owner: "shop",
//!     runbook: "",
//! };
//! const CATALOG: Catalog = Catalog { owner: "shop", descriptors: &[&SALES] };
//!
//! let mut registry = SignalRegistry::new();
//! let sales = registry.counter::<Outcome>(CATALOG.descriptors[0])?;
//! sales.get(Outcome::Sold).inc();
//! assert!(registry.encode().contains("shop_sales_total{outcome=\"sold\"} 1"));
//! assert!(registry.encode().contains("shop_sales_total{outcome=\"refused\"} 0"));
//! # Ok::<(), pim_core::signal::SignalError>(())
//! ```

mod family;
mod form;
mod label;
mod span;

pub use family::{CounterFamily, GaugeFamily, HistogramFamily, Observer};
pub use label::{LabelSet, ShardGroup, Store};
pub use span::{Span, SpanKind, SpanSink, Spans};

use std::fmt;

use prometheus_client::registry::Registry;
use uuid::Uuid;

/// Most series of one family, as who scrapes it counts them: a histogram has a series for each bucket of each label set.
pub const SERIES_MAX: usize = 2_000;

/// Bucket bounds for latencies, in seconds; every objective's threshold is one of them.
pub const LATENCY_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What a signal measures with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// What a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Rate, errors, duration of requests.
    Red,
    /// Utilisation, saturation, errors of resources.
    Use,
    /// An objective is computed from it.
    Slo,
    /// For looking closer only.
    Debug,
}

/// One label and all values that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LabelDescriptor {
    /// Its name.
    pub name: &'static str,
    /// Its values, in the order of the enum that emits them.
    pub values: &'static [&'static str],
}

/// Last words of names whose values would be persons, records or requests, one by one.
const IDENTIFYING: &[&str] = &[
    "address",
    "birthdate",
    "email",
    "id",
    "ids",
    "ip",
    "mail",
    "patient",
    "person",
    "phone",
    "request",
    "span",
    "ssn",
    "subject",
    "telephone",
    "trace",
    "user",
    "username",
    "uuid",
];

impl LabelDescriptor {
    /// Whether it tells one person, record or request from another: by the last word of its name, or because a value is an id.
    ///
    /// ```
    /// use pim_core::signal::LabelDescriptor;
    /// assert!(LabelDescriptor { name: "patient_id", values: &["a"] }.is_identifying());
    /// assert!(LabelDescriptor { name: "whose", values: &["018f2c6e-0000-8000-8000-000000000001"] }.is_identifying());
    /// assert!(!LabelDescriptor { name: "shard", values: &["0", "1"] }.is_identifying());
    /// ```
    #[must_use]
    pub fn is_identifying(&self) -> bool {
        let is_id =
            |value: &&str| Uuid::try_parse(value).is_ok() || value.bytes().filter(u8::is_ascii_digit).count() >= 6;
        let last = self.name.rsplit(['_', '.']).next().unwrap_or(self.name);
        // Of shards there are few, and nobody is one.
        let is_named = IDENTIFYING.contains(&last) && self.name != "shard_id";
        is_named || self.values.iter().any(is_id)
    }
}

/// One signal, declared as a constant.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Descriptor {
    /// Its full name, unit last; a counter is shown with `_total` behind it.
    pub name: &'static str,
    /// What it measures with.
    pub kind: Kind,
    /// Its unit, empty for plain counts.
    pub unit: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [LabelDescriptor],
    /// What it is for.
    pub purpose: Purpose,
    /// Upper bounds, for histograms.
    pub buckets: &'static [f64],
    /// The crate or room that emits it.
    pub owner: &'static str,
    /// File name of the runbook that reads it, empty when none does.
    pub runbook: &'static str,
}

impl Descriptor {
    /// How many series each of its label sets has.
    const fn series_each(&self) -> usize {
        match self.kind {
            Kind::Counter | Kind::Gauge => 1,
            // The bucket without a bound, the sum and the count come on top.
            Kind::Histogram => self.buckets.len() + 3,
        }
    }
}

/// All signals of one crate.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Catalog {
    /// Which crate.
    pub owner: &'static str,
    /// Its signals.
    pub descriptors: &'static [&'static Descriptor],
}

/// A signal that cannot be bound; all of these are mistakes of the declaring program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// It was declared as something else.
    #[error("signal {name} is not declared as {asked:?}")]
    Kind {
        /// Which.
        name: &'static str,
        /// What it was bound as.
        asked: Kind,
    },
    /// The emitting enums are not the declared values.
    #[error("labels of signal {name} are not the ones declared")]
    Labels {
        /// Which.
        name: &'static str,
    },
    /// Its name is no word of letters, digits and underscores, or ends as the exposition itself ends names.
    #[error("{name} is no name of a signal: letters, digits and underscores, and no ending such as _total")]
    Name {
        /// Which.
        name: &'static str,
    },
    /// The name of a label is no such word, stands there twice, or is one that histograms have.
    #[error("signal {name} has label {label}, which is no word, is there twice, or is le or quantile")]
    LabelName {
        /// Which.
        name: &'static str,
        /// The label.
        label: &'static str,
    },
    /// A histogram without bounds, or with some that do not rise.
    #[error("the buckets of signal {name} are none, or do not rise")]
    Buckets {
        /// Which.
        name: &'static str,
    },
    /// Its name does not end in its unit.
    #[error("signal {name} does not end in its unit, {unit}")]
    Unit {
        /// Which.
        name: &'static str,
        /// The unit.
        unit: &'static str,
    },
    /// What it tells people has more than one line.
    #[error("the help of signal {name} has a line break")]
    Help {
        /// Which.
        name: &'static str,
    },
    /// Too many series.
    #[error("signal {name} has {series} series, at most {SERIES_MAX} are allowed")]
    Series {
        /// Which.
        name: &'static str,
        /// How many it would have.
        series: usize,
    },
    /// A label tells one person, record or request from another: its values have no end, and they say whose they are.
    #[error("signal {name} has label {label}, which identifies somebody or something")]
    Identifying {
        /// Which.
        name: &'static str,
        /// The label, by its name or by a value that is an id.
        label: &'static str,
    },
    /// It was bound before.
    #[error("signal {name} is bound twice")]
    Twice {
        /// Which.
        name: &'static str,
    },
}

/// Where signals are bound, and read from.
#[derive(Default)]
pub struct SignalRegistry {
    inner: Registry,
    bound: Vec<&'static Descriptor>,
}

impl fmt::Debug for SignalRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.bound.iter().map(|descriptor| descriptor.name)).finish()
    }
}

impl SignalRegistry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a counter.
    ///
    /// # Errors
    /// [`SignalError`] when declaration and use differ.
    pub fn counter<L: LabelSet>(&mut self, signal: &'static Descriptor) -> Result<CounterFamily<L>, SignalError> {
        self.admit::<L>(signal, Kind::Counter)?;
        Ok(CounterFamily::bind(&mut self.inner, signal))
    }

    /// Binds a gauge.
    ///
    /// # Errors
    /// [`SignalError`] when declaration and use differ.
    pub fn gauge<L: LabelSet>(&mut self, signal: &'static Descriptor) -> Result<GaugeFamily<L>, SignalError> {
        self.admit::<L>(signal, Kind::Gauge)?;
        Ok(GaugeFamily::bind(&mut self.inner, signal))
    }

    /// Binds a histogram.
    ///
    /// # Errors
    /// [`SignalError`] when declaration and use differ.
    pub fn histogram<L: LabelSet>(&mut self, signal: &'static Descriptor) -> Result<HistogramFamily<L>, SignalError> {
        self.admit::<L>(signal, Kind::Histogram)?;
        Ok(HistogramFamily::bind(&mut self.inner, signal))
    }

    /// What has been bound so far.
    #[must_use]
    pub fn bound(&self) -> &[&'static Descriptor] {
        &self.bound
    }

    /// Everything in OpenMetrics text form.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _infallible = prometheus_client::encoding::text::encode(&mut text, &self.inner);
        text
    }

    fn admit<L: LabelSet>(&mut self, signal: &'static Descriptor, asked: Kind) -> Result<(), SignalError> {
        let name = signal.name;
        if signal.kind != asked {
            return Err(SignalError::Kind { name, asked });
        }
        if let Some(label) = signal.labels.iter().find(|label| label.is_identifying()) {
            return Err(SignalError::Identifying { name, label: label.name });
        }
        form::check(signal)?;
        if self.bound.iter().any(|other| other.name == name) {
            return Err(SignalError::Twice { name });
        }
        let dimensions = L::dimensions();
        let declared = signal.labels.iter().map(|label| label.values.to_vec());
        if !declared.eq(dimensions.iter().cloned()) {
            return Err(SignalError::Labels { name });
        }
        let series = dimensions.iter().map(Vec::len).product::<usize>() * signal.series_each();
        if series > SERIES_MAX {
            return Err(SignalError::Series { name, series });
        }
        self.bound.push(signal);
        Ok(())
    }
}
