//! What can be wrong with a checkpoint, with everything that one needs to find and mend it.

use std::io;
use std::ops::Range;

use thiserror::Error;

use crate::header::HeaderError;

/// A configuration that describes no model that we can run.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, a key twice, or a value of the wrong kind.
    #[error("not a valid configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that the model type needs is absent or null.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that makes no sense, or one that we do not support.
    #[error("`{field}` is {found}, expected {expected}")]
    Field {
        /// The field, with its path.
        field: String,
        /// What it says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// The same inside an entry of `block_configs`.
    #[error("block {block_idx}: `{field}` is {found}, expected {expected}")]
    Block {
        /// Position in `block_configs`.
        block_idx: usize,
        /// The field, with its path inside the entry.
        field: String,
        /// What it says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// The block asks for a variant of attention or FFN that we do not implement.
    #[error(
        "block {block_idx}: `{field}` is {found}, and this block variant is not supported; \
         supported are no_op, grouped-query attention, SwiGLU, replace_with_linear and a plain \
         window_length"
    )]
    BlockVariant {
        /// Position in `block_configs`.
        block_idx: usize,
        /// The field, with its path inside the entry.
        field: String,
        /// What it says.
        found: String,
    },
}

/// A parameter whose size the ranks cannot share evenly.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{parameter}` has {n_units} {unit}, which {n_ranks} ranks cannot share evenly")]
pub struct Uneven {
    /// The tensor, which names the block.
    pub parameter: String,
    /// What is shared: heads, rows or columns.
    pub unit: &'static str,
    /// How many there are.
    pub n_units: usize,
    /// Among how many ranks.
    pub n_ranks: usize,
}

/// Why a checkpoint was not loaded, or not written.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or directory.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file lost bytes while it was in use.
    #[error(
        "{path} shrank or could not be read while it was in use: a checkpoint must not change \
         while it is served"
    )]
    Shrank {
        /// The file.
        path: String,
    },
    /// A file system does not do what a sparse checkpoint needs.
    #[error(
        "cannot make {path} of {n_bytes} bytes as a sparse file ({reason}): choose a directory on \
         a file system with sparse files of that size, such as ext4, xfs, btrfs or tmpfs"
    )]
    NotSparse {
        /// The file.
        path: String,
        /// Its size.
        n_bytes: u64,
        /// What came instead.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or directory.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that every checkpoint has is absent.
    #[error("{dir} holds no {file}: is it a checkpoint directory?")]
    FileMissing {
        /// Where it was looked for.
        dir: String,
        /// Its name.
        file: String,
    },
    /// A side file is beyond the limit.
    #[error("{path} has {n_bytes} bytes, more than the {n_bytes_max} that such a file may have")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        n_bytes: u64,
        /// The limit.
        n_bytes_max: u64,
    },
    /// A name that would reach outside the checkpoint's directory.
    #[error("`{name}` in {path} is not a plain file name")]
    FileName {
        /// What names it.
        path: String,
        /// The name.
        name: String,
    },
    /// The model or quantization configuration cannot be used.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong in it.
        source: ConfigError,
    },
    /// A safetensors file contradicts itself.
    #[error("{path}: {source}")]
    Header {
        /// The shard.
        path: String,
        /// What is wrong in it.
        source: Box<HeaderError>,
    },
    /// The index points to a shard that does not hold the tensor.
    #[error("{index} puts `{tensor}` into {shard}, which does not hold it")]
    NotInShard {
        /// The index file.
        index: String,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// Two shards hold a tensor of one name, or two names stand for one value.
    #[error("`{tensor}` is given twice: in {first} and in {second}")]
    DuplicateTensor {
        /// The tensor, or what both stand for.
        tensor: String,
        /// One place.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor that the configuration asks for is in no shard.
    #[error("tensor `{tensor}` is missing; the configuration asks for shape {expected:?}")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// Shards hold tensors that the configuration does not account for.
    #[error(
        "{n_tensors} tensors belong to no block of the configuration, the first is `{first}`: \
         do config.json and the shards belong together?"
    )]
    UnusedTensors {
        /// How many.
        n_tensors: usize,
        /// The first by name.
        first: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("tensor `{tensor}` in {shard} has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// Where it is.
        shard: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that cannot stand there.
    #[error("tensor `{tensor}` in {shard} has dtype {found}, expected {expected}")]
    WrongDtype {
        /// The tensor.
        tensor: String,
        /// Where it is.
        shard: String,
        /// Its dtype.
        found: String,
        /// What may stand there, and why.
        expected: String,
    },
    /// Projections that read the same input disagree about its quantization.
    #[error(
        "block {block_idx}: the configuration quantizes `{quantized}` and excludes `{excluded}`, \
         but both read the same input, which is quantized once: exclude all of {all} or none \
         of them"
    )]
    SplitInput {
        /// The block.
        block_idx: usize,
        /// The first module that is quantized.
        quantized: String,
        /// The first that is not.
        excluded: String,
        /// What must agree, by name.
        all: String,
    },
    /// A scale is not a positive finite number.
    #[error("scale `{tensor}`[{row_idx}] is {value}, expected a positive finite number")]
    BadScale {
        /// The scale's tensor.
        tensor: String,
        /// Position in it.
        row_idx: usize,
        /// Its value.
        value: f32,
    },
    /// A parameter cannot be shared among that many ranks.
    #[error(transparent)]
    Uneven(#[from] Uneven),
    /// A file of a rank holds a tensor that the manifest does not know.
    #[error("`{tensor}` in {shard} has no checksum in {manifest}: do they belong together?")]
    NotInManifest {
        /// The manifest.
        manifest: String,
        /// The tensor.
        tensor: String,
        /// The file.
        shard: String,
    },
    /// It was cut for another number of ranks.
    #[error(
        "the checkpoint was cut for {n_ranks} ranks, not for {asked}: choose --tp {n_ranks}, or \
         cut the original anew with `lnserve shard`"
    )]
    ShardedFor {
        /// What it was cut for.
        n_ranks: usize,
        /// What was asked for.
        asked: usize,
    },
    /// It is cut already.
    #[error("the checkpoint is already cut, for {n_ranks} ranks: give the original")]
    Sharded {
        /// What it was cut for.
        n_ranks: usize,
    },
    /// What is to be made is there.
    #[error("{path} is already there: give a folder that is not, it is made")]
    Exists {
        /// The folder.
        path: String,
    },
    /// Whoever was told of the progress ended it.
    #[error("interrupted: nothing was left behind")]
    Interrupted,
    /// The directory to write to already holds a checkpoint.
    #[error("{dir} already holds a config.json: give an empty directory")]
    NotEmpty {
        /// The directory.
        dir: String,
    },
}

/// One line about a span of bytes, for error messages.
pub(crate) fn span(range: &Range<u64>) -> String {
    format!("{}..{}", range.start, range.end)
}
