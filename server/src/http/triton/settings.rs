//! `/v2/logging`, `/v2/trace/setting` and shared memory: what an operator may turn at run time,
//! and what is not offered here.
//!
//! Log settings act on the program's log. Requests are not traced, so the only trace level is OFF;
//! the other trace settings are kept and told, as Triton does while tracing is off.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::super::body;
use super::super::state::{App, AppState};
use super::access::{array, boolean, string, unsigned};
use super::error::{Refusal, json};
use super::json::members_if_any;
use super::node::{Node, list, object};
use super::target::Target;
use crate::log::Verbosity;

/// Settings and what they are now.
#[derive(Debug)]
pub(super) struct Settings {
    log: Mutex<LogSettings>,
    trace: Mutex<TraceSettings>,
}

/// The program's log.
#[derive(Clone, Debug)]
pub(super) struct LogSettings {
    pub(super) verbosity: Verbosity,
    pub(super) format: &'static str,
}

/// Numbers are told as text.
#[derive(Clone, Debug)]
struct TraceSettings {
    rate: i64,
    count: i64,
    log_frequency: i64,
}

const TRACE_DEFAULTS: TraceSettings = TraceSettings { rate: 1000, count: -1, log_frequency: 0 };

/// Formats that Triton knows. Ours is decided when the program starts; lines look the same in both.
const FORMATS: [&str; 2] = ["default", "ISO8601"];

impl Default for Settings {
    fn default() -> Settings {
        let log = LogSettings { verbosity: Verbosity::STANDARD, format: FORMATS[0] };
        Settings { log: Mutex::new(log), trace: Mutex::new(TRACE_DEFAULTS) }
    }
}

/// `GET /v2/logging`.
pub(super) async fn logging(State(app): State<App>) -> Response {
    json(&log_settings(&app).node())
}

/// `POST /v2/logging`: changes what it names; unknown members are ignored.
pub(super) async fn set_logging(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let body = body::read(&headers, body, &app.config.limits).await?;
    let settings = change_log(&app, &members_if_any(&body)?)?;
    Ok(json(&settings.node()))
}

/// The log's settings as they are.
pub(super) fn log_settings(app: &AppState) -> LogSettings {
    app.triton.settings.log.lock().clone()
}

/// Changes the log as `members` says, and tells how it is then.
///
/// # Errors
/// A member is of another type, or asks for what cannot be changed. Then nothing is changed.
pub(super) fn change_log(
    app: &AppState,
    members: &Map<String, Value>,
) -> Result<LogSettings, Refusal> {
    let mut settings = app.triton.settings.log.lock();
    let mut changed = settings.clone();
    let verbosity = &mut changed.verbosity;
    if members.contains_key("log_file") {
        return Err(Refusal::LogFile);
    }
    for (name, to) in [
        ("log_info", &mut verbosity.info),
        ("log_warning", &mut verbosity.warning),
        ("log_error", &mut verbosity.error),
    ] {
        if let Some(value) = members.get(name).filter(|value| !value.is_null()) {
            *to = boolean(value)?;
        }
    }
    if let Some(value) = members.get("log_verbose_level") {
        verbosity.verbose_level = u32::try_from(unsigned(value)?).unwrap_or(u32::MAX);
    }
    if let Some(value) = members.get("log_format") {
        let given = string(value)?;
        let format = FORMATS.into_iter().find(|format| *format == given);
        changed.format = format.ok_or_else(|| Refusal::LogFormat { given: given.to_owned() })?;
    }
    crate::log::set_verbosity(changed.verbosity);
    *settings = changed.clone();
    Ok(changed)
}

impl LogSettings {
    fn node(&self) -> Node {
        let verbosity = &self.verbosity;
        object([
            ("log_file", "".into()),
            ("log_info", verbosity.info.into()),
            ("log_warning", verbosity.warning.into()),
            ("log_error", verbosity.error.into()),
            ("log_verbose_level", verbosity.verbose_level.into()),
            ("log_format", self.format.into()),
        ])
    }
}

/// `GET /v2/trace/setting`.
pub(super) async fn tracing(State(app): State<App>) -> Response {
    json(&app.triton.settings.trace.lock().node())
}

/// `POST /v2/trace/setting`.
pub(super) async fn set_tracing(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let body = body::read(&headers, body, &app.config.limits).await?;
    change_trace(&app, &members_if_any(&body)?)?;
    Ok(tracing(State(app)).await)
}

/// Changes trace settings as `members` says, and tells them all.
///
/// # Errors
/// As for the log.
pub(super) fn change_trace(
    app: &AppState,
    members: &Map<String, Value>,
) -> Result<[(&'static str, String); 6], Refusal> {
    let mut settings = app.triton.settings.trace.lock();
    *settings = settings.changed(members)?;
    Ok(settings.told())
}

/// `GET /v2/models/M/trace/setting`: a model's are the server's.
pub(super) async fn model_tracing(
    State(app): State<App>,
    target: Target,
) -> Result<Response, Refusal> {
    traced(&app, target)?;
    Ok(tracing(State(app)).await)
}

/// `POST /v2/models/M/trace/setting`.
pub(super) async fn set_model_tracing(
    State(app): State<App>,
    target: Target,
    (headers, body): (HeaderMap, Body),
) -> Result<Response, Refusal> {
    traced(&app, target)?;
    set_tracing(State(app), headers, body).await
}

fn traced(app: &AppState, target: Target) -> Result<(), Refusal> {
    match app.triton.named(&target.model) {
        Some(_) => Ok(()),
        None => Err(Refusal::UntracedModel { name: target.model }),
    }
}

impl TraceSettings {
    fn changed(&self, members: &Map<String, Value>) -> Result<TraceSettings, Refusal> {
        if members.contains_key("trace_file") {
            return Err(Refusal::TraceFile);
        }
        let levels = members.get("trace_level").filter(|levels| !levels.is_null());
        for level in levels.map(array).transpose()?.unwrap_or_default() {
            if string(level)? != "OFF" {
                return Err(Refusal::TraceLevel);
            }
        }
        let number = |name: &'static str, now: i64, usual: i64| match members.get(name) {
            None => Ok(now),
            Some(Value::Null) => Ok(usual),
            Some(value) => {
                let given = string(value)?.to_owned();
                given.parse().map_err(|_| Refusal::TraceNumber { name, given })
            }
        };
        Ok(TraceSettings {
            rate: number("trace_rate", self.rate, TRACE_DEFAULTS.rate)?,
            count: number("trace_count", self.count, TRACE_DEFAULTS.count)?,
            log_frequency: number(
                "log_frequency",
                self.log_frequency,
                TRACE_DEFAULTS.log_frequency,
            )?,
        })
    }

    fn told(&self) -> [(&'static str, String); 6] {
        [
            ("trace_level", "OFF".to_owned()),
            ("trace_rate", self.rate.to_string()),
            ("trace_count", self.count.to_string()),
            ("log_frequency", self.log_frequency.to_string()),
            ("trace_file", String::new()),
            ("trace_mode", "triton".to_owned()),
        ]
    }

    fn node(&self) -> Node {
        object(self.told().map(|(name, value)| match name {
            "trace_level" => (name, list([value.into()])),
            _ => (name, value.into()),
        }))
    }
}

/// `GET /v2/{system,cuda}sharedmemory/status`: nothing is ever registered.
pub(super) async fn shared_memory() -> Response {
    json(&list([]))
}

/// Registering and unregistering.
pub(super) async fn change_shared_memory() -> Refusal {
    Refusal::SharedMemoryOff
}
