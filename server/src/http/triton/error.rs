//! Errors as Triton words them: `{"error": …}`, under the status of its error code.
//!
//! What fails inside its JSON reader is INTERNAL, 500; what the server checks is INVALID_ARG, 400.

use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::ext::ReasonPhrase;
use serde_json::{Value, json as json_value};
use thiserror::Error;

use super::super::body::one_chunk;
use super::super::error::ApiError;
use super::super::observe::ErrorLabel;
use super::super::sse;
use super::access::Access;
use super::node::Node;
use super::problem::{Located, Problem};

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
    /// A setting is of another type.
    #[error("{0}")]
    Setting(#[doc(hidden)] SettingType),
    /// A tensor or parameter is not what it should be.
    #[error("{0}")]
    Infer(#[doc(hidden)] Box<InferProblem>),
    /// The model was unloaded.
    #[error("Request for unknown model: '{name}' has no available versions")]
    Unloaded {
        /// The model.
        name: String,
    },
    /// There are no statistics of that model.
    #[error("requested model '{name}' is not available")]
    NotAvailable {
        /// The model.
        name: String,
    },
    /// There are none of that version.
    #[error("requested model version is not available for model '{name}'")]
    VersionNotAvailable {
        /// The model.
        name: String,
    },
    /// There is no such model to load.
    #[error("failed to load '{name}', failed to poll from model repository")]
    NotInRepository {
        /// The model.
        name: String,
    },
    /// The configuration cannot be changed by loading.
    #[error("load parameters are not supported: the model is as it was started")]
    LoadParameters,
    /// Outputs are texts and numbers.
    #[error("classification is not supported: the outputs are no classes")]
    Classification,
    /// There is one repository, without a name.
    #[error("'repository_name' specification is not supported")]
    RepositoryName,
    /// The log goes to standard error.
    #[error("log file location can not be updated through network protocol")]
    LogFile,
    /// There is no such format.
    #[error("invalid argument for --log_format, got: {given}")]
    LogFormat {
        /// What was given.
        given: String,
    },
    /// There are no trace files.
    #[error("trace file location can not be updated through network protocol")]
    TraceFile,
    /// Requests are not traced.
    #[error("tracing is not supported: the only trace_level is OFF")]
    TraceLevel,
    /// A number is none.
    #[error("Unable to parse '{name}', got: {given}")]
    TraceNumber {
        /// The setting.
        name: &'static str,
        /// What was given.
        given: String,
    },
    /// There is no such model to trace.
    #[error("Request for unknown model : {name}")]
    UntracedModel {
        /// The model.
        name: String,
    },
    /// Nothing can be registered.
    #[error("Client shared memory is disabled: send tensors within the request.")]
    SharedMemoryOff,
    /// No region is ever registered.
    #[error("Unable to find {memory} shared memory region: '{region}'")]
    UnknownRegion {
        /// `system` or `cuda`.
        memory: &'static str,
        /// The region.
        region: String,
    },
}

/// What is wrong with a tensor or parameter, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct InferProblem(pub(super) Located);

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingType(pub(super) Access);

impl std::fmt::Display for InferProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for SettingType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
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

/// A refusal of infer: those before the body is read, and the model's own, are plain text.
#[derive(Debug)]
pub(super) struct InferRefusal(pub Refusal);

/// A success that tells something.
pub(super) fn json(node: &Node) -> Response {
    ([(CONTENT_TYPE, JSON)], node.text()).into_response()
}

/// A success that tells nothing.
pub(super) fn empty() -> Response {
    ([(CONTENT_TYPE, JSON)], "").into_response()
}

impl Refusal {
    /// `{"error": …}`.
    pub(super) fn body(&self) -> Value {
        json_value!({ "error": self.words() })
    }

    /// What is wrong, in Triton's words where it has some.
    pub(super) fn words(&self) -> String {
        match self {
            Refusal::Api(ApiError::UnknownPath) => "Not Found".into(),
            Refusal::Api(ApiError::WrongMethod) => "Method Not Allowed".into(),
            Refusal::Api(ApiError::UnknownModel { name }) => {
                format!("Request for unknown model: '{name}' is not found")
            }
            Refusal::Api(ApiError::UnknownVersion { name, version }) => {
                format!("Request for unknown model: '{name}' version {version} is not found")
            }
            Refusal::Api(ApiError::QueueTimeout) => "Request timeout expired".into(),
            Refusal::Api(ApiError::BodyEncoded { .. }) => {
                "Unsupported content-encoding, only 'identity' is supported.".into()
            }
            Refusal::Api(ApiError::BodyTooLarge { n_bytes, n_bytes_max }) => format!(
                "request JSON size of {n_bytes} bytes exceeds the maximum allowed input size of \
                 {n_bytes_max} bytes. Use --http-max-input-size to increase the limit."
            ),
            other => other.to_string(),
        }
    }

    /// The answer's status.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Refusal::Api(ApiError::BodyEncoded { .. } | ApiError::BodyTooLarge { .. }) => {
                StatusCode::BAD_REQUEST
            }
            Refusal::Api(error) => error.status(),
            Refusal::Infer(located) => located.0.problem.status(),
            Refusal::Malformed { .. }
            | Refusal::NotAnObject
            | Refusal::ParametersNotAnObject
            | Refusal::Setting(_)
            | Refusal::NotInRepository { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::NotAvailable { .. }
            | Refusal::VersionNotAvailable { .. }
            | Refusal::TraceNumber { .. }
            | Refusal::UntracedModel { .. } => StatusCode::BAD_REQUEST,
            Refusal::Unloaded { .. } | Refusal::UnknownRegion { .. } => StatusCode::NOT_FOUND,
            Refusal::LogFormat { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::LoadParameters
            | Refusal::Classification
            | Refusal::RepositoryName
            | Refusal::LogFile
            | Refusal::TraceFile
            | Refusal::TraceLevel
            | Refusal::SharedMemoryOff => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// The metric's label.
    fn label(&self) -> &'static str {
        match self {
            Refusal::Api(error) => error.label(),
            Refusal::Infer(located) => located.0.problem.label(),
            Refusal::Malformed { .. } | Refusal::NotAnObject => "invalid_json",
            Refusal::ParametersNotAnObject | Refusal::Setting(_) => "invalid_type",
            Refusal::LogFormat { .. } | Refusal::TraceNumber { .. } => "invalid_value",
            Refusal::Unloaded { .. } => "model_unloaded",
            Refusal::NotAvailable { .. }
            | Refusal::VersionNotAvailable { .. }
            | Refusal::NotInRepository { .. }
            | Refusal::UntracedModel { .. } => "model_not_found",
            Refusal::UnknownRegion { .. }
            | Refusal::LoadParameters
            | Refusal::Classification
            | Refusal::RepositoryName
            | Refusal::LogFile
            | Refusal::TraceFile
            | Refusal::TraceLevel
            | Refusal::SharedMemoryOff => "unsupported",
        }
    }

    /// Whether infer tells it as plain text.
    fn is_plain_in_infer(&self) -> bool {
        match self {
            Refusal::Api(_) | Refusal::Unloaded { .. } => true,
            Refusal::Infer(located) => matches!(
                located.0.problem,
                Problem::HeaderLength { .. }
                    | Problem::HeaderLengthWord { .. }
                    | Problem::Compression
            ),
            _ => false,
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
        match self {
            Refusal::Api(error) => {
                if let Some(after) = error.retry_after() {
                    headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
                }
            }
            Refusal::Infer(located) if located.0.problem == Problem::Compression => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
            }
            _ => {}
        }
        response
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal::Api(error)
    }
}

impl From<Access> for Refusal {
    fn from(access: Access) -> Refusal {
        Refusal::Setting(SettingType(access))
    }
}

impl From<Refusal> for InferRefusal {
    fn from(refusal: Refusal) -> InferRefusal {
        InferRefusal(refusal)
    }
}

impl From<ApiError> for InferRefusal {
    fn from(error: ApiError) -> InferRefusal {
        InferRefusal(error.into())
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

impl IntoResponse for InferRefusal {
    fn into_response(self) -> Response {
        let InferRefusal(refusal) = self;
        let content_type = if refusal.is_plain_in_infer() { PLAIN } else { JSON };
        refusal.dress(refusal.body().to_string().into_response(), content_type)
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
