//! What the endpoints that generate have in common before the first token: a body is read, parsed
//! off the async threads, and submitted.

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;

use super::super::body;
use super::super::error::ApiError;
use super::super::generation::{Generations, Job};
use super::super::observe::Record;
use super::super::state::{App, AppState};

/// Makes of an answer's id and a body what was asked, and the jobs of it.
type Parse<Asked> = fn(String, &[u8], &AppState) -> Result<(Asked, Vec<Job>), ApiError>;

/// A request of one of the endpoints, as it came.
pub(super) struct Intake {
    pub(super) app: App,
    pub(super) record: Arc<Record>,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl Intake {
    /// Takes the request in: what `parse` made of it beside its jobs, which run from here on.
    /// `parse` gets the answer's id, `prefix` and the request's own, and the body.
    ///
    /// # Errors
    /// The server takes no requests, the body is none, `parse` refuses it, or the engine does.
    pub(super) async fn submit<Asked: Send + 'static>(
        self,
        prefix: &str,
        parse: Parse<Asked>,
    ) -> Result<(Asked, Generations), ApiError> {
        let Intake { app, record, headers, body } = self;
        app.takes_requests()?;
        let body = body::read(&headers, body, &app.config.limits).await?;
        let id = format!("{prefix}{}", record.id);
        let (asked, jobs) = app.off_thread(move |app| parse(id, &body, app)).await?;
        Ok((asked, Generations::submit(&app, &record, jobs)?))
    }
}
