//! A model's metadata, configuration and statistics as messages.

use tonic::Status;

use super::super::super::state::AppState;
use super::super::VERSION;
use super::super::interface::{OUTPUTS, announced};
use super::super::metadata::{PLATFORM, available};
use super::super::models::{Model, find, n_batch_max};
use super::super::statistics::{Counts, Duty};
use super::super::tensor::DataType;
use super::protocol::model_instance_group::Kind;
use super::protocol::model_metadata_response::TensorMetadata;
use super::protocol::model_version_policy::{Latest, PolicyChoice};
use super::protocol::{
    DataType as ConfigType, InferBatchStatistics, InferStatistics, ModelConfig,
    ModelConfigResponse, ModelInput, ModelInstanceGroup, ModelMetadataResponse, ModelOutput,
    ModelStatistics, ModelStatisticsResponse, ModelTransactionPolicy, ModelVersionPolicy,
    StatisticDuration,
};
use super::status::status;

/// An empty version is the newest.
pub(super) fn named(version: &str) -> Option<&str> {
    Some(version).filter(|version| !version.is_empty())
}

/// What a model takes and gives.
pub(super) fn metadata(
    app: &AppState,
    name: &str,
    version: &str,
) -> Result<ModelMetadataResponse, Status> {
    let model = find(app, name, named(version)).map_err(status)?;
    let tensor = |name: &str, data_type: DataType, dims: &[i64]| TensorMetadata {
        name: name.to_owned(),
        datatype: data_type.name().to_owned(),
        shape: [&[-1], dims].concat(),
    };
    Ok(ModelMetadataResponse {
        name: model.name.clone(),
        versions: vec![VERSION.to_owned()],
        platform: PLATFORM.to_owned(),
        inputs: announced().map(|spec| tensor(spec.name, spec.data_type, &spec.dims())).collect(),
        outputs: OUTPUTS.iter().map(|spec| tensor(spec.name, spec.data_type, spec.dims)).collect(),
    })
}

/// A model's configuration.
pub(super) fn config(
    app: &AppState,
    name: &str,
    version: &str,
) -> Result<ModelConfigResponse, Status> {
    let model = find(app, name, named(version)).map_err(status)?;
    let input = announced().map(|spec| ModelInput {
        name: spec.name.to_owned(),
        data_type: config_type(spec.data_type).into(),
        dims: spec.dims().to_vec(),
        optional: !spec.is_required(),
    });
    let output = OUTPUTS.iter().map(|spec| ModelOutput {
        name: spec.name.to_owned(),
        data_type: config_type(spec.data_type).into(),
        dims: spec.dims.to_vec(),
    });
    let latest = PolicyChoice::Latest(Latest { num_versions: 1 });
    let name = format!("{}_0", model.name);
    let config = ModelConfig {
        name: model.name.clone(),
        platform: String::new(),
        version_policy: Some(ModelVersionPolicy { policy_choice: Some(latest) }),
        max_batch_size: n_batch_max(app) as i32,
        input: input.collect(),
        output: output.collect(),
        instance_group: vec![ModelInstanceGroup { name, count: 1, kind: Kind::Cpu.into() }],
        backend: PLATFORM.to_owned(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
    };
    Ok(ModelConfigResponse { config: Some(config) })
}

fn config_type(data_type: DataType) -> ConfigType {
    ConfigType::from_str_name(data_type.config_name()).expect("the protocol has it")
}

/// The statistics of a model, or of all where none is named.
pub(super) fn statistics(
    app: &AppState,
    name: &str,
    version: &str,
) -> Result<ModelStatisticsResponse, Status> {
    let model_stats = match name {
        "" if app.triton.is_loaded() => app.triton.all().iter().map(model_statistics).collect(),
        "" => Vec::new(),
        name => {
            let model = available(app, name, named(version)).map_err(status)?;
            vec![model_statistics(model)]
        }
    };
    Ok(ModelStatisticsResponse { model_stats })
}

fn model_statistics(model: &Model) -> ModelStatistics {
    let counts = model.statistics.counts();
    let batches =
        counts.batches.iter().map(|(&n_rows, &[input, infer, output])| InferBatchStatistics {
            batch_size: n_rows as u64,
            compute_input: duration(input),
            compute_infer: duration(infer),
            compute_output: duration(output),
        });
    ModelStatistics {
        name: model.name.clone(),
        version: VERSION.to_owned(),
        last_inference: counts.last_inference,
        inference_count: counts.inference_count,
        execution_count: counts.execution_count,
        batch_stats: batches.collect(),
        inference_stats: Some(inference_statistics(&counts)),
    }
}

fn inference_statistics(counts: &Counts) -> InferStatistics {
    InferStatistics {
        success: duration(counts.success),
        fail: duration(counts.fail),
        queue: duration(counts.queue),
        compute_input: duration(counts.compute_input),
        compute_infer: duration(counts.compute_infer),
        compute_output: duration(counts.compute_output),
        cache_hit: duration(Duty::default()),
        cache_miss: duration(Duty::default()),
    }
}

fn duration(duty: Duty) -> Option<StatisticDuration> {
    Some(StatisticDuration { count: duty.count, ns: duty.ns })
}
