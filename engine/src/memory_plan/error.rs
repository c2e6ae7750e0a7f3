//! Why a plan does not come out, with what to change.

use thiserror::Error;
use weights::LoadError;

use super::terms::RankMemory;
use crate::device::DeviceError;
use crate::loading::Unsupported;

/// Why the plan does not come out.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A number that must be at least one is zero, or beyond its bound.
    #[error("{what} is {value}, but must be between {min} and {max}")]
    OutOfRange {
        /// The setting.
        what: &'static str,
        /// What was given.
        value: usize,
        /// Least allowed.
        min: usize,
        /// Greatest allowed.
        max: usize,
    },
    /// Not every running sequence could generate in a step.
    #[error(
        "a step of {n_tokens_per_step} tokens is too small for {n_slots} sequences: raise \
         --max-tokens-per-step or lower --max-seqs"
    )]
    StepTooSmall {
        /// Tokens of a step.
        n_tokens_per_step: usize,
        /// Sequences.
        n_slots: usize,
    },
    /// The cache cannot hold one sequence of full length.
    #[error(
        "a sequence of {n_context_tokens} tokens needs {needed_bytes} bytes of KV cache over all \
         ranks, but {kv_bytes} are given: raise --kv-memory or lower --max-model-len"
    )]
    KvTooSmall {
        /// Tokens of the sequence.
        n_context_tokens: usize,
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        kv_bytes: u64,
    },
    /// The host's part of the cache cannot hold a page of every group.
    #[error(
        "{n_bytes} bytes are given for KV on the host, but a page of every cache group needs \
         {needed_bytes} over all ranks: raise --host-kv-cache or leave it out"
    )]
    HostKvTooSmall {
        /// What there is.
        n_bytes: u64,
        /// What is needed.
        needed_bytes: u64,
    },
    /// The ranks cannot share the checkpoint.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device cannot do what the checkpoint asks for.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A device does not say what it has.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Weights and step do not fit a device.
    #[error(
        "CUDA device {device} has {free_bytes} of {total_bytes} bytes free, but its rank needs \
         {weights_bytes} for weights, {step_bytes} for a step and {reserved_bytes} for the \
         libraries: use more ranks (--tp), shorter steps (--max-tokens-per-step), fewer sequences \
         (--max-seqs) or a shorter context (--max-model-len)",
        weights_bytes = rank.weights_bytes,
        step_bytes = rank.workspace_bytes,
        reserved_bytes = rank.reserve.map_or(0, |reserve| reserve.beside_bytes()),
    )]
    DeviceTooSmall {
        /// Which.
        device: usize,
        /// What its rank needs, without a cache.
        rank: Box<RankMemory>,
        /// Free now.
        free_bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// The cache that was asked for does not fit the devices.
    #[error(
        "{kv_bytes} bytes of KV cache over all ranks are asked for, but the devices have room for \
         {left_bytes} beside the weights: lower --kv-memory, or choose --kv-dtype fp8, fewer \
         sequences (--max-seqs) or a shorter context (--max-model-len)"
    )]
    KvTooLarge {
        /// Asked for.
        kv_bytes: u64,
        /// What there is.
        left_bytes: u64,
    },
}
