//! The writer's plan, tensors laid out in shards, and the streaming to disk.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use serde_json::{Map, Value, json};

use super::config_json::pretty;
use super::values::{RowScales, Values};
use super::{SyntheticConfig, SyntheticFormat};
use crate::catalog::TensorInfo;
use crate::dtype::{E4M3_MAX, encode};
use crate::error::LoadError;
use crate::loaded::Dtype;
use crate::parameters::{ParameterSpec, Role};
use crate::source::Bytes;

pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Bytes that are gathered before they are written.
const CHUNK_BYTES: usize = 1 << 20;

/// What a file's blocks are counted in.
const DISK_BLOCK_BYTES: u64 = 512;

/// Largest magnitude that a calibration would have seen of keys, values and inputs after a norm.
const INPUT_MAX: f32 = 8.0;
/// The same of `down_proj`'s inputs, which are products.
const DOWN_INPUT_MAX: f32 = 24.0;

/// What a tensor of the checkpoint holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Weight,
    RowScales,
    Scale(ScaleKind),
}

/// Scales that ModelOpt writes beside a quantized projection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ScaleKind {
    Weight,
    Input,
    Key,
    Value,
}

/// A tensor to be written.
pub(super) struct PlannedTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Whose weight or scale it is.
    parameter: ParameterSpec,
    content: Content,
}

impl PlannedTensor {
    /// As a catalog has it, but for its bytes.
    pub(super) fn without_data(self, shard: &Arc<str>) -> TensorInfo {
        let n_bytes = self.n_bytes();
        let bytes = Bytes::Absent { n_bytes: n_bytes as usize };
        let PlannedTensor { name, dtype, shape, .. } = self;
        let (shard, checksum, parts) = (shard.clone(), None, Arc::default());
        TensorInfo { name, dtype, shape, shard, n_bytes, bytes, offset: 0, checksum, parts }
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product::<u64>() * self.dtype.n_bytes() as u64
    }
}

/// Every tensor, in the model's order.
pub(super) fn plan_tensors(config: &SyntheticConfig) -> Vec<PlannedTensor> {
    let mut tensors = Vec::new();
    for parameter in config.spec.parameters() {
        let dtype = dtype_of(&parameter, config.format);
        let mut add = |suffix: &str, dtype, shape, content| {
            tensors.push(PlannedTensor {
                name: format!("{}.{suffix}", parameter.module),
                dtype,
                shape,
                parameter: parameter.clone(),
                content,
            });
        };
        add("weight", dtype, parameter.shape(), Content::Weight);
        if dtype != Dtype::F8E4m3 {
            continue;
        }
        if config.format == SyntheticFormat::Fp8Dynamic {
            add("weight_scale", Dtype::Bf16, vec![parameter.n_rows, 1], Content::RowScales);
            continue;
        }
        for kind in modelopt_scales(&parameter) {
            let suffix = match kind {
                ScaleKind::Weight => "weight_scale",
                ScaleKind::Input => "input_scale",
                ScaleKind::Key => "k_scale",
                ScaleKind::Value => "v_scale",
            };
            add(suffix, Dtype::F32, Vec::new(), Content::Scale(kind));
        }
    }
    tensors
}

/// How the parameter is stored.
pub(super) fn dtype_of(parameter: &ParameterSpec, format: SyntheticFormat) -> Dtype {
    let is_quantized =
        format.is_fp8() && parameter.role.is_projection() && parameter.role != Role::Head;
    if is_quantized { Dtype::F8E4m3 } else { format.dense_dtype() }
}

/// Scalars that a ModelOpt checkpoint has for a quantized parameter.
pub(super) fn n_modelopt_scales(parameter: &ParameterSpec) -> usize {
    modelopt_scales(parameter).count()
}

fn modelopt_scales(parameter: &ParameterSpec) -> impl Iterator<Item = ScaleKind> {
    let cache = match parameter.role {
        Role::Key => Some(ScaleKind::Key),
        Role::Value => Some(ScaleKind::Value),
        _ => None,
    };
    [ScaleKind::Weight, ScaleKind::Input].into_iter().chain(cache)
}

/// A file to be written.
pub(super) struct Shard {
    pub(super) file: String,
    tensors: Vec<PlannedTensor>,
}

impl Shard {
    /// All tensors in the model's order, cut where the bytes say; no tensor is cut, so there may be
    /// fewer shards than asked for. Inside a shard, wide elements come first: all are aligned.
    pub(super) fn plan(config: &SyntheticConfig) -> Vec<Shard> {
        let tensors = plan_tensors(config);
        let n_bytes: u64 = tensors.iter().map(PlannedTensor::n_bytes).sum();
        let limit = n_bytes.div_ceil(config.n_shards as u64);
        let mut cut: Vec<Vec<PlannedTensor>> = vec![Vec::new()];
        let mut n_filled = 0;
        for tensor in tensors {
            if n_filled >= limit {
                cut.push(Vec::new());
                n_filled = 0;
            }
            n_filled += tensor.n_bytes();
            cut.last_mut().expect("there is one from the start").push(tensor);
        }
        let n_shards = cut.len();
        let name = |idx: usize| match n_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", idx + 1),
        };
        let shards = cut.into_iter().enumerate().map(|(idx, mut tensors)| {
            tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.n_bytes()));
            Shard { file: name(idx), tensors }
        });
        shards.collect()
    }

    /// Of its tensors.
    pub(super) fn n_bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::n_bytes).sum()
    }

    fn header(&self) -> String {
        let mut entries = Map::new();
        entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
        let mut end = 0;
        for tensor in &self.tensors {
            let begin = end;
            end += tensor.n_bytes();
            let entry = json!({
                "dtype": tensor.dtype.to_string(),
                "shape": tensor.shape,
                "data_offsets": [begin, end],
            });
            entries.insert(tensor.name.clone(), entry);
        }
        let text = Value::Object(entries).to_string();
        // Spaces up to a multiple of 8, so that the data is aligned.
        let n_bytes = text.len().next_multiple_of(8);
        format!("{text:n_bytes$}")
    }
}

/// Whether files of `n_bytes` in `dir` may have holes that take no room.
pub(super) fn check_sparse(dir: &Path, n_bytes: u64) -> Result<(), LoadError> {
    let path = dir.join(".sparse-probe");
    let n_taken = File::create(&path)
        .and_then(|file| {
            file.set_len(n_bytes)?;
            file.sync_all()?;
            Ok(file.metadata()?.blocks() * DISK_BLOCK_BYTES)
        })
        .map_err(|error| error.to_string());
    // It may not be there, where it could not be made.
    let _ = fs::remove_file(&path);
    let reason = match n_taken {
        Ok(n_taken) if n_taken <= CHUNK_BYTES as u64 => return Ok(()),
        Ok(n_taken) => format!("it takes {n_taken} bytes of the disk at once"),
        Err(error) => error,
    };
    Err(LoadError::NotSparse { path: path.display().to_string(), n_bytes, reason })
}

/// The index of several shards.
pub(super) fn index_json(shards: &[Shard]) -> String {
    let mut weight_map = Map::new();
    let mut total_size = 0;
    for shard in shards {
        for tensor in &shard.tensors {
            weight_map.insert(tensor.name.clone(), shard.file.clone().into());
            total_size += tensor.n_bytes();
        }
    }
    pretty(&json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map }))
}

/// Streams shards to disk.
pub(super) struct Writer<'a> {
    config: &'a SyntheticConfig,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    is_ended: bool,
    n_done: u64,
    n_total: u64,
    chunk: Vec<u8>,
    /// Matrices are left out.
    pub(super) is_sparse: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        config: &'a SyntheticConfig,
        shards: &[Shard],
        progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Writer<'a> {
        let tensors = shards.iter().flat_map(|shard| &shard.tensors);
        let n_total = tensors.map(PlannedTensor::n_bytes).sum();
        let (is_ended, is_sparse) = (false, false);
        Writer { config, progress, is_ended, n_done: 0, n_total, chunk: Vec::new(), is_sparse }
    }

    pub(super) fn write(&mut self, path: &Path, shard: &Shard) -> Result<(), LoadError> {
        let result = File::create(path).and_then(|mut file| self.write_to(&mut file, shard));
        result.map_err(|source| match self.is_ended {
            true => LoadError::Interrupted,
            false => LoadError::Write { path: path.display().to_string(), source },
        })
    }

    fn write_to(&mut self, file: &mut File, shard: &Shard) -> io::Result<()> {
        let header = shard.header();
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for tensor in &shard.tensors {
            if self.is_sparse && tensor.shape.len() == 2 && tensor.content == Content::Weight {
                self.flush(file)?;
                file.seek(SeekFrom::Current(tensor.n_bytes() as i64))?;
                self.n_done += tensor.n_bytes();
                continue;
            }
            let values = Values::new(&tensor.parameter, self.config.seed);
            match tensor.content {
                Content::Weight => self.write_weight(file, tensor, &values)?,
                Content::RowScales => {
                    let scales = self.row_scales(&values);
                    for row_idx in 0..tensor.parameter.n_rows {
                        let scale = scales[values.gain_idx(row_idx)];
                        encode(tensor.dtype, scale, &mut self.chunk);
                    }
                }
                Content::Scale(kind) => {
                    let scale = scale_value(kind, &tensor.parameter, &values);
                    encode(tensor.dtype, scale, &mut self.chunk);
                }
            }
        }
        self.flush(file)?;
        // Where the last tensor was left out, the file has not got there yet.
        file.set_len(8 + header.len() as u64 + shard.n_bytes())
    }

    fn write_weight(
        &mut self,
        file: &mut File,
        tensor: &PlannedTensor,
        values: &Values,
    ) -> io::Result<()> {
        let scales = self.row_scales(values);
        let scales = if tensor.dtype == Dtype::F8E4m3 { scales } else { scales.map(|_| 1.0) };
        let table = values.table(tensor.dtype, &scales);
        for row_idx in 0..tensor.parameter.n_rows {
            values.push_row(&table, row_idx, tensor.parameter.n_cols, &mut self.chunk);
            if self.chunk.len() >= CHUNK_BYTES {
                self.flush(file)?;
            }
        }
        Ok(())
    }

    /// The scales by which e4m3 elements of each gain are read, as they are stored.
    fn row_scales(&self, values: &Values) -> RowScales {
        match self.config.format {
            SyntheticFormat::Fp8Dynamic => {
                values.row_scales().map(|scale| bf16::from_f32(scale).to_f32())
            }
            _ => values.row_scales().map(|_| values.tensor_scale()),
        }
    }

    fn flush(&mut self, file: &mut File) -> io::Result<()> {
        file.write_all(&self.chunk)?;
        self.n_done += self.chunk.len() as u64;
        self.chunk.clear();
        if (self.progress)(self.n_done, self.n_total).is_break() {
            self.is_ended = true;
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

fn scale_value(kind: ScaleKind, parameter: &ParameterSpec, values: &Values) -> f32 {
    match (kind, parameter.role) {
        (ScaleKind::Weight, _) => values.tensor_scale(),
        (ScaleKind::Input, Role::Down) => DOWN_INPUT_MAX / E4M3_MAX,
        _ => INPUT_MAX / E4M3_MAX,
    }
}
