//! Refusals as gRPC tells them: Triton's words under Triton's codes.

use axum::http::StatusCode;
use tonic::{Code, Status};

use super::super::super::error::ApiError;
use super::super::error::Refusal;

/// The code and words of a refusal.
pub(super) fn status(refusal: impl Into<Refusal>) -> Status {
    let refusal = refusal.into();
    let code = match &refusal {
        Refusal::Api(ApiError::QueueFull { .. }) => Code::ResourceExhausted,
        Refusal::Api(ApiError::DeadlinePassed) => Code::DeadlineExceeded,
        // Where HTTP says 400 for what is not there, gRPC has a word of its own.
        Refusal::NotAvailable { .. } => Code::InvalidArgument,
        refusal => match refusal.status() {
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::INTERNAL_SERVER_ERROR => Code::Internal,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            _ => Code::InvalidArgument,
        },
    };
    Status::new(code, refusal.words())
}
