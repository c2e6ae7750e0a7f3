//! A checkpoint that was cut for so many ranks: a file for each, so that a rank reads its share in
//! one run, wherever the original has it.
//!
//! Beside the configuration, which is the original's, lie `common.safetensors` with what every rank
//! holds whole (norms and scales), a file a rank with its slices of the matrices, in the order in
//! which they are used, and `lnserve-shards.json`, which tells for how many ranks it is, how large
//! the matrices are together, and the SHA-256 of every tensor. What the disk does not hold, because
//! it is a hole of zeroes, is a hole here, too, and has `zero` for a checksum.

mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, ShardInfo, TensorInfo, add, open_shard};
use crate::error::{ConfigError, LoadError};
use crate::json::parse_strict;
use crate::source::{Bytes, Source};

pub(crate) use write::hexadecimal;
pub use write::{N_RANKS_MAX, write_sharded};

/// What makes a folder one of these.
pub(crate) const MANIFEST_FILE: &str = "lnserve-shards.json";

/// What every rank holds whole.
const COMMON_FILE: &str = "common.safetensors";

/// What such files look like; another number is another format.
const VERSION: u32 = 1;

/// The checksum of a tensor that is nothing but zeroes, which nobody needs to read.
pub(crate) const ZERO: &str = "zero";

/// What a folder of these says about itself.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    version: u32,
    n_ranks: usize,
    /// Checksums of what is common.
    common: BTreeMap<String, String>,
    /// The matrices.
    sharded: BTreeMap<String, ShardedTensor>,
}

/// A matrix in slices.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ShardedTensor {
    /// Of the whole.
    shape: Vec<usize>,
    /// Of each rank's slice.
    sha256: Vec<String>,
}

impl Manifest {
    /// Of a folder; `None` where there is none, as in every other checkpoint.
    pub(crate) fn read(source: &Source) -> Result<Option<Manifest>, LoadError> {
        let Some(text) = source.read(MANIFEST_FILE)? else { return Ok(None) };
        let manifest = Manifest::parse(&text);
        manifest
            .map(Some)
            .map_err(|error| LoadError::Config { path: source.path(MANIFEST_FILE), source: error })
    }

    pub(crate) fn parse(text: &[u8]) -> Result<Manifest, ConfigError> {
        let manifest: Manifest = serde_json::from_value(parse_strict(text)?)?;
        let field = |field: &str, found: String, expected: String| {
            Err(ConfigError::Field { field: field.to_owned(), found, expected })
        };
        let Manifest { version, n_ranks, sharded, .. } = &manifest;
        if *version != VERSION {
            return field("version", version.to_string(), VERSION.to_string());
        }
        if !(1..=N_RANKS_MAX).contains(n_ranks) {
            return field("n_ranks", n_ranks.to_string(), format!("1 to {N_RANKS_MAX}"));
        }
        let is_odd = |tensor: &ShardedTensor| tensor.sha256.len() != *n_ranks;
        if let Some((name, tensor)) = sharded.iter().find(|(_, tensor)| is_odd(tensor)) {
            let name = format!("sharded.{name}.sha256");
            return field(&name, format!("{} long", tensor.sha256.len()), n_ranks.to_string());
        }
        Ok(manifest)
    }

    /// The file of a rank's slices.
    fn rank_file(rank_idx: usize, n_ranks: usize) -> String {
        format!("rank-{:05}-of-{n_ranks:05}.safetensors", rank_idx + 1)
    }

    /// As [`Catalog::survey`], of the files that are named here.
    pub(crate) fn survey(
        self,
        source: &Source,
        problems: &mut Vec<LoadError>,
    ) -> (Catalog, Vec<ShardInfo>) {
        let mut shards = Vec::new();
        let mut open = |file: String, checksum: &dyn Fn(&str) -> Option<String>| {
            let mut info = ShardInfo { file: file.clone(), n_bytes: 0, n_tensors: 0 };
            let mut tensors = BTreeMap::new();
            match open_shard(source, &mut info) {
                Ok((bytes, entries)) => {
                    let shard: Arc<str> = file.into();
                    for entry in entries {
                        problems.extend(add(&mut tensors, entry, &shard, &bytes).err());
                    }
                }
                Err(error) => problems.push(error),
            }
            for tensor in tensors.values_mut() {
                tensor.checksum = checksum(&tensor.name).map(Arc::from);
                if tensor.checksum.is_none() {
                    problems.push(LoadError::NotInManifest {
                        manifest: source.path(MANIFEST_FILE),
                        tensor: tensor.name.clone(),
                        shard: tensor.shard.to_string(),
                    });
                }
            }
            shards.push(info);
            tensors
        };
        let mut tensors =
            open(COMMON_FILE.to_owned(), &|name: &str| self.common.get(name).cloned());
        let mut parts: BTreeMap<String, Vec<TensorInfo>> = BTreeMap::new();
        for rank_idx in 0..self.n_ranks {
            let file = Manifest::rank_file(rank_idx, self.n_ranks);
            let checksum = |name: &str| Some(self.sharded.get(name)?.sha256.get(rank_idx)?.clone());
            for (name, part) in open(file, &checksum) {
                parts.entry(name).or_default().push(part);
            }
        }
        for (name, tensor) in self.sharded {
            let parts = parts.remove(&name).unwrap_or_default();
            // A file that is not there has been named, and one that lacks it names it.
            let Some(whole) = TensorInfo::of_parts(tensor.shape, parts) else { continue };
            if whole.parts.len() == self.n_ranks {
                tensors.insert(name, whole);
            }
        }
        (Catalog { tensors }, shards)
    }
}

impl TensorInfo {
    /// A matrix in slices, as one.
    fn of_parts(shape: Vec<usize>, parts: Vec<TensorInfo>) -> Option<TensorInfo> {
        let first = parts.first()?;
        let n_bytes = parts.iter().map(|part| part.n_bytes).sum();
        Some(TensorInfo {
            name: first.name.clone(),
            dtype: first.dtype,
            shape,
            shard: MANIFEST_FILE.into(),
            n_bytes,
            bytes: Bytes::Absent { n_bytes: n_bytes as usize },
            offset: 0,
            checksum: None,
            parts: parts.into(),
        })
    }
}

#[cfg(test)]
mod tests;
