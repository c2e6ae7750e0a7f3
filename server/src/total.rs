//! Counters in Prometheus' own format, which publishes a counter under exactly its name. It knows
//! no metric's name.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A counter that is published under exactly its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Total(Counter<u64, AtomicU64>);

/// The same for seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct TotalSeconds(Counter<f64, AtomicU64>);

/// A histogram that is kept elsewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread(Arc<Mutex<Buckets>>);

/// How often, up to each bound, and the sum of all.
#[derive(Debug, Default)]
struct Buckets {
    sum: f64,
    /// Bounds, the last one `f64::MAX`, and how many lie between each and the one before it.
    counts: Vec<(f64, u64)>,
}

impl Spread {
    /// Takes over a sum, and counts up to each bound, the last one `f64::MAX`.
    pub(crate) fn set(&self, sum: f64, counts: Vec<(f64, u64)>) {
        *self.0.lock() = Buckets { sum, counts };
    }
}

impl Total {
    /// One more.
    pub(crate) fn inc(&self) {
        self.0.inc();
    }

    /// That many more.
    pub(crate) fn add(&self, n: u64) {
        self.0.inc_by(n);
    }

    /// The count.
    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }

    /// Takes over a count that is kept elsewhere.
    pub(crate) fn set(&self, n: u64) {
        self.0.inner().store(n, Ordering::Relaxed);
    }
}

impl TotalSeconds {
    /// Takes over a sum that is kept elsewhere.
    pub(crate) fn set(&self, seconds: f64) {
        self.0.inner().store(seconds.to_bits(), Ordering::Relaxed);
    }
}

// The library's encoder appends `_total` to a counter and leaves a gauge's name alone.
impl EncodeMetric for Total {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

// What a `Family` asks for.
impl TypedMetric for Total {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for TotalSeconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl TypedMetric for TotalSeconds {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Spread {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Buckets { sum, counts } = &*self.0.lock();
        let n = counts.iter().map(|(_, n)| n).sum();
        encoder.encode_histogram::<NoLabelSet>(*sum, n, counts, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for Spread {
    const TYPE: MetricType = MetricType::Histogram;
}
