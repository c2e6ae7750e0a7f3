//! Disk to memory: the block list, and one rank's slices of every tensor. CPU only.
//!
//! It reads `config.json`, quantization settings and safetensors shards, and it is the only crate
//! that interprets their strings. It knows no device, no scheduler, no thread.

pub mod presets;
pub mod sharded;
pub mod synthetic;

mod catalog;
mod checkpoint;
mod config;
mod dtype;
mod error;
mod header;
mod json;
mod loaded;
mod parameters;
mod quantization;
mod rank;
mod resolve;
mod source;
mod spec;
#[doc(hidden)]
pub mod untrusted;
pub mod verify;

pub use catalog::{ShardInfo, TensorInfo};
pub use checkpoint::Checkpoint;
pub use dtype::{E4M3_MAX, decode, e4m3_to_f32, encode, f32_to_e4m3};
pub use error::{ConfigError, LoadError, Uneven};
pub use header::HeaderError;
pub use loaded::{
    AttentionWeights, BlockWeights, Dtype, FfnWeights, InputScale, LinearWeights, Matrix,
    MixerWeights, RankWeights, ReplacementWeights, SwiGluWeights, WeightScale,
};
pub use parameters::{ParameterSpec, Placement, Role, Slice};
pub use quantization::{
    Fp8Scheme, InputQuantization, Quantization, QuantizationMethod, WeightGranularity,
};
pub use rank::RankBytes;
pub use source::{Bytes, MappedFile, Reader};
pub use spec::{
    AttentionSpec, BlockSpec, CacheSpec, FfnSpec, MixerSpec, ModelSpec, RopeScaling, RopeSpec,
};
