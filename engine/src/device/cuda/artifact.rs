//! The compiled kernels that the program carries, a family a line.
//!
//! They are device code for `sm_90a`, so no compiler and no toolkit is needed to build or to run.
//! `cargo kernels build` makes them, and a test says when one is older than its source.

/// A family's name and its device code.
pub(super) struct Artifact {
    pub(super) family: &'static str,
    pub(super) cubin: &'static [u8],
}

macro_rules! artifacts {
    ($($family:literal),* $(,)?) => {
        &[$(Artifact {
            family: $family,
            cubin: include_bytes!(concat!("../../kernels/", $family, "/", $family, ".cubin")),
        }),*]
    };
}

/// Every family that has device code: `engine/src/kernels/<family>/<family>.cubin`.
pub(super) const ARTIFACTS: &[Artifact] =
    artifacts!["embed", "quantize", "reduce_norm", "rope_kv", "swiglu"];
