//! A checkpoint, opened and checked: what the model is, and its tensors in mapped files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::catalog::{Catalog, TensorInfo};
use crate::error::{ConfigError, LoadError};
use crate::json::parse_strict;
use crate::quantization::Quantization;
use crate::resolve::{StoredModel, is_wanted, resolve};
use crate::source::{Bytes, Source};
use crate::spec::ModelSpec;
use crate::synthetic::SyntheticConfig;

/// A checkpoint whose tensors are all known to be there, in shape, and what the model needs.
///
/// Cloning shares it. Weights stay in the mapped files until they are touched; their values are
/// not scanned, so an FP8 weight that is NaN is found only by what it computes.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Source,
    spec: ModelSpec,
    quantization: Quantization,
    model: StoredModel,
    /// Every mapped file, once.
    shards: Vec<Bytes>,
}

impl Checkpoint {
    /// Opens a directory with `config.json` and safetensors shards.
    ///
    /// # Errors
    /// If anything about configuration, quantization, shards or tensors is not as it must be.
    pub fn open(dir: &Path) -> Result<Checkpoint, LoadError> {
        Checkpoint::from_source(Source::Dir(dir.to_owned()))
    }

    /// The same from files that are part of the program; `name` stands in messages.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open).
    pub fn embedded(
        name: &str,
        files: &'static [(&'static str, &'static [u8])],
    ) -> Result<Checkpoint, LoadError> {
        Checkpoint::from_source(Source::Embedded { name: name.to_owned(), files })
    }

    /// A checkpoint as [`write_synthetic`](crate::synthetic::write_synthetic) would write it, but
    /// without its data: norms and scales are one half, weights have a shape and nothing else. For
    /// runs that count and compute nothing or are only timed, at sizes that no disk holds: a device
    /// gets some numbers in their place, the processor has none to compute with.
    ///
    /// # Errors
    /// None that a written one would not have.
    pub fn without_data(config: &SyntheticConfig) -> Result<Checkpoint, LoadError> {
        let source = Source::Embedded { name: "a checkpoint without data".to_owned(), files: &[] };
        let quantization = config.quantization().map_err(in_file(&source, "config.json"))?;
        let model = resolve(&config.spec, &quantization, config.catalog())?;
        let spec = config.spec.clone();
        let inner = Inner { source, spec, quantization, model, shards: Vec::new() };
        Ok(Checkpoint { inner: Arc::new(inner) })
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.inner.spec
    }

    /// How its projections are quantized.
    pub fn quantization(&self) -> &Quantization {
        &self.inner.quantization
    }

    /// Whether the checkpoint brings factors for an FP8 cache.
    pub fn has_kv_scales(&self) -> bool {
        self.inner.model.blocks.iter().any(|block| block.kv_scales.is_some())
    }

    /// A file that lies beside the shards, such as `tokenizer.json`; `None` if there is none.
    ///
    /// # Errors
    /// If `name` is not a plain file name, or the file is beyond 256 MiB or cannot be read.
    pub fn file(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, LoadError> {
        self.inner.source.read(name)
    }

    /// Names of all files, sorted.
    pub(crate) fn file_names(&self) -> Result<Vec<String>, LoadError> {
        self.inner.source.file_names()
    }

    /// How many ranks it was cut for; `None` where it is whole, and any number will do.
    pub fn n_ranks(&self) -> Option<usize> {
        let n_parts = self.inner.model.embedding.tensor.parts.len();
        (n_parts > 0).then_some(n_parts)
    }

    /// Checks that `n_ranks` ranks can share it.
    ///
    /// # Errors
    /// The first parameter that they cannot share evenly, or it was cut for another number.
    pub fn check_sharding(&self, n_ranks: usize) -> Result<(), LoadError> {
        self.inner.spec.check_sharding(n_ranks)?;
        match self.n_ranks() {
            Some(cut) if cut != n_ranks => {
                Err(LoadError::ShardedFor { n_ranks: cut, asked: n_ranks })
            }
            _ => Ok(()),
        }
    }

    /// The tensors in use, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.inner.model.tensors.iter()
    }

    /// Whether all that was read of its files was there.
    ///
    /// # Errors
    /// The first file that lost bytes while it was mapped: zeroes were read in their place.
    pub fn check_intact(&self) -> Result<(), LoadError> {
        self.inner.shards.iter().try_for_each(Bytes::check)
    }

    /// Bytes of tensors that were taken out of mapped files since it was opened: read to be sent to
    /// devices, or decoded because they are scales or norms. What kernels read where it is mapped
    /// is nobody's to count.
    pub fn n_bytes_read(&self) -> u64 {
        self.inner.shards.iter().map(Bytes::n_bytes_read).sum()
    }

    pub(crate) fn model(&self) -> &StoredModel {
        &self.inner.model
    }

    fn from_source(source: Source) -> Result<Checkpoint, LoadError> {
        let Some(root) = read_json(&source, "config.json")? else {
            let file = "config.json".to_owned();
            return Err(LoadError::FileMissing { dir: source.name(), file });
        };
        let quantization = read_quantization(&source, &root)?;
        let spec = ModelSpec::from_config_value(root).map_err(in_file(&source, "config.json"))?;
        let catalog = Catalog::open(&source, |name| is_wanted(&spec, name))?;
        let model = resolve(&spec, &quantization, catalog)?;
        let pieces = model.tensors.iter().flat_map(TensorInfo::pieces);
        let shards: BTreeMap<&str, &Bytes> =
            pieces.map(|tensor| (&*tensor.shard, &tensor.bytes)).collect();
        let shards = shards.into_values().cloned().collect();
        let inner = Inner { source, spec, quantization, model, shards };
        Ok(Checkpoint { inner: Arc::new(inner) })
    }
}

/// `config.json` speaks first; ModelOpt's own file where it is silent.
pub(crate) fn read_quantization(
    source: &Source,
    config: &Value,
) -> Result<Quantization, LoadError> {
    let declared = Quantization::from_config(config).map_err(in_file(source, "config.json"))?;
    if let Some(quantization) = declared {
        return Ok(quantization);
    }
    const FILE: &str = "hf_quant_config.json";
    match read_json(source, FILE)? {
        None => Ok(Quantization::none()),
        Some(root) => Quantization::from_hf_quant_config(&root).map_err(in_file(source, FILE)),
    }
}

pub(crate) fn read_json(source: &Source, file: &str) -> Result<Option<Value>, LoadError> {
    let Some(text) = source.read(file)? else { return Ok(None) };
    let parsed = parse_strict(&text).map_err(ConfigError::Json);
    parsed.map(Some).map_err(in_file(source, file))
}

fn in_file<'a>(source: &'a Source, file: &'a str) -> impl Fn(ConfigError) -> LoadError + 'a {
    |error| LoadError::Config { path: source.path(file), source: error }
}
