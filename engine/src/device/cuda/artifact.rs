//! The compiled kernels that the program carries, a family a line.
//!
//! They are device code for `sm_90a`, so no compiler and no toolkit is needed to build or to run.
//! `cargo kernels build` makes them, and a test says when one is older than its source.

/// A family's name and its device code.
pub(super) struct Artifact {
    pub(super) family: &'static str,
    pub(super) cubin: &'static [u8],
}

macro_rules! artifact {
    ($unit:literal) => {
        artifact!($unit in $unit)
    };
    ($unit:literal in $folder:literal) => {
        Artifact {
            family: $unit,
            cubin: include_bytes!(concat!("../../kernels/", $folder, "/", $unit, ".cubin")),
        }
    };
}

/// Everything that has device code: `engine/src/kernels/<family>/<family>.cubin`, and units of a
/// family that are compiled apart.
pub(super) const ARTIFACTS: &[Artifact] = &[
    artifact!("attention"),
    artifact!("attention_prefill" in "attention"),
    artifact!("embed"),
    artifact!("quantize"),
    artifact!("reduce_norm"),
    artifact!("reduce_norm_two_shot" in "reduce_norm"),
    artifact!("rope_kv"),
    artifact!("sample"),
    artifact!("swiglu"),
];
