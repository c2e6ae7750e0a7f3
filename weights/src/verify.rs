//! A checkpoint looked over for damage: everything that is wrong with it, not only the first thing.
//!
//! [`Survey::open`] reads configuration, index and headers; values and checksums are checked a
//! tensor or a file at a time, so that the caller may share them out among threads.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::catalog::{Catalog, ShardInfo, TensorInfo};
use crate::checkpoint::{read_json, read_quantization};
use crate::dtype::first_not_finite;
use crate::error::LoadError;
use crate::resolve::{self, is_wanted};
use crate::sharded::{MANIFEST_FILE, ZERO, hexadecimal};
use crate::source::Source;
use crate::spec::ModelSpec;

/// Checksums of files, as `sha256sum` writes them.
const SUMS_FILE: &str = "SHA256SUMS";

/// Bytes that are read at once where a file is summed.
const CHUNK_BYTES: usize = 1 << 20;

/// Beyond these no calibration has a scale: weights and activations would all be nothing, or all
/// be cut off.
const SCALE_MIN: f32 = 1e-12;
const SCALE_MAX: f32 = 1e4;

/// What is wrong somewhere.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// Loading would say so, too.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A value that is no number.
    #[error("`{tensor}` holds {value} at element {element_idx}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The first of them.
        element_idx: usize,
        /// What it is.
        value: f32,
    },
    /// A scale that nobody would have calibrated.
    #[error("scale `{tensor}`[{element_idx}] is {value}, which no calibration gives")]
    ScaleRange {
        /// The tensor.
        tensor: String,
        /// Position in it.
        element_idx: usize,
        /// Its value.
        value: f32,
    },
    /// A file is not the one that was published.
    #[error("{file} has SHA-256 {found}, but SHA256SUMS says {expected}")]
    Checksum {
        /// The file.
        file: String,
        /// Of what there is.
        found: String,
        /// Of what there should be.
        expected: String,
    },
    /// A tensor is not the one that was written.
    #[error("`{tensor}` has SHA-256 {found}, but {MANIFEST_FILE} says {expected}")]
    TensorChecksum {
        /// The tensor.
        tensor: String,
        /// Of what there is.
        found: String,
        /// Of what there should be.
        expected: String,
    },
    /// A line of the checksums that says nothing.
    #[error(
        "SHA256SUMS, line {line}: expected 64 hexadecimal digits, two spaces and a file's name"
    )]
    ChecksumLine {
        /// Counted from 1.
        line: usize,
    },
}

/// A half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// The first sub-block.
    Mixer,
    /// The second.
    Ffn,
}

/// Where a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The checkpoint as a whole, or a file of it.
    Whole,
    /// A block of the list.
    Block(usize, Half),
    /// Embedding, last norm or head.
    Ends,
}

/// Something that is wrong.
#[derive(Debug)]
pub struct Problem {
    /// In the model.
    pub place: Place,
    /// On the disk, where it is one file's.
    pub shard: Option<String>,
    /// What.
    pub error: VerifyError,
}

/// What a file should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Its name.
    pub file: String,
    /// Lower case.
    pub sha256: String,
    /// Its size; 0 where it is not there.
    pub n_bytes: u64,
}

/// A checkpoint, looked over.
#[derive(Debug)]
pub struct Survey {
    /// What the model is, where its configuration can be read.
    pub spec: Option<ModelSpec>,
    /// Files of tensors.
    pub shards: Vec<ShardInfo>,
    /// Their tensors, by name.
    pub tensors: Vec<TensorInfo>,
    /// Files whose checksums are known.
    pub checksums: Vec<Checksum>,
    /// What is wrong, as far as it shows without reading values.
    pub problems: Vec<Problem>,
    source: Source,
}

impl Survey {
    /// Looks at everything in `dir` but values.
    pub fn open(dir: &Path) -> Survey {
        let source = Source::Dir(dir.to_owned());
        let mut problems = Vec::new();
        let checksums = read_checksums(&source, &mut problems);
        let config = read_config(&source);
        let spec = config.as_ref().ok().map(|(spec, _)| spec.clone());
        let mut errors = Vec::new();
        let is_wanted = |name: &str| spec.as_ref().is_none_or(|spec| is_wanted(spec, name));
        let (catalog, shards) = Catalog::survey(&source, is_wanted, &mut errors);
        let whole = |error: LoadError| Problem {
            place: Place::Whole,
            shard: shard_of(&error),
            error: error.into(),
        };
        problems.extend(errors.into_iter().map(whole));
        let pieces = catalog.tensors.values().flat_map(TensorInfo::pieces);
        let tensors: Vec<TensorInfo> = pieces.cloned().collect();
        match &config {
            Err(_) => {}
            Ok((spec, quantization)) => {
                let found = resolve::survey(spec, quantization, catalog);
                problems.extend(found.into_iter().map(|(place, error)| Problem {
                    place,
                    shard: shard_of(&error),
                    error: error.into(),
                }));
            }
        }
        problems.extend(config.err().map(whole));
        Survey { spec, shards, tensors, checksums, problems, source }
    }

    /// Checksums that there are: of files, and of tensors where a checkpoint was cut for its ranks.
    pub fn n_checksums(&self) -> usize {
        let of_tensors = self.tensors.iter().filter(|tensor| tensor.checksum.is_some());
        self.checksums.len() + of_tensors.count()
    }

    /// Reads a tensor's values; what is no number, or no scale.
    pub fn check_tensor(&self, tensor: &TensorInfo) -> Option<Problem> {
        let problem = |error| {
            let (place, shard) = (place_of(&tensor.name), Some(tensor.shard.to_string()));
            Some(Problem { place, shard, error })
        };
        let begin = tensor.offset;
        let end = begin + tensor.n_bytes as usize;
        let checksum = tensor.checksum.as_deref();
        if tensor.bytes.is_hole(begin..end) && checksum.is_none_or(|sum| sum == ZERO) {
            return None;
        }
        let bytes = &tensor.bytes.as_slice()[begin..end];
        let found = checksum.and_then(|expected| wrong_sum(bytes, expected));
        let not_finite = first_not_finite(tensor.dtype, bytes);
        let values = is_scale(&tensor.name).then(|| tensor.to_f32());
        if let Err(error) = tensor.bytes.check() {
            return problem(error.into());
        }
        if let Some(found) = found {
            return problem(VerifyError::TensorChecksum {
                tensor: tensor.name.clone(),
                found,
                expected: checksum.unwrap_or_default().to_owned(),
            });
        }
        if let Some((element_idx, value)) = not_finite {
            let tensor = tensor.name.clone();
            return problem(VerifyError::NotFinite { tensor, element_idx, value });
        }
        let values = values?;
        let is_odd = |&value: &f32| !(SCALE_MIN..=SCALE_MAX).contains(&value);
        let element_idx = values.iter().position(is_odd)?;
        let (tensor, value) = (tensor.name.clone(), values[element_idx]);
        problem(VerifyError::ScaleRange { tensor, element_idx, value })
    }

    /// Reads a file and compares its checksum. `progress` hears of bytes as they are read.
    pub fn check_file(&self, checksum: &Checksum, progress: &dyn Fn(u64)) -> Option<Problem> {
        let Checksum { file, sha256, .. } = checksum;
        let error = match self.sha256(file, progress) {
            Ok(found) if found == *sha256 => return None,
            Ok(found) => {
                let (file, expected) = (file.clone(), sha256.clone());
                VerifyError::Checksum { file, found, expected }
            }
            Err(error) => error.into(),
        };
        Some(Problem { place: Place::Whole, shard: Some(file.clone()), error })
    }

    fn sha256(&self, file: &str, progress: &dyn Fn(u64)) -> Result<String, LoadError> {
        let path = self.source.path(file);
        let failed = |source| LoadError::Read { path: path.clone(), source };
        let mut opened = File::open(&path).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n_read = opened.read(&mut chunk).map_err(failed)?;
            if n_read == 0 {
                return Ok(hexadecimal(hash.finalize()));
            }
            hash.update(&chunk[..n_read]);
            progress(n_read as u64);
        }
    }
}

fn read_config(source: &Source) -> Result<(ModelSpec, crate::Quantization), LoadError> {
    const FILE: &str = "config.json";
    let Some(root) = read_json(source, FILE)? else {
        return Err(LoadError::FileMissing { dir: source.name(), file: FILE.to_owned() });
    };
    let quantization = read_quantization(source, &root)?;
    let spec = ModelSpec::from_config_value(root);
    let in_file = |error| LoadError::Config { path: source.path(FILE), source: error };
    Ok((spec.map_err(in_file)?, quantization))
}

/// The lines of `SHA256SUMS`, if there is one.
fn read_checksums(source: &Source, problems: &mut Vec<Problem>) -> Vec<Checksum> {
    let mut problem = |error| problems.push(Problem { place: Place::Whole, shard: None, error });
    let text = match source.read(SUMS_FILE) {
        Ok(None) => return Vec::new(),
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            problem(error.into());
            return Vec::new();
        }
    };
    let mut checksums = Vec::new();
    for (line_idx, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        // `sha256sum` marks files that it read as binary by an asterisk.
        let parts = line.split_once("  ").or_else(|| line.split_once(" *"));
        let is_digest =
            |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let Some((sha256, file)) = parts.filter(|(digest, _)| is_digest(digest)) else {
            problem(VerifyError::ChecksumLine { line: line_idx + 1 });
            continue;
        };
        match source.check_name(file) {
            Err(error) => problem(error.into()),
            Ok(()) => {
                let metadata = std::fs::metadata(source.path(file));
                let n_bytes = metadata.map_or(0, |metadata| metadata.len());
                let (file, sha256) = (file.to_owned(), sha256.to_ascii_lowercase());
                checksums.push(Checksum { file, sha256, n_bytes });
            }
        }
    }
    checksums
}

/// The checksum of `bytes`, where it is not the one expected.
fn wrong_sum(bytes: &[u8], expected: &str) -> Option<String> {
    if expected == ZERO && bytes.iter().all(|&byte| byte == 0) {
        return None;
    }
    let found = hexadecimal(Sha256::digest(bytes));
    (found != expected).then_some(found)
}

fn is_scale(name: &str) -> bool {
    name.ends_with("_scale")
}

/// Which file an error is about.
fn shard_of(error: &LoadError) -> Option<String> {
    let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
    match error {
        LoadError::WrongShape { shard, .. }
        | LoadError::WrongDtype { shard, .. }
        | LoadError::NotInShard { shard, .. } => Some(shard.clone()),
        LoadError::Header { path, .. } | LoadError::Shrank { path } => name(path),
        LoadError::FileMissing { file, .. } => Some(file.clone()),
        _ => None,
    }
}

/// Where a tensor of that name belongs.
pub(crate) fn place_of(name: &str) -> Place {
    let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((block_idx, rest)) = block else { return Place::Ends };
    let is_ffn = rest.starts_with("mlp.") || rest.starts_with("post_attention_layernorm.");
    let half = if is_ffn { Half::Ffn } else { Half::Mixer };
    block_idx.parse().map_or(Place::Ends, |block_idx| Place::Block(block_idx, half))
}
