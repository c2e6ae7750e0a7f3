//! Counters in Prometheus' own format, which publishes a counter under exactly its name. It knows
//! no metric's name.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A counter that is published under exactly its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Total(Counter<u64, AtomicU64>);

/// The same for seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct TotalSeconds(Counter<f64, AtomicU64>);

impl Total {
    /// One more.
    pub(crate) fn inc(&self) {
        self.0.inc();
    }

    /// That many more.
    pub(crate) fn add(&self, n: u64) {
        self.0.inc_by(n);
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
