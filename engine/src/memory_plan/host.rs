//! What ranks on the processor hold.

use std::fs;

use weights::{
    AttentionWeights, Checkpoint, FfnWeights, LinearWeights, LoadError, MixerWeights, RankWeights,
    SwiGluWeights,
};

use super::{RankMemory, WeightParts, WorkspaceParts, collective_bytes, n_collective_floats};
use crate::blocks::Scratch;
use crate::config::EngineConfig;
use crate::device::Simd;
use crate::device::simd::{Stored, TileWeights, packs};
use crate::model::{logits_bytes, widths};
use crate::sampler::Sampler;

/// Each rank's memory, without its weights' packed copies.
pub(super) fn ranks(
    checkpoint: &Checkpoint,
    config: &EngineConfig,
    stored_bytes: &[u64],
    kv_bytes: u64,
) -> Vec<RankMemory> {
    let spec = checkpoint.spec();
    let (widths, n_tokens) = (widths(spec, config.n_ranks, 1), config.n_tokens_per_step);
    let packed_bytes = (widths.n_packed_floats(n_tokens) * size_of::<f32>()) as u64;
    let scratch_bytes = Scratch::n_bytes(widths, n_tokens) + packed_bytes;
    let n_floats = n_collective_floats(checkpoint, config);
    let of_rank = |(rank_idx, &weights_bytes): (usize, &u64)| RankMemory {
        weights_bytes,
        kv_bytes,
        workspace_bytes: scratch_bytes
            + logits_bytes(spec, config.n_ranks, rank_idx)
            + if rank_idx == 0 { Sampler::n_bytes(spec.vocab_size) } else { 0 },
        collective_bytes: collective_bytes(config.n_ranks, n_floats),
        weights: WeightParts::default(),
        workspace: WorkspaceParts::default(),
        reserve: None,
    };
    stored_bytes.iter().enumerate().map(of_rank).collect()
}

/// Bytes that weights take, packed for the processor's tiles, over all ranks; none where it has no
/// tiles, or where they do not fit into `available_bytes` beside `other_bytes`: then weights are
/// read where they are mapped, more slowly.
pub(super) fn packed_bytes(
    checkpoint: &Checkpoint,
    (n_ranks, rounds_inputs): (usize, bool),
    other_bytes: u64,
    available_bytes: Option<u64>,
) -> Result<u64, LoadError> {
    let simd = Simd::detect();
    if !simd.has_tiles() {
        return Ok(0);
    }
    let mut packed_bytes = 0;
    for rank_idx in 0..n_ranks {
        let weights = checkpoint.load_rank(rank_idx, n_ranks)?;
        for Group { parts, is_gated } in projections(&weights) {
            if !packs(simd, parts.iter().copied(), rounds_inputs) {
                continue;
            }
            let n_bytes = match &*parts {
                [gate, up] if is_gated => {
                    TileWeights::n_bytes_of(Stored::Gated([&gate.matrix, &up.matrix]))
                }
                parts => {
                    let of = |part: &&LinearWeights| {
                        TileWeights::n_bytes_of(Stored::Plain(&part.matrix))
                    };
                    parts.iter().map(of).sum::<usize>()
                }
            };
            packed_bytes += n_bytes as u64;
        }
    }
    if available_bytes.is_some_and(|available_bytes| packed_bytes + other_bytes > available_bytes) {
        tracing::warn!(
            packed_bytes,
            other_bytes,
            available_bytes,
            "there is no memory to pack weights for this processor's tiles: they stay mapped, and \
             are multiplied without tiles, which is slower; free some, or take a smaller KV cache \
             (--kv-memory)"
        );
        return Ok(0);
    }
    Ok(packed_bytes)
}

/// A projection's parts.
struct Group<'a> {
    parts: Vec<&'a LinearWeights>,
    is_gated: bool,
}

/// Of every projection.
fn projections(weights: &RankWeights) -> Vec<Group<'_>> {
    let plain = |parts: Vec<_>| Group { parts, is_gated: false };
    let mut projections = vec![plain(vec![&weights.head])];
    for block in &weights.blocks {
        match &block.mixer {
            Some(MixerWeights::Attention(AttentionWeights { q, k, v, o, .. })) => {
                projections.extend([vec![q, k, v], vec![o]].map(plain));
            }
            Some(MixerWeights::Linear(replacement)) => {
                projections.push(plain(vec![&replacement.projection]));
            }
            None => {}
        }
        match &block.ffn {
            Some(FfnWeights::SwiGlu(SwiGluWeights { gate, up, down, .. })) => {
                projections.push(Group { parts: vec![gate, up], is_gated: true });
                projections.push(plain(vec![down]));
            }
            Some(FfnWeights::Linear(replacement)) => {
                projections.push(plain(vec![&replacement.projection]));
            }
            None => {}
        }
    }
    projections
}

/// Memory that this process may still take, as far as the system tells: what Linux calls available,
/// and no more than its control group has.
pub(super) fn available_bytes() -> Option<u64> {
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let of_group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let of_group = of_group.and_then(|text| text.trim().parse().ok());
    of_machine.into_iter().chain(of_group).min()
}

/// `MemAvailable` of `/proc/meminfo` (Linux, `Documentation/filesystems/proc.rst`), in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use weights::presets::preset;
    use weights::synthetic::{SyntheticConfig, SyntheticFormat};

    use super::*;

    #[test]
    fn weights_are_packed_where_there_are_tiles_and_room() {
        let spec = preset("tiny").expect("a preset");
        let format = SyntheticFormat::ModelOptFp8;
        let config = SyntheticConfig { spec, format, n_shards: 1, seed: 0 };
        let checkpoint = Checkpoint::without_data(&config).expect("it is complete");
        let packed = |other_bytes, available_bytes| {
            packed_bytes(&checkpoint, (2, true), other_bytes, available_bytes).expect("it loads")
        };
        let n_bytes = packed(7, None);
        assert_eq!(n_bytes > 0, Simd::detect().has_tiles());
        assert_eq!(packed(7, Some(n_bytes + 7)), n_bytes);
        assert_eq!(packed(7, Some((n_bytes + 7).saturating_sub(1))), 0);
    }

    #[test]
    fn what_is_available_is_read() {
        let meminfo = "MemTotal:       24591788 kB\nMemAvailable:   22904256 kB\nBuffers: 3 kB\n";
        assert_eq!(mem_available(meminfo), Some(22_904_256 << 10));
        for other in ["", "MemAvailable: 3", "MemAvailable: x kB", "MemFree: 3 kB"] {
            assert_eq!(mem_available(other), None, "{other:?}");
        }
    }
}
