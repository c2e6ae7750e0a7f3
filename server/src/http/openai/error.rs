//! An error as OpenAI's clients read it.

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::observe::ErrorLabel;

/// A refused request of this protocol.
#[derive(Debug)]
pub struct Refusal(pub ApiError);

impl Refusal {
    /// `{"error": …}`, which also ends a stream that breaks off.
    pub(super) fn body(&self) -> Value {
        let error = &self.0;
        json!({
            "error": {
                "message": error.to_string(),
                "type": kind(error.status()),
                "param": error.field(),
                "code": error.label(),
            }
        })
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.0.status();
        let mut response = (status, Json(self.body())).into_response();
        response.extensions_mut().insert(ErrorLabel(self.0.label()));
        let headers = response.headers_mut();
        if let Some(after) = self.0.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "server_error",
    }
}
