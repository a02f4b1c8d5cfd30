//! Handles: one for each combination of labels, made when the family is bound.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Descriptor, LabelSet};
use crate::context::TraceId;

type Labels = Vec<(&'static str, &'static str)>;
type Traced = HistogramWithExemplars<[(&'static str, String); 1]>;

macro_rules! family {
    ($(#[$meta:meta])* $name:ident of $metric:ty) => {
        $(#[$meta])*
        pub struct $name<L> {
            series: Arc<[$metric]>,
            labels: PhantomData<fn(L)>,
        }

        impl<L> Clone for $name<L> {
            fn clone(&self) -> Self {
                Self { series: Arc::clone(&self.series), labels: PhantomData }
            }
        }

        impl<L> fmt::Debug for $name<L> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("series", &self.series.len()).finish()
            }
        }

        impl<L: LabelSet> $name<L> {
            /// The handle of one combination.
            #[must_use]
            pub fn get(&self, labels: L) -> &$metric {
                &self.series[labels.index()]
            }
        }
    };
}

family!(
    /// Counters.
    CounterFamily of Counter
);
family!(
    /// Gauges.
    GaugeFamily of Gauge
);
family!(
    /// Histograms.
    HistogramFamily of Observer
);

/// One histogram.
#[derive(Clone, Debug)]
pub struct Observer(Traced);

impl Observer {
    /// Counts one observation.
    pub fn observe(&self, value: f64) {
        self.0.observe(value, None, None);
    }

    /// Counts one duration, in seconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    /// Counts one duration and shows a kept trace as its example.
    #[expect(clippy::disallowed_methods, reason = "an example carries the wall time of its scrape, no test reads it")]
    pub fn observe_traced(&self, duration: Duration, trace: TraceId) {
        let labels = [("trace_id", trace.to_string())];
        self.0.observe(duration.as_secs_f64(), Some(labels), Some(SystemTime::now()));
    }
}

impl<L: LabelSet> CounterFamily<L> {
    pub(super) fn bind(registry: &mut Registry, signal: &'static Descriptor) -> Self {
        let series = bind::<Counter, _>(registry, signal, Counter::default);
        Self { series: series.into(), labels: PhantomData }
    }
}

impl<L: LabelSet> GaugeFamily<L> {
    pub(super) fn bind(registry: &mut Registry, signal: &'static Descriptor) -> Self {
        let series = bind::<Gauge, _>(registry, signal, Gauge::default);
        Self { series: series.into(), labels: PhantomData }
    }
}

impl<L: LabelSet> HistogramFamily<L> {
    pub(super) fn bind(registry: &mut Registry, signal: &'static Descriptor) -> Self {
        let series = bind::<Traced, _>(registry, signal, Buckets(signal.buckets));
        Self { series: series.into_iter().map(Observer).collect(), labels: PhantomData }
    }
}

#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Traced> for Buckets {
    fn new_metric(&self) -> Traced {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

/// Makes every series of a family, in the order of [`LabelSet::index`].
fn bind<M, C>(registry: &mut Registry, signal: &'static Descriptor, make: C) -> Vec<M>
where
    M: Clone + EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
    C: MetricConstructor<M> + Clone + Send + Sync + 'static,
{
    let family = Family::<Labels, M, C>::new_with_constructor(make);
    let mut combinations: Vec<Labels> = vec![Vec::new()];
    for label in signal.labels {
        let extend = |labels: &Labels| {
            let labels = labels.clone();
            label.values.iter().map(move |value| {
                let mut longer = labels.clone();
                longer.push((label.name, *value));
                longer
            })
        };
        combinations = combinations.iter().flat_map(extend).collect();
    }
    let series = combinations.iter().map(|labels| family.get_or_create(labels).clone()).collect();
    let help = signal.help.trim_end_matches('.');
    // The unit is told apart when the name ends in it, and put behind the name again.
    let stem = signal.name.strip_suffix(signal.unit).and_then(|stem| stem.strip_suffix('_'));
    match stem.filter(|_| !signal.unit.is_empty()) {
        Some(stem) => registry.register_with_unit(stem, help, Unit::Other(signal.unit.to_owned()), Registered(family)),
        None => registry.register(signal.name, help, Registered(family)),
    }
    series
}

/// What the registry holds; `Family` asks its constructor for more than it needs to be shown.
#[derive(Debug)]
struct Registered<M>(M);

impl<M: EncodeMetric> EncodeMetric for Registered<M> {
    fn encode(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> prometheus_client::metrics::MetricType {
        self.0.metric_type()
    }
}
