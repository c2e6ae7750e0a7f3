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
use crate::sharded::Manifest;
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
    /// SHA-256, where the checkpoint tells it of every tensor.
    pub(crate) checksum: Option<Arc<str>>,
    /// Ranks' slices, where each lies in a file of its own; then it has no bytes itself.
    pub(crate) parts: Arc<[TensorInfo]>,
}

impl TensorInfo {
    /// What lies in files: itself, or its ranks' slices.
    pub(crate) fn pieces(&self) -> &[TensorInfo] {
        if self.parts.is_empty() { std::slice::from_ref(self) } else { &self.parts }
    }

    /// Its elements, widened; halves where there is no data, which pass for scales.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        if self.bytes.is_absent() {
            return vec![0.5; self.n_bytes as usize / self.dtype.n_bytes()];
        }
        let bytes = &self.bytes.as_slice()[self.offset..self.offset + self.n_bytes as usize];
        self.bytes.count(bytes.len());
        let mut values = vec![0.0; bytes.len() / self.dtype.n_bytes()];
        decode(self.dtype, bytes, &mut values);
        values
    }
}

/// A file of tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its name.
    pub file: String,
    /// Its size; 0 where it is not there.
    pub n_bytes: u64,
    /// Tensors in it, as far as its header can be believed.
    pub n_tensors: usize,
}

/// Every tensor by name.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Catalog {
    /// Maps all shards and reads their headers; `is_wanted` tells which names are kept at all.
    pub(crate) fn open(
        source: &Source,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Catalog, LoadError> {
        let mut problems = Vec::new();
        let (catalog, _) = Catalog::survey(source, is_wanted, &mut problems);
        problems.into_iter().next().map_or(Ok(catalog), Err)
    }

    /// The same, but goes on behind what is wrong, and tells it all.
    pub(crate) fn survey(
        source: &Source,
        is_wanted: impl Fn(&str) -> bool,
        problems: &mut Vec<LoadError>,
    ) -> (Catalog, Vec<ShardInfo>) {
        match Manifest::read(source) {
            Ok(Some(manifest)) => return manifest.survey(source, problems),
            Ok(None) => {}
            Err(error) => {
                problems.push(error);
                return (Catalog::default(), Vec::new());
            }
        }
        let mut catalog = Catalog::default();
        let mut shards = Vec::new();
        let listed = read_index(source).and_then(|index| {
            let files = match &index {
                Some(index) => index.values().cloned().collect::<BTreeSet<String>>(),
                None => find_shards(source)?,
            };
            Ok((index, files))
        });
        let (index, files) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                problems.push(error);
                return (catalog, shards);
            }
        };
        for file in files {
            let mut info = ShardInfo { file: file.clone(), n_bytes: 0, n_tensors: 0 };
            match open_shard(source, &mut info) {
                Ok((bytes, entries)) => {
                    let shard: Arc<str> = file.into();
                    for entry in entries.into_iter().filter(|entry| is_wanted(&entry.name)) {
                        problems.extend(add(&mut catalog.tensors, entry, &shard, &bytes).err());
                    }
                }
                Err(error) => problems.push(error),
            }
            shards.push(info);
        }
        for (tensor, shard) in index.into_iter().flatten().filter(|(name, _)| is_wanted(name)) {
            // A file that is not there has been named.
            let is_there = shards.iter().any(|info| info.file == shard && info.n_tensors > 0);
            let holds = |info: &TensorInfo| *info.shard == *shard;
            if is_there && !catalog.tensors.get(&tensor).is_some_and(holds) {
                let index = source.path(INDEX_FILE);
                problems.push(LoadError::NotInShard { index, tensor, shard });
            }
        }
        (catalog, shards)
    }
}

/// Maps a shard and reads its header, and notes its size.
pub(crate) fn open_shard(
    source: &Source,
    info: &mut ShardInfo,
) -> Result<(Bytes, Vec<HeaderEntry>), LoadError> {
    let Some(bytes) = source.map(&info.file)? else {
        let file = info.file.clone();
        return Err(LoadError::FileMissing { dir: source.name(), file });
    };
    info.n_bytes = bytes.n_bytes() as u64;
    let parsed = parse_header(bytes.as_slice());
    // A file that shrank meanwhile has a header of zeroes: say what happened, not that.
    bytes.check()?;
    let entries = parsed.map_err(|error| LoadError::Header {
        path: source.path(&info.file),
        source: Box::new(error),
    })?;
    info.n_tensors = entries.len();
    Ok((bytes, entries))
}

/// Adds an entry of a shard's header to the tensors.
pub(crate) fn add(
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
    let (checksum, parts) = (None, Arc::default());
    let tensor = TensorInfo { name, dtype, shape, shard, n_bytes, bytes, offset, checksum, parts };
    tensors.insert(tensor.name.clone(), tensor);
    Ok(())
}

/// The index's map from tensor to shard, `None` if there is no index.
fn read_index(source: &Source) -> Result<Option<BTreeMap<String, String>>, LoadError> {
    let Some(text) = source.read(INDEX_FILE)? else { return Ok(None) };
    parse_index(&text)
        .map(Some)
        .map_err(|error| LoadError::Config { path: source.path(INDEX_FILE), source: error })
}

/// What the text of an index says.
pub(crate) fn parse_index(text: &[u8]) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut root = parse_strict(text)?;
    match root.get_mut("weight_map").map(Value::take) {
        Some(map) => Ok(serde_json::from_value(map)?),
        None => Err(ConfigError::Missing { field: "weight_map" }),
    }
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
