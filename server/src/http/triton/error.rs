//! Errors as Triton words them: `{"error": …}`, under the status of its error code.
//!
//! What fails inside its JSON reader is INTERNAL, 500; what the server checks is INVALID_ARG, 400.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::ext::ReasonPhrase;
use serde_json::{Value, json};
use thiserror::Error;

use super::super::body::one_chunk;
use super::super::error::ApiError;
use super::super::observe::ErrorLabel;
use super::super::sse;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain");

/// A refused request of this protocol.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Refusal {
    /// What is wrong has no word in Triton's protocol.
    #[error(transparent)]
    Api(ApiError),
    /// The body is no JSON.
    #[error("failed to parse the request JSON buffer: {problem} at {at}")]
    Malformed {
        /// RapidJSON's words.
        problem: &'static str,
        /// Offset in the body.
        at: usize,
    },
    /// The body is JSON, but no object.
    #[error("attempt to get members for non-object")]
    NotAnObject,
    /// `parameters` is no object.
    #[error(
        "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as \
         object"
    )]
    ParametersNotAnObject,
    /// `id` is no string.
    #[error("Unable to parse 'id': attempt to access JSON non-string as string")]
    IdNotAString,
    /// An input of text holds something else.
    #[error("Unable to parse JSON bytes array: attempt to access JSON non-string as string")]
    NotText,
    /// An input of numbers or truth values holds something else.
    #[error("Unable to parse 'data': attempt to access JSON non-{expected} as {read_as}")]
    NotData {
        /// What it takes.
        expected: &'static str,
        /// How it is read.
        read_as: &'static str,
    },
    /// An unknown member is neither number, truth value nor string.
    #[error(
        "{within}parameter '{name}' has invalid type. \
         It should be either 'int', 'bool', or 'string'."
    )]
    ParameterType {
        /// Where it stands: empty, or `Converting keyword: 'parameters': `.
        within: &'static str,
        /// The member.
        name: String,
    },
    /// A member appears twice.
    #[error("[request id: {id}] input '{name}' already exists in request")]
    InputTwice {
        /// The request's id, or `<id_unknown>`.
        id: String,
        /// The member.
        name: String,
    },
    /// An input that holds one value holds several.
    #[error(
        "[request id: {id}] input '{name}' batch size does not match other inputs for '{model}'"
    )]
    BatchSize {
        /// The request's id, or `<id_unknown>`.
        id: String,
        /// The input.
        name: String,
        /// The model.
        model: String,
    },
    /// Required inputs are missing.
    #[error(
        "[request id: {id}] expected number of inputs between {n_required} and {n_known} but got \
         {n} inputs for model '{model}'. Got input(s) [{given}], but missing required input(s) \
         [{missing}]. Please provide all required input(s)."
    )]
    InputsMissing {
        /// The request's id, or `<id_unknown>`.
        id: String,
        /// The model.
        model: String,
        /// Inputs that there must be.
        n_required: usize,
        /// Inputs that there may be.
        n_known: usize,
        /// Inputs that there are.
        n: usize,
        /// Their names, quoted.
        given: String,
        /// Names of those that are missing, quoted.
        missing: String,
    },
}

/// A refusal whose `Content-Type` is Triton's for probes and unknown paths.
#[derive(Debug)]
pub(super) struct ProbeRefusal(pub ApiError);

/// A refusal in the manner of the model's own errors: the server had accepted the request.
#[derive(Debug)]
pub(super) struct ModelRefusal(pub Refusal);

/// The same as a stream's only event.
#[derive(Debug)]
pub(super) struct StreamRefusal(pub Refusal);

impl Refusal {
    /// `{"error": …}`.
    pub(super) fn body(&self) -> Value {
        let words = match self {
            Refusal::Api(ApiError::UnknownPath) => "Not Found".into(),
            Refusal::Api(ApiError::WrongMethod) => "Method Not Allowed".into(),
            Refusal::Api(ApiError::UnknownModel { name }) => {
                format!("Request for unknown model: '{name}' is not found")
            }
            Refusal::Api(ApiError::UnknownVersion { name, version }) => {
                format!("Request for unknown model: '{name}' version {version} is not found")
            }
            Refusal::Api(ApiError::BodyEncoded { .. }) => {
                "Unsupported content-encoding, only 'identity' is supported.".into()
            }
            Refusal::Api(ApiError::BodyTooLarge { n_bytes, n_bytes_max }) => format!(
                "request JSON size of {n_bytes} bytes exceeds the maximum allowed input size of \
                 {n_bytes_max} bytes. Use --http-max-input-size to increase the limit."
            ),
            other => other.to_string(),
        };
        json!({ "error": words })
    }

    fn status(&self) -> StatusCode {
        match self {
            Refusal::Api(ApiError::BodyEncoded { .. } | ApiError::BodyTooLarge { .. }) => {
                StatusCode::BAD_REQUEST
            }
            Refusal::Api(error) => error.status(),
            Refusal::Malformed { .. }
            | Refusal::NotAnObject
            | Refusal::ParametersNotAnObject
            | Refusal::IdNotAString
            | Refusal::NotText
            | Refusal::NotData { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::ParameterType { .. }
            | Refusal::InputTwice { .. }
            | Refusal::BatchSize { .. }
            | Refusal::InputsMissing { .. } => StatusCode::BAD_REQUEST,
        }
    }

    /// The metric's label.
    fn label(&self) -> &'static str {
        match self {
            Refusal::Api(error) => error.label(),
            Refusal::Malformed { .. } | Refusal::NotAnObject => "invalid_json",
            Refusal::ParametersNotAnObject
            | Refusal::IdNotAString
            | Refusal::NotText
            | Refusal::NotData { .. }
            | Refusal::ParameterType { .. } => "invalid_type",
            Refusal::InputTwice { .. } | Refusal::BatchSize { .. } => "invalid_value",
            Refusal::InputsMissing { .. } => "missing_field",
        }
    }

    /// Everything but the body.
    fn dress(&self, mut response: Response, content_type: HeaderValue) -> Response {
        *response.status_mut() = self.status();
        response.extensions_mut().insert(ErrorLabel(self.label()));
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.extensions_mut().insert(ReasonPhrase::from_static(b"Not Allowed"));
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        if let Refusal::Api(error) = self
            && let Some(after) = error.retry_after()
        {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        response
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal::Api(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let content_type = if self == Refusal::Api(ApiError::UnknownPath) { PLAIN } else { JSON };
        self.dress(self.body().to_string().into_response(), content_type)
    }
}

impl IntoResponse for ProbeRefusal {
    fn into_response(self) -> Response {
        let refusal = Refusal::Api(self.0);
        refusal.dress(refusal.body().to_string().into_response(), PLAIN)
    }
}

impl IntoResponse for ModelRefusal {
    fn into_response(self) -> Response {
        let body = one_chunk(self.0.body().to_string().into_bytes());
        self.0.dress(Response::new(body), JSON)
    }
}

impl IntoResponse for StreamRefusal {
    fn into_response(self) -> Response {
        let body = one_chunk(sse::event(&self.0.body()));
        self.0.dress(Response::new(body), EVENTS)
    }
}
