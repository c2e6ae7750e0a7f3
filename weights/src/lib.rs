//! Disk to memory: the block list, and one rank's slices of every tensor. CPU only.
//!
//! It reads `config.json`, quantization settings and safetensors shards, and it is the only crate
//! that interprets their strings. It knows no device, no scheduler, no thread.

mod loaded;
mod source;
mod spec;

pub use loaded::{
    AttentionWeights, BlockWeights, Dtype, FfnWeights, InputScale, LinearWeights, Matrix,
    MixerWeights, RankWeights, ReplacementWeights, SwiGluWeights, WeightScale,
};
pub use source::Bytes;
pub use spec::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec, ModelSpec, RopeScaling, RopeSpec};
