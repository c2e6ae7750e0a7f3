//! What is traced, and who is told: options.

use clap::Args;

use crate::traces::{TraceEndpoint, TraceSettings};

/// Options.
#[derive(Args)]
pub(super) struct TraceArguments {
    /// OpenTelemetry collector that is told, by OTLP over HTTP, what each request waited for and
    /// which requests a step served, such as http://localhost:4318. Callers who send `traceparent`
    /// find both in their own traces. OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and
    /// OTEL_EXPORTER_OTLP_HEADERS are read too [default: nothing is traced]
    #[arg(long, value_name = "URL", help_heading = "Traces")]
    otlp_endpoint: Option<TraceEndpoint>,

    /// Share of the requests that are traced, 0 to 1, where a caller's `traceparent` does not
    /// decide
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = share)]
    #[arg(help_heading = "Traces")]
    trace_requests: f64,

    /// Share of the steps that are traced, 0 to 1, where they serve a traced request
    #[arg(long, value_name = "SHARE", default_value = "0.01", value_parser = share)]
    #[arg(help_heading = "Traces")]
    trace_steps: f64,
}

impl TraceArguments {
    /// Decides its part.
    pub(super) fn decide(self) -> Option<TraceSettings> {
        let (request_share, step_share) = (self.trace_requests, self.trace_steps);
        self.otlp_endpoint.map(|endpoint| TraceSettings { endpoint, request_share, step_share })
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}
