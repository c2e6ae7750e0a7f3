//! What the memory plan says is what devices give, to the byte.

use std::path::PathBuf;
use std::sync::Arc;

use engine::device::CudaExec;
use engine::device::cuda::{WORKSPACE_BYTES, memory_bytes};
use engine::{DeviceKind, EngineConfig, KvDtype, Probe};
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{Checkpoint, MixerSpec};

/// What small allocations of a rank share; larger ones than half of it are the driver's own.
const CHUNK_BYTES: u64 = 64 << 20;

/// What a driver gives at least.
const UNIT_BYTES: u64 = 512;

fn config(n_ranks: usize) -> EngineConfig {
    EngineConfig {
        device: DeviceKind::Cuda,
        n_ranks,
        n_threads: None,
        n_slots: 2,
        n_waiting_max: 1,
        n_tokens_per_step: 64,
        n_context_tokens: Some(128),
        kv_dtype: Some(KvDtype::Bf16),
        kv_bytes: None,
        is_deterministic: false,
        overlaps_steps: false,
        caches_prefixes: false,
    }
}

/// Bytes of each device that somebody has.
fn taken(n_devices: usize) -> Vec<u64> {
    let taken = |device| {
        let (free_bytes, total_bytes) = memory_bytes(device).expect("the node has it");
        (total_bytes - free_bytes) as u64
    };
    (0..n_devices).map(taken).collect()
}

/// Bytes that a device gives to whoever opens it: its kernels, and a chunk.
fn of_opening(device: usize) -> u64 {
    let before = taken(device + 1)[device];
    let exec = CudaExec::open(device).expect("the node has it");
    let given = taken(device + 1)[device] - before;
    drop(exec);
    assert!(given >= CHUNK_BYTES, "{given} bytes");
    given
}

/// Boots, and compares what every device has given with what was planned. How many of the parts of
/// all plans were large enough to be seen apart.
fn check(checkpoint: Checkpoint, config: &EngineConfig) -> usize {
    let of_opening: Vec<u64> = (0..config.n_ranks).map(of_opening).collect();
    let before = taken(config.n_ranks);
    let probe = Probe::new(Arc::new(checkpoint), config).expect("it boots");
    let after = taken(config.n_ranks);
    let mut n_seen = 0;
    for (rank_idx, planned) in probe.memory().ranks.iter().enumerate() {
        let parts = [planned.weights_bytes, planned.kv_bytes, planned.workspace_bytes];
        let is_large = |&n_bytes: &u64| n_bytes > CHUNK_BYTES / 2;
        let large = parts.into_iter().filter(is_large).map(|n| n.next_multiple_of(UNIT_BYTES));
        n_seen += large.clone().count();
        let small: u64 = parts.into_iter().filter(|n_bytes| !is_large(n_bytes)).sum();
        // In the chunk lie the products' workspace too, and the few words by which ranks meet.
        assert!(small + WORKSPACE_BYTES as u64 + 4096 <= CHUNK_BYTES, "one chunk is enough");
        let expected = large.sum::<u64>() + of_opening[rank_idx];
        let given = after[rank_idx] - before[rank_idx];
        assert_eq!(given, expected, "device {rank_idx}, {planned:?}");
    }
    drop(probe);
    assert_eq!(taken(config.n_ranks), before, "everything is given back");
    n_seen
}

#[test]
fn what_is_planned_is_what_devices_give() {
    let mut spec = preset("tiny").expect("a preset");
    for block in &mut spec.blocks {
        if let Some(MixerSpec::Attention(attention)) = &mut block.mixer {
            attention.head_dim = 32;
        }
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("memory");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    let synthetic = SyntheticConfig { spec, format: SyntheticFormat::Bf16, n_shards: 1, seed: 1 };
    write_synthetic(&dir, &synthetic, &mut |_, _| {}).expect("it can be written");
    for n_ranks in [1, 2] {
        let checkpoint = Checkpoint::open(&dir).expect("what we write is valid");
        // A context that makes pages no small allocation.
        let config = EngineConfig { n_context_tokens: Some(1 << 18), ..config(n_ranks) };
        assert!(check(checkpoint, &config) >= n_ranks, "pages");
    }
}
