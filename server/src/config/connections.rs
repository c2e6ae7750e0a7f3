//! What connections may take: how many there are, and how long anybody is waited for, at the end
//! too.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use super::arguments::at_least_one;
use crate::http::HttpLimits;

/// Options.
#[derive(Args)]
pub(super) struct ConnectionArguments {
    /// Connections that may be open on a port at once, as far as the system lets so many files be
    /// open. For one more, the one that has been idle for longest is closed; while none is idle,
    /// it waits
    #[arg(long, value_name = "N", default_value_t = HttpLimits::STANDARD.n_connections_max)]
    #[arg(value_parser = at_least_one, help_heading = "Connections")]
    max_connections: usize,

    /// Seconds in which the head of a connection's next request must arrive, else it is closed;
    /// clients of gRPC are asked for a sign of life as often
    #[arg(long, value_name = "SECONDS", default_value = "30", help_heading = "Connections")]
    head_timeout: NonZeroU32,

    /// Seconds in which the body of a request must arrive, else it is answered 408
    #[arg(long, value_name = "SECONDS", default_value = "60", help_heading = "Connections")]
    body_timeout: NonZeroU32,

    /// Seconds that a client may take nothing of an answer that is there; then its connection is
    /// closed and what it asked for is cancelled
    #[arg(long, value_name = "SECONDS", default_value = "120", help_heading = "Connections")]
    write_timeout: NonZeroU32,

    /// After SIGTERM: seconds in which /health and /v2/health/ready say 503 and 400 but requests
    /// are taken, so that a load balancer sees it and sends them elsewhere. Two of its health
    /// checks are a good time
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = "Shutdown")]
    drain_notice: u32,

    /// Seconds that running requests get to finish after that; what then still runs is cut
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Shutdown")]
    drain_timeout: u32,
}

impl ConnectionArguments {
    /// Decides its part of the bounds.
    pub(super) fn limits(self) -> HttpLimits {
        let seconds = |n: NonZeroU32| Duration::from_secs(n.get().into());
        HttpLimits {
            n_connections_max: self.max_connections,
            head_timeout: seconds(self.head_timeout),
            body_timeout: seconds(self.body_timeout),
            write_timeout: seconds(self.write_timeout),
            drain_notice: Duration::from_secs(self.drain_notice.into()),
            drain_timeout: Duration::from_secs(self.drain_timeout.into()),
            ..HttpLimits::STANDARD
        }
    }
}
