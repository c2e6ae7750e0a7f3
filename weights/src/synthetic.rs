//! Checkpoints of any shape with random weights, written as published ones are.
//!
//! Values depend on the seed and the tensor's name alone, not on shards or on the format: one seed
//! gives the same weights in every format, but for rounding. Memory is bounded by a few tables and
//! one row.

mod config_json;
mod shards;
mod tokenizer;
mod values;

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::error::{ConfigError, LoadError, Uneven};
use crate::json::parse_strict;
use crate::loaded::Dtype;
use crate::parameters::ParameterSpec;
use crate::quantization::Quantization;
use crate::rank::RankBytes;
use crate::spec::ModelSpec;

use shards::{PlannedTensor, Shard};

/// How the weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticFormat {
    /// Everything in F32.
    F32,
    /// Everything in F16.
    F16,
    /// Everything in BF16.
    Bf16,
    /// Projections in e4m3 with static per-tensor scales, scales for an FP8 cache, the rest BF16.
    ModelOptFp8,
    /// Projections in e4m3 with per-row scales and per-token inputs, the rest BF16.
    Fp8Dynamic,
}

impl SyntheticFormat {
    /// Element type of norms, embedding and head.
    pub fn dense_dtype(self) -> Dtype {
        match self {
            SyntheticFormat::F32 => Dtype::F32,
            SyntheticFormat::F16 => Dtype::F16,
            _ => Dtype::Bf16,
        }
    }

    /// Projections inside blocks are FP8; embedding and head never are.
    pub fn is_fp8(self) -> bool {
        matches!(self, SyntheticFormat::ModelOptFp8 | SyntheticFormat::Fp8Dynamic)
    }
}

impl fmt::Display for SyntheticFormat {
    /// As it is typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SyntheticFormat::F32 => "f32",
            SyntheticFormat::F16 => "f16",
            SyntheticFormat::Bf16 => "bf16",
            SyntheticFormat::ModelOptFp8 => "modelopt-fp8",
            SyntheticFormat::Fp8Dynamic => "fp8-dynamic",
        })
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct SyntheticConfig {
    /// The model.
    pub spec: ModelSpec,
    /// How its weights are stored.
    pub format: SyntheticFormat,
    /// Shards at most: a tensor is never cut, so that a huge one may take the place of several.
    pub n_shards: usize,
    /// Decides all values.
    pub seed: u64,
}

impl SyntheticConfig {
    /// Bytes of one rank's share of such a checkpoint, which need not have been written.
    ///
    /// # Errors
    /// If `n_ranks` ranks cannot share a parameter evenly.
    ///
    /// # Panics
    /// If `rank_idx` is not below `n_ranks`.
    pub fn rank_bytes(&self, rank_idx: usize, n_ranks: usize) -> Result<RankBytes, Uneven> {
        let mut bytes = RankBytes::default();
        for parameter in self.spec.parameters() {
            let dtype = shards::dtype_of(&parameter, self.format);
            bytes += RankBytes::of_parameter(&parameter, dtype, rank_idx, n_ranks)?;
            bytes.scales += self.scale_bytes(&parameter, rank_idx, n_ranks)?;
        }
        Ok(bytes)
    }

    /// What the checkpoint's files say of its quantization.
    pub(crate) fn quantization(&self) -> Result<Quantization, ConfigError> {
        let parse = |text: &str| parse_strict(text.as_bytes());
        if self.format == SyntheticFormat::ModelOptFp8 {
            let root = parse(&config_json::hf_quant_config())?;
            return Quantization::from_hf_quant_config(&root);
        }
        let root = parse(&config_json::config(&self.spec, self.format))?;
        Ok(Quantization::from_config(&root)?.unwrap_or_else(Quantization::none))
    }

    /// The checkpoint's tensors, of which nothing is stored.
    pub(crate) fn catalog(&self) -> Catalog {
        let shard: Arc<str> = "nowhere".into();
        let tensors = shards::plan_tensors(self).into_iter().map(|tensor| {
            let info = tensor.without_data(&shard);
            (info.name.clone(), info)
        });
        Catalog { tensors: tensors.collect() }
    }

    /// Bytes of the shards' tensors.
    pub fn n_bytes(&self) -> u64 {
        shards::plan_tensors(self).iter().map(PlannedTensor::n_bytes).sum()
    }

    fn scale_bytes(
        &self,
        parameter: &ParameterSpec,
        rank_idx: usize,
        n_ranks: usize,
    ) -> Result<u64, Uneven> {
        let n_scales = match self.format {
            _ if shards::dtype_of(parameter, self.format) != Dtype::F8E4m3 => 0,
            SyntheticFormat::Fp8Dynamic => parameter.slice(rank_idx, n_ranks)?.rows.len(),
            _ => shards::n_modelopt_scales(parameter),
        };
        Ok(n_scales as u64 * Dtype::F32.n_bytes() as u64)
    }
}

/// Writes a checkpoint into `dir`, which is made if need be: configuration, shards and their index,
/// and a byte-level tokenizer with a chat template if the vocabulary has room for it (300 entries).
/// `progress` is told the bytes written and their total.
///
/// # Errors
/// If `dir` already holds a checkpoint, or a file cannot be written.
///
/// # Panics
/// If `n_shards` is 0.
pub fn write_synthetic(
    dir: &Path,
    config: &SyntheticConfig,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), LoadError> {
    let mut go_on = |n_done, n_total| {
        progress(n_done, n_total);
        ControlFlow::Continue(())
    };
    write_until(dir, config, false, &mut go_on)
}

/// The same, but matrices are holes in the files: they read as zeroes and take no room. Norms and
/// scales are written, so that the checkpoint is as sound as it is large.
///
/// # Errors
/// As [`write_synthetic`], and if the file system has no sparse files of that size.
///
/// # Panics
/// If `n_shards` is 0.
pub fn write_sparse(
    dir: &Path,
    config: &SyntheticConfig,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), LoadError> {
    let mut go_on = |n_done, n_total| {
        progress(n_done, n_total);
        ControlFlow::Continue(())
    };
    write_until(dir, config, true, &mut go_on)
}

/// [`write_sparse`] where `is_sparse`, else [`write_synthetic`], which `progress` may end.
///
/// # Errors
/// As those, and if `progress` ended it. Nothing of what was written is left behind.
///
/// # Panics
/// If `n_shards` is 0.
pub fn write_until(
    dir: &Path,
    config: &SyntheticConfig,
    is_sparse: bool,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), LoadError> {
    assert!(config.n_shards > 0, "at least one shard");
    let failed = |source| LoadError::Write { path: dir.display().to_string(), source };
    if fs::exists(dir.join("config.json")).map_err(failed)? {
        return Err(LoadError::NotEmpty { dir: dir.display().to_string() });
    }
    let mut attempt = Attempt::new(dir);
    fs::create_dir_all(dir).map_err(failed)?;
    let shards = Shard::plan(config);
    if is_sparse {
        let most = shards.iter().map(Shard::n_bytes).max().unwrap_or(0);
        shards::check_sparse(dir, most)?;
    }
    let mut writer = shards::Writer::new(config, &shards, progress);
    writer.is_sparse = is_sparse;
    for shard in &shards {
        writer.write(&attempt.file(&shard.file), shard)?;
    }
    if shards.len() > 1 {
        attempt.write(shards::INDEX_FILE, &shards::index_json(&shards))?;
    }
    for (name, text) in tokenizer::files(&config.spec) {
        attempt.write(name, &text)?;
    }
    if config.format == SyntheticFormat::ModelOptFp8 {
        attempt.write("hf_quant_config.json", &config_json::hf_quant_config())?;
    }
    // Last, so that a directory with a config.json is a whole checkpoint.
    attempt.write("config.json", &config_json::config(&config.spec, config.format))?;
    attempt.is_whole = true;
    Ok(())
}

/// Files and folders that go unless the checkpoint became whole.
struct Attempt {
    dir: PathBuf,
    /// Those that were not there before, the innermost first.
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    is_whole: bool,
}

impl Attempt {
    fn new(dir: &Path) -> Attempt {
        let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let folders = dir.ancestors().take_while(is_new).map(Path::to_owned).collect();
        Attempt { dir: dir.to_owned(), folders, files: Vec::new(), is_whole: false }
    }

    /// The path of a file that is written from now on. One that was there before is not taken
    /// away: it may be that it could not even be written.
    fn file(&mut self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        if !path.exists() {
            self.files.push(path.clone());
        }
        path
    }

    fn write(&mut self, name: &str, text: &str) -> Result<(), LoadError> {
        let path = self.file(name);
        let failed = |source| LoadError::Write { path: path.display().to_string(), source };
        fs::write(&path, text).map_err(failed)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        // What somebody else put there meanwhile stays, and with it its folder.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests;
