//! What the operator decides about traces.

use std::str::FromStr;

use axum::http::Uri;
use thiserror::Error;

/// What is traced, and who is told.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// A collector.
    pub endpoint: TraceEndpoint,
    /// Of the requests whose caller does not say whether they are traced, the share that is, in
    /// [0, 1].
    pub request_share: f64,
    /// Of the steps, the share that is traced where it served a traced request, in [0, 1].
    pub step_share: f64,
}

/// Where a collector takes traces: `http://HOST:PORT`, or with a path that is not the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEndpoint {
    url: String,
}

/// Why an address cannot be a collector's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EndpointError {
    /// It is no address at all.
    #[error("not a URL: write http://HOST:4318")]
    NoUrl,
    /// Another protocol.
    #[error(
        "only http:// is spoken to collectors: write http://HOST:4318, and let a collector on \
             this machine send them on over TLS"
    )]
    NoHttp,
}

/// Why nothing can be traced.
#[derive(Debug, Error)]
pub enum TraceError {
    /// OpenTelemetry refuses what its variables in the environment say.
    #[error("cannot send traces: {cause}; mend or unset that OTEL_EXPORTER_OTLP_… variable")]
    Exporter {
        /// What is wrong.
        cause: opentelemetry_otlp::ExporterBuildError,
    },
}

impl TraceEndpoint {
    /// The whole address.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl FromStr for TraceEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<TraceEndpoint, EndpointError> {
        let uri: Uri = text.parse().map_err(|_| EndpointError::NoUrl)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(_) => return Err(EndpointError::NoHttp),
            None => return Err(EndpointError::NoUrl),
        }
        let url = match uri.path() {
            // Where OTLP over HTTP has traces.
            "" | "/" => format!("{}/v1/traces", text.trim_end_matches('/')),
            _ => text.to_owned(),
        };
        Ok(TraceEndpoint { url })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_its_host_or_by_its_whole_address() {
        let url = |text: &str| text.parse::<TraceEndpoint>().map(|endpoint| endpoint.url);
        let usual = Ok("http://collector:4318/v1/traces".to_owned());
        assert_eq!(url("http://collector:4318"), usual);
        assert_eq!(url("http://collector:4318/"), usual);
        assert_eq!(url("http://gateway/otlp"), Ok("http://gateway/otlp".to_owned()));
        assert_eq!(url("https://collector:4318"), Err(EndpointError::NoHttp));
        for text in ["", "collector:4318", "collector", "http://", "http://a b"] {
            assert_eq!(url(text), Err(EndpointError::NoUrl), "{text:?}");
        }
    }
}
