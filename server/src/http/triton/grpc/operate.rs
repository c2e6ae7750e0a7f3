//! What an operator asks for and turns, as messages: repository, log and trace settings.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tonic::Status;

use super::super::super::state::AppState;
use super::super::VERSION;
use super::super::error::Refusal;
use super::super::models::{self, ModelState};
use super::super::settings::{self, LogSettings};
use super::protocol::log_settings_request::setting_value::ParameterChoice as Asked;
use super::protocol::log_settings_response::SettingValue as LogValue;
use super::protocol::log_settings_response::setting_value::ParameterChoice as Told;
use super::protocol::repository_index_response::ModelIndex;
use super::protocol::trace_setting_response::SettingValue as TraceValue;
use super::protocol::{
    LogSettingsRequest, LogSettingsResponse, RepositoryIndexRequest, RepositoryIndexResponse,
    RepositoryModelLoadRequest, TraceSettingRequest, TraceSettingResponse,
};
use super::status::status;

/// The models and where they stand.
pub(super) fn index(
    app: &AppState,
    request: &RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse, Status> {
    check_repository(&request.repository_name)?;
    let state = models::state(app);
    let reason = if state == ModelState::Unavailable { "unloaded" } else { "" };
    let models = app.triton.all().iter().map(|model| ModelIndex {
        name: model.name.clone(),
        version: VERSION.to_owned(),
        state: state.word().to_owned(),
        reason: reason.to_owned(),
    });
    let is_left_out = request.ready && state != ModelState::Ready;
    let models = if is_left_out { Vec::new() } else { models.collect() };
    Ok(RepositoryIndexResponse { models })
}

/// Loads.
pub(super) fn load(app: &AppState, request: &RepositoryModelLoadRequest) -> Result<(), Status> {
    check_repository(&request.repository_name)?;
    if !request.parameters.is_empty() {
        return Err(status(Refusal::LoadParameters));
    }
    models::set_loaded(app, &request.model_name, true).map_err(status)
}

/// There is one repository, without a name.
pub(super) fn check_repository(name: &str) -> Result<(), Status> {
    if name.is_empty() { Ok(()) } else { Err(status(Refusal::RepositoryName)) }
}

/// Changes the log's settings as far as the message names any, and tells what they are.
pub(super) fn log_settings(
    app: &AppState,
    request: LogSettingsRequest,
) -> Result<LogSettingsResponse, Status> {
    let mut members = Map::new();
    for (name, value) in request.settings {
        let value = match value.parameter_choice {
            None => continue,
            Some(Asked::BoolParam(value)) => Value::from(value),
            Some(Asked::Uint32Param(value)) => Value::from(value),
            Some(Asked::StringParam(value)) => Value::from(value),
        };
        members.insert(name, value);
    }
    let LogSettings { verbosity, format } = settings::change_log(app, &members).map_err(status)?;
    let settings = [
        ("log_file", Told::StringParam(String::new())),
        ("log_info", Told::BoolParam(verbosity.info)),
        ("log_warning", Told::BoolParam(verbosity.warning)),
        ("log_error", Told::BoolParam(verbosity.error)),
        ("log_verbose_level", Told::Uint32Param(verbosity.verbose_level)),
        ("log_format", Told::StringParam(format.to_owned())),
    ];
    let settings =
        settings.map(|(name, value)| (name.to_owned(), LogValue { parameter_choice: Some(value) }));
    Ok(LogSettingsResponse { settings: HashMap::from(settings) })
}

/// The same of trace settings.
pub(super) fn trace_settings(
    app: &AppState,
    request: TraceSettingRequest,
) -> Result<TraceSettingResponse, Status> {
    if !request.model_name.is_empty() && app.triton.named(&request.model_name).is_none() {
        return Err(status(Refusal::UntracedModel { name: request.model_name }));
    }
    let settings = request.settings.into_iter().map(|(name, value)| {
        let mut values: Vec<Value> = value.value.into_iter().map(Value::from).collect();
        let value = match (name.as_str(), values.len()) {
            // None at all takes the setting back.
            (_, 0) => Value::Null,
            ("trace_level", _) => Value::Array(values),
            _ => values.swap_remove(0),
        };
        (name, value)
    });
    let told = settings::change_trace(app, &settings.collect()).map_err(status)?;
    let told = told.map(|(name, value)| (name.to_owned(), TraceValue { value: vec![value] }));
    Ok(TraceSettingResponse { settings: HashMap::from(told) })
}
