//! `GET /v2`, and of each model its metadata, configuration and statistics.
//!
//! The platform is no ensemble: clients look for an ensemble's steps where one is announced.

use axum::extract::State;
use axum::response::Response;

use super::super::error::ApiError;
use super::super::state::{App, AppState};
use super::VERSION;
use super::error::{Refusal, json};
use super::interface::{OUTPUTS, announced};
use super::models::{self, Model, find, n_batch_max};
use super::node::{Node, list, object};
use super::statistics::Duty;
use super::target::Target;

/// What the server calls itself.
pub(super) const SERVER: &str = "lnserve";

/// What the model is announced to run on.
pub(super) const PLATFORM: &str = "lnserve";

/// The parts of Triton's protocol that are here beside KServe's own.
pub(super) const EXTENSIONS: [&str; 7] = [
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
];

/// `GET /v2`.
pub(super) async fn server() -> Response {
    json(&object([
        ("name", SERVER.into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("extensions", list(EXTENSIONS.map(Node::from))),
    ]))
}

/// `GET /v2/models/M`.
pub(super) async fn model(State(app): State<App>, target: Target) -> Result<Response, Refusal> {
    let model = find(&app, &target.model, target.version.as_deref())?;
    let tensor = |name: &str, data_type: &str, dims: &[i64]| {
        let shape = [&[-1], dims].concat();
        object([
            ("name", name.into()),
            ("datatype", data_type.into()),
            ("shape", list(shape.into_iter().map(Node::from))),
        ])
    };
    let inputs = announced().map(|spec| tensor(spec.name, spec.data_type.name(), &spec.dims()));
    let outputs = OUTPUTS.iter().map(|spec| tensor(spec.name, spec.data_type.name(), spec.dims));
    Ok(json(&object([
        ("name", model.name.as_str().into()),
        ("versions", list([VERSION.into()])),
        ("platform", PLATFORM.into()),
        ("inputs", list(inputs)),
        ("outputs", list(outputs)),
    ])))
}

/// `GET /v2/models/M/config`.
pub(super) async fn config(State(app): State<App>, target: Target) -> Result<Response, Refusal> {
    let model = find(&app, &target.model, target.version.as_deref())?;
    Ok(json(&model_config(model, n_batch_max(&app))))
}

fn model_config(model: &Model, n_batch_max: usize) -> Node {
    let dims = |dims: &[i64]| list(dims.iter().map(|&dim| dim.into()));
    let inputs = announced().map(|spec| {
        object([
            ("name", spec.name.into()),
            ("data_type", spec.data_type.config_name().into()),
            ("format", "FORMAT_NONE".into()),
            ("dims", dims(&spec.dims())),
            ("is_shape_tensor", false.into()),
            ("allow_ragged_batch", false.into()),
            ("optional", (!spec.is_required()).into()),
            ("is_non_linear_format_io", false.into()),
        ])
    });
    let outputs = OUTPUTS.iter().map(|spec| {
        object([
            ("name", spec.name.into()),
            ("data_type", spec.data_type.config_name().into()),
            ("dims", dims(spec.dims)),
            ("label_filename", "".into()),
            ("is_shape_tensor", false.into()),
            ("is_non_linear_format_io", false.into()),
        ])
    });
    let latest = object([("latest", object([("num_versions", 1.into())]))]);
    let enabled = || object([("enable", true.into())]);
    let optimization = object([
        ("priority", "PRIORITY_DEFAULT".into()),
        ("input_pinned_memory", enabled()),
        ("output_pinned_memory", enabled()),
        ("gather_kernel_buffer_threshold", 0.into()),
        ("eager_batching", false.into()),
    ]);
    let nothing = || list([]);
    let group = object([
        ("name", format!("{}_0", model.name).into()),
        ("kind", "KIND_CPU".into()),
        ("count", 1.into()),
        ("gpus", nothing()),
        ("secondary_devices", nothing()),
        ("profile", nothing()),
        ("passive", false.into()),
        ("host_policy", "".into()),
    ]);
    object([
        ("name", model.name.as_str().into()),
        ("platform", "".into()),
        ("backend", PLATFORM.into()),
        ("runtime", "".into()),
        ("version_policy", latest),
        ("max_batch_size", n_batch_max.into()),
        ("input", list(inputs)),
        ("output", list(outputs)),
        ("batch_input", nothing()),
        ("batch_output", nothing()),
        ("optimization", optimization),
        ("instance_group", list([group])),
        ("default_model_filename", "".into()),
        ("cc_model_filenames", object([])),
        ("metric_tags", object([])),
        ("parameters", object([])),
        ("model_warmup", nothing()),
        ("model_transaction_policy", object([("decoupled", false.into())])),
    ])
}

/// `GET /v2/models/stats`.
pub(super) async fn all_statistics(State(app): State<App>) -> Response {
    let models = if app.triton.is_loaded() { app.triton.all() } else { &[] };
    json(&object([("model_stats", list(models.iter().map(statistics)))]))
}

/// `GET /v2/models/M/stats`.
pub(super) async fn model_statistics(
    State(app): State<App>,
    target: Target,
) -> Result<Response, Refusal> {
    let model = available(&app, &target.model, target.version.as_deref())?;
    Ok(json(&object([("model_stats", list([statistics(model)]))])))
}

/// A model whose statistics can be asked for.
///
/// # Errors
/// Triton has another complaint here than elsewhere.
pub(super) fn available<'a>(
    app: &'a AppState,
    name: &str,
    version: Option<&str>,
) -> Result<&'a Model, Refusal> {
    let name = name.to_owned();
    models::find(app, &name, version).map_err(|refusal| match refusal {
        Refusal::Api(ApiError::UnknownVersion { .. }) => Refusal::VersionNotAvailable { name },
        _ => Refusal::NotAvailable { name },
    })
}

fn statistics(model: &Model) -> Node {
    let counts = model.statistics.counts();
    let duty = |duty: Duty| object([("count", duty.count.into()), ("ns", duty.ns.into())]);
    let inference = object([
        ("success", duty(counts.success)),
        ("fail", duty(counts.fail)),
        ("queue", duty(counts.queue)),
        ("compute_input", duty(counts.compute_input)),
        ("compute_infer", duty(counts.compute_infer)),
        ("compute_output", duty(counts.compute_output)),
        ("cache_hit", duty(Duty::default())),
        ("cache_miss", duty(Duty::default())),
    ]);
    let batches = counts.batches.iter().map(|(&n_rows, &[input, infer, output])| {
        object([
            ("batch_size", n_rows.into()),
            ("compute_input", duty(input)),
            ("compute_infer", duty(infer)),
            ("compute_output", duty(output)),
        ])
    });
    object([
        ("name", model.name.as_str().into()),
        ("version", VERSION.into()),
        ("last_inference", counts.last_inference.into()),
        ("inference_count", counts.inference_count.into()),
        ("execution_count", counts.execution_count.into()),
        ("inference_stats", inference),
        ("response_stats", object([])),
        ("batch_stats", list(batches)),
        ("memory_usage", list([])),
    ])
}
