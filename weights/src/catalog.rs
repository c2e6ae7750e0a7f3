//! All shards of a checkpoint, mapped, and one table of the tensors in them.
//!
//! It knows files and names; which tensors the model needs is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use safetensors::Dtype as StoredDtype;
use serde_json::Value;

use crate::dtype::decode;
use crate::error::{ConfigError, LoadError};
use crate::header::{HeaderEntry, parse_header};
use crate::json::parse_strict;
use crate::loaded::Dtype;
use crate::source::{Bytes, Source};

const INDEX_FILE: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";
const SHARD_SUFFIX: &str = ".safetensors";

/// A tensor of the checkpoint.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub shard: Arc<str>,
    /// Its size.
    pub n_bytes: u64,
    pub(crate) bytes: Bytes,
    /// First byte in `bytes`.
    pub(crate) offset: usize,
}

impl TensorInfo {
    /// Its elements, widened; halves where there is no data, which pass for scales.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        if self.bytes.is_absent() {
            return vec![0.5; self.n_bytes as usize / self.dtype.n_bytes()];
        }
        let bytes = &self.bytes.as_slice()[self.offset..self.offset + self.n_bytes as usize];
        let mut values = vec![0.0; bytes.len() / self.dtype.n_bytes()];
        decode(self.dtype, bytes, &mut values);
        values
    }
}

/// Every tensor by name.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Catalog {
    /// Maps all shards and reads their headers; `is_wanted` tells which names are kept at all.
    pub(crate) fn open(
        source: &Source,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Catalog, LoadError> {
        let index = read_index(source)?;
        let shards = match &index {
            Some(index) => index.values().cloned().collect::<BTreeSet<String>>(),
            None => find_shards(source)?,
        };
        let mut tensors = BTreeMap::new();
        for shard in shards {
            let Some(bytes) = source.map(&shard)? else {
                return Err(LoadError::FileMissing { dir: source.name(), file: shard });
            };
            let entries = parse_header(bytes.as_slice()).map_err(|error| LoadError::Header {
                path: source.path(&shard),
                source: Box::new(error),
            })?;
            let shard: Arc<str> = shard.into();
            for entry in entries.into_iter().filter(|entry| is_wanted(&entry.name)) {
                add(&mut tensors, entry, &shard, &bytes)?;
            }
        }
        for (tensor, shard) in index.into_iter().flatten().filter(|(name, _)| is_wanted(name)) {
            if tensors.get(&tensor).is_none_or(|info| *info.shard != *shard) {
                return Err(LoadError::NotInShard {
                    index: source.path(INDEX_FILE),
                    tensor,
                    shard,
                });
            }
        }
        Ok(Catalog { tensors })
    }
}

fn add(
    tensors: &mut BTreeMap<String, TensorInfo>,
    entry: HeaderEntry,
    shard: &Arc<str>,
    bytes: &Bytes,
) -> Result<(), LoadError> {
    if let Some(other) = tensors.get(&entry.name) {
        return Err(LoadError::DuplicateTensor {
            tensor: entry.name,
            first: other.shard.to_string(),
            second: shard.to_string(),
        });
    }
    let dtype = match entry.dtype {
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::F16 => Dtype::F16,
        StoredDtype::BF16 => Dtype::Bf16,
        StoredDtype::F8_E4M3 => Dtype::F8E4m3,
        other => {
            return Err(LoadError::WrongDtype {
                tensor: entry.name,
                shard: shard.to_string(),
                found: other.to_string(),
                expected: "F32, F16, BF16 or F8_E4M3, the formats that we can run".to_owned(),
            });
        }
    };
    let HeaderEntry { name, shape, offset, n_bytes, .. } = entry;
    let (shard, bytes) = (shard.clone(), bytes.clone());
    tensors.insert(name.clone(), TensorInfo { name, dtype, shape, shard, n_bytes, bytes, offset });
    Ok(())
}

/// The index's map from tensor to shard, `None` if there is no index.
fn read_index(source: &Source) -> Result<Option<BTreeMap<String, String>>, LoadError> {
    let Some(text) = source.read(INDEX_FILE)? else { return Ok(None) };
    let parse = || -> Result<BTreeMap<String, String>, ConfigError> {
        let mut root = parse_strict(&text)?;
        match root.get_mut("weight_map").map(Value::take) {
            Some(map) => Ok(serde_json::from_value(map)?),
            None => Err(ConfigError::Missing { field: "weight_map" }),
        }
    };
    parse()
        .map(Some)
        .map_err(|error| LoadError::Config { path: source.path(INDEX_FILE), source: error })
}

/// Without an index: the single file, else every safetensors file that there is.
fn find_shards(source: &Source) -> Result<BTreeSet<String>, LoadError> {
    let mut names = source.file_names()?;
    names.retain(|name| name.ends_with(SHARD_SUFFIX));
    if names.is_empty() {
        return Err(LoadError::FileMissing {
            dir: source.name(),
            file: format!("{INDEX_FILE} and no *{SHARD_SUFFIX}"),
        });
    }
    if names.iter().any(|name| name == SINGLE_FILE) {
        names.retain(|name| name == SINGLE_FILE);
    }
    Ok(names.into_iter().collect())
}
