//! The model and version that a path names.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::super::error::ApiError;
use super::error::Refusal;

/// `M` and `V` of `/v2/models/M[/versions/V]/…`.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) model: String,
    pub(super) version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Refusal;

    /// A version is a number: where it is none, there is no such path.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Target, Refusal> {
        let segments = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
        let Ok(Path(mut segments)) = segments else {
            return Err(ApiError::UnknownPath.into());
        };
        let version = segments.remove("version");
        let is_number = |version: &String| version.bytes().all(|byte| byte.is_ascii_digit());
        match segments.remove("model") {
            Some(model) if version.as_ref().is_none_or(is_number) => Ok(Target { model, version }),
            _ => Err(ApiError::UnknownPath.into()),
        }
    }
}
