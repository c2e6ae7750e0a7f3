//! Connections: how many are open, and which the server gave up.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::total::Total;

/// Why a connection was closed though its client had not left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// No whole head came in time, or no answer to a ping.
    Silent,
    /// The client took nothing for too long though there was something for it.
    WriteTimeout,
    /// It was idle, and somebody else needed its place.
    GaveWay,
}

const ALL: [Cut; 3] = [Cut::Silent, Cut::WriteTimeout, Cut::GaveWay];

pub(super) struct ConnectionMetrics {
    pub(super) open: Gauge,
    pub(super) cut: Family<CutLabels, Total>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CutLabels {
    reason: &'static str,
}

/// A connection that is counted as open, until dropped.
#[derive(Debug)]
pub struct OpenConnection {
    open: Gauge,
}

impl Cut {
    fn labels(self) -> CutLabels {
        let reason = match self {
            Cut::Silent => "silent",
            Cut::WriteTimeout => "write_timeout",
            Cut::GaveWay => "gave_way",
        };
        CutLabels { reason }
    }
}

impl ConnectionMetrics {
    pub(super) fn new() -> ConnectionMetrics {
        let cut: Family<CutLabels, Total> = Family::default();
        // All reasons are there from the start.
        ALL.iter().for_each(|reason| cut.get_or_create(&reason.labels()).set(0));
        ConnectionMetrics { open: Gauge::default(), cut }
    }

    pub(super) fn open(&self) -> OpenConnection {
        self.open.inc();
        OpenConnection { open: self.open.clone() }
    }

    pub(super) fn cut(&self, cut: Cut) {
        self.cut.get_or_create(&cut.labels()).inc();
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.open.dec();
    }
}
