//! How long launches take on eight H100s, from constants that others have published. Where two
//! sources differ both are kept: the prediction is a range.
//!
//! **Not modelled:** what the smallest kernel takes beside its launch, that a draw's one block a
//! row reads slower than a whole device, how ranks drift apart, clocks that fall under load. All of
//! them make a real step longer. The host between two steps is not there: a step is launched before
//! the one before it has ended. What would make a step shorter is modelled for one thing only:
//! weights that are fetched into the L2 cache while the ranks exchange what comes before them.

use crate::peers::Carrier;

use super::work::{Kind, Launch};

/// Bytes a second of an H100 SXM's memory (NVIDIA H100 data sheet).
const HBM: f64 = 3.35e12;
/// Dense operations a second of its tensor cores (the same).
const F8_FLOPS: f64 = 1979e12;
const BF16_FLOPS: f64 = 989e12;
/// Bytes a second that a device receives over NVLink 4: half of 900 GB/s (the same).
const NVLINK: f64 = 450e9;
const N_RANKS: f64 = 8.0;

/// Seconds of a one-shot all-reduce without the transfer: 7.0 µs for a fused all-reduce and norm
/// of 72 KiB between two H100s (flagos-ai/FlagGems-vllm#773); 7 to 9 µs from 16 to 256 KiB
/// between eight B300s (vllm-project/vllm#37756).
const ONE_SHOT: f64 = 7.0e-6;

/// Microseconds of NCCL's all-reduce between eight H100s, by bytes. Up to 1 MiB from
/// ByteDance-Seed/Triton-distributed#57 (launch included), above from vllm-project/vllm#42324.
const NCCL: &[(f64, f64)] = &[
    (32.0 * KIB, 22.7),
    (256.0 * KIB, 24.8),
    (512.0 * KIB, 24.5),
    (1.0 * MIB, 28.5),
    (2.0 * MIB, 37.0),
    (4.0 * MIB, 50.0),
    (8.0 * MIB, 76.0),
    (64.0 * MIB, 316.0),
];
/// Bytes a second of the largest messages through NVLink's switches (NVIDIA/nccl-tests#212).
const NCCL_LARGE: f64 = 275e9;

/// Microseconds of an all-reduce by one kernel in two stages, between eight H100s
/// (vllm-project/vllm#42324). Its second stage moves rows of bf16, the engine's of e4m3.
const TWO_SHOT: &[(f64, f64)] = &[
    (512.0 * KIB, 15.0),
    (1.0 * MIB, 17.0),
    (2.0 * MIB, 22.0),
    (4.0 * MIB, 37.0),
    (8.0 * MIB, 65.0),
    (64.0 * MIB, 468.0),
];

/// Of the bytes that an all-reduce of as large a result moves over each link, an all-gather moves
/// the half (NVIDIA/nccl-tests, doc/PERFORMANCE.md): it is taken to last as long as the all-reduce
/// of half of what it gathers.
const GATHER_SHARE: f64 = 0.5;

/// Microseconds of an all-reduce in the switches (multimem), from vllm-project/vllm#42324; the two
/// smallest sizes are assumed. The engine does not use it; the roofline does.
const MULTIMEM: &[(f64, f64)] = &[
    (32.0 * KIB, 9.0),
    (256.0 * KIB, 10.0),
    (512.0 * KIB, 11.0),
    (1.0 * MIB, 14.0),
    (2.0 * MIB, 18.0),
    (4.0 * MIB, 27.0),
    (8.0 * MIB, 46.0),
    (64.0 * MIB, 320.0),
];

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// Which part of its peaks a device reaches.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Seconds between two kernels of a graph.
    pub gap: f64,
    /// Of the memory's bandwidth, in products that weights bound.
    pub weights: f64,
    /// The same for attention over the cache.
    pub cache: f64,
    /// The same element by element.
    pub stream: f64,
    /// Bytes a second of weights that lie in the L2 cache already; not more than of others where it
    /// is taken that fetching them was of no use.
    pub cached: f64,
    /// Of the tensor cores' peak, in large products.
    pub products: f64,
    /// Of the BF16 peak, in the attention of a prefill.
    pub attention: f64,
}

impl Machine {
    /// The least that the sources say: 68 % of the memory in skinny FP8 products (16 to 64 by
    /// 14,336 by 4,096, NVIDIA/cutlass#1139); 1.8 TB/s in paged attention
    /// (Dao-AILab/flash-attention#1572); 999 Tflop/s in FP8 products with a small K
    /// (deepseek-ai/DeepGEMM#73); 35 % in FlashAttention-2 on an H100 (arXiv 2407.08608). The gap
    /// is the expected one. Fetching ahead is of no use, as some have found of prefetches into L2
    /// (NVIDIA/cutlass#3127).
    pub const LOW: Machine = Machine {
        gap: Machine::EXPECTED.gap,
        weights: 0.68,
        cache: 1.8e12 / HBM,
        stream: 0.78,
        cached: 0.68 * HBM,
        products: 999e12 / F8_FLOPS,
        attention: 0.35,
    };

    /// What is expected: 1.3 µs from kernel to kernel of a graph on an H100 (B. Spector and
    /// others, "Look Ma, No Bubbles!", hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles);
    /// 2.6 TB/s in the weights of FFNs, 1.9 TB/s in attention and 2.8 TB/s in plain loads, seen
    /// with Nsight in a model on eight H100s (mikamirai.com/blog/gpu-memory-bandwidth); 1,404
    /// Tflop/s in products of 4,096 by 7,168 by 16,384 (deepseek-ai/DeepGEMM#73). The published
    /// 70.92 tokens/s of this model on such a node (arXiv 2503.18908, table 2) need at least 67 %
    /// of the memory's bandwidth over all. Weights that were fetched ahead are read from L2 at
    /// 5.4 TB/s, what an A100's yields to asynchronous copies (smallscientist1/cuda_microbenchmark,
    /// analysis_A100.md): an H100's is not slower. Others gained 7 % of a decoding step by fetching
    /// for cuBLAS's products in this way, on another GPU (local-inference-lab/vllm#576), and up to
    /// 1.6 × on another accelerator (arXiv 2501.08192).
    pub const EXPECTED: Machine = Machine {
        gap: 1.3e-6,
        weights: 2.6e12 / HBM,
        cache: 1.9e12 / HBM,
        stream: 2.8e12 / HBM,
        cached: 5.4e12,
        products: 1404e12 / F8_FLOPS,
        attention: 0.35,
    };

    /// The most: everything that memory bounds at the rate of plain loads, 1,470 Tflop/s in
    /// products (deepseek-ai/DeepGEMM#73), 75 % in attention (FlashAttention-3, arXiv 2407.08608).
    /// 3.4 µs a kernel of a graph of which it runs 2.9 µs (A. Gray, "Getting Started with CUDA
    /// Graphs", developer.nvidia.com/blog/cuda-graphs, on a V100). What was fetched ahead is read
    /// beside what was not, in no time of its own.
    pub const HIGH: Machine = Machine {
        gap: 0.5e-6,
        weights: 2.8e12 / HBM,
        cache: 2.8e12 / HBM,
        stream: 2.8e12 / HBM,
        cached: f64::INFINITY,
        products: 1470e12 / F8_FLOPS,
        attention: 0.75,
    };

    /// Seconds of all launches, one after another.
    pub fn seconds(&self, launches: &[Launch]) -> f64 {
        let mut exchange = 0.0;
        let mut sum = 0.0;
        for launch in launches {
            let seconds = self.seconds_of(launch, exchange);
            if matches!(launch.kind, Kind::AllReduce(_)) {
                exchange = seconds;
            }
            sum += seconds;
        }
        sum
    }

    /// `exchange` is how long the last one took: as long the memory had time to fetch ahead.
    fn seconds_of(&self, launch: &Launch, exchange: f64) -> f64 {
        let fetched = (launch.ahead_bytes as f64).min(exchange * HBM * self.stream);
        let (bytes, flops) = (launch.bytes as f64 - fetched, launch.flops as f64);
        let weights = bytes / (HBM * self.weights) + fetched / self.cached;
        let moving = |share: f64| bytes / (HBM * share);
        let seconds = match launch.kind {
            Kind::ProductF8 => weights.max(flops / (F8_FLOPS * self.products)),
            Kind::ProductBf16 => weights.max(flops / (BF16_FLOPS * self.products)),
            Kind::Attention => moving(self.cache).max(flops / (BF16_FLOPS * self.attention)),
            Kind::Stream => moving(self.stream),
            Kind::AllReduce(way) => all_reduce(way, bytes),
            Kind::AllGather => nccl(bytes * N_RANKS * GATHER_SHARE),
        };
        if is_launched(launch) { seconds + self.gap } else { seconds }
    }
}

/// Kernels that are launched.
pub fn n_launches(launches: &[Launch]) -> usize {
    launches.iter().filter(|launch| is_launched(launch)).count()
}

/// Only NCCL's sums are kernels of their own; others are part of the one that follows.
fn is_launched(launch: &Launch) -> bool {
    !matches!(launch.kind, Kind::AllReduce(way) if way != Carrier::Nccl)
}

fn all_reduce(way: Carrier, bytes: f64) -> f64 {
    match way {
        Carrier::OneShot => one_shot(bytes, N_RANKS),
        Carrier::TwoShot => interpolated(TWO_SHOT, bytes),
        Carrier::Nccl => nccl(bytes),
    }
}

/// Every rank reads the message of every other.
fn one_shot(bytes: f64, n_ranks: f64) -> f64 {
    ONE_SHOT + (n_ranks - 1.0) * bytes / NVLINK
}

fn nccl(bytes: f64) -> f64 {
    let (last, _) = NCCL[NCCL.len() - 1];
    if bytes > last { (bytes / NCCL_LARGE).max(316e-6) } else { interpolated(NCCL, bytes) }
}

/// Seconds between the sizes of a table, along a straight line; of the first below them.
fn interpolated(table: &[(f64, f64)], bytes: f64) -> f64 {
    let after = table.iter().position(|(size, _)| *size >= bytes);
    let us = match after {
        Some(0) => table[0].1,
        Some(idx) => {
            let ((x0, y0), (x1, y1)) = (table[idx - 1], table[idx]);
            y0 + (y1 - y0) * (bytes - x0) / (x1 - x0)
        }
        None => {
            let (size, us) = table[table.len() - 1];
            us * bytes / size
        }
    };
    us * 1e-6
}

/// Seconds that no engine can beat that leaves the memory alone during an exchange: weights and
/// cache at its full bandwidth or products at the tensor cores' peak, and an all-reduce in the
/// switches after each.
pub fn roofline_seconds(launches: &[Launch]) -> f64 {
    let of = |is: fn(Kind) -> bool| launches.iter().filter(move |launch| is(launch.kind));
    let memory: u64 = of(|_| true).map(|launch| launch.resident_bytes).sum();
    let cache: u64 = of(|kind| kind == Kind::Attention).map(|launch| launch.resident_bytes).sum();
    let f8: u64 = of(|kind| kind == Kind::ProductF8).map(|launch| launch.flops).sum();
    let bf16: u64 = of(|kind| kind == Kind::ProductBf16).map(|launch| launch.flops).sum::<u64>();
    let attention: u64 = of(|kind| kind == Kind::Attention).map(|launch| launch.flops).sum();
    let products = f8 as f64 / F8_FLOPS + bf16 as f64 / BF16_FLOPS;
    let weights = (memory - cache) as f64 / HBM;
    let messages = of(|kind| matches!(kind, Kind::AllReduce(_)))
        .map(|launch| interpolated(MULTIMEM, launch.bytes as f64));
    weights.max(products)
        + (cache as f64 / HBM).max(attention as f64 / BF16_FLOPS)
        + messages.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use weights::presets::preset;

    use super::super::work::{Step, launches};
    use super::*;

    fn decode(n_sequences: u64, context: u64) -> Vec<Launch> {
        let spec = preset("ultra-253b").expect("a preset");
        launches(&spec, Step { n_sequences, n_tokens_each: 1, context }, 8)
    }

    #[test]
    fn the_roofline_is_what_arithmetic_on_the_config_gives() {
        // Worked out apart from this code: weights 9.46 ms, 16,384 bytes of cache a token, 145
        // messages (here 146, with the embedding's).
        for (n_sequences, context, ms) in [
            (1, 1024, 10.77),
            (1, 32_768, 10.92),
            (8, 8192, 11.23),
            (32, 8192, 12.77),
            (64, 8192, 14.63),
            (64, 32_768, 22.32),
            (128, 1024, 14.01),
            (256, 8192, 26.38),
        ] {
            let ours = 1e3 * roofline_seconds(&decode(n_sequences, context));
            assert!((ours / ms - 1.0).abs() < 0.01, "{n_sequences} x {context}: {ours} for {ms}");
        }
    }

    #[test]
    fn the_one_shot_exchange_agrees_with_what_others_measured() {
        // 13 µs for 512 KiB between six H100s, one stage (vllm-project/vllm#24111).
        let us = 1e6 * one_shot(512.0 * KIB, 6.0);
        assert!((us - 13.0).abs() < 1.0, "{us}");
        // Reading seven messages costs more than NCCL from somewhere beyond 1 MiB on.
        assert!(one_shot(1.0 * MIB, 8.0) < nccl(1.0 * MIB));
        assert!(one_shot(4.0 * MIB, 8.0) > nccl(4.0 * MIB));
        // So small steps launch 146 kernels fewer than the largest.
        let (small, large) = (n_launches(&decode(1, 1024)), n_launches(&decode(1024, 1024)));
        assert_eq!((small, large - small), (649, 146));
    }

    #[test]
    fn the_range_is_one_and_contains_what_was_published() {
        for (n_sequences, context) in [(1, 1024), (8, 8192), (64, 8192), (256, 32_768)] {
            let step = decode(n_sequences, context);
            let [low, expected, high] = [Machine::LOW, Machine::EXPECTED, Machine::HIGH]
                .map(|machine| machine.seconds(&step));
            assert!(roofline_seconds(&step) < high && high < expected && expected < low);
        }
        // 70.92 tokens/s, for TensorRT-LLM's own graph and all-reduce (arXiv 2503.18908).
        let rate = |machine: Machine| 1.0 / machine.seconds(&decode(1, 1024));
        assert!(rate(Machine::LOW) < 70.92 && 70.92 < rate(Machine::HIGH));
    }

    #[test]
    fn fetching_ahead_saves_no_more_than_the_exchange() {
        for machine in [Machine::LOW, Machine::EXPECTED, Machine::HIGH] {
            for n_sequences in [1, 16, 64, 256] {
                let step = decode(n_sequences, 1024);
                let plain: Vec<Launch> =
                    step.iter().map(|launch| Launch { ahead_bytes: 0, ..*launch }).collect();
                let saved = machine.seconds(&plain) - machine.seconds(&step);
                let exchanges = step.iter().filter(|one| matches!(one.kind, Kind::AllReduce(_)));
                let exchanges: f64 = exchanges.map(|one| machine.seconds(&[*one])).sum();
                let most = exchanges * machine.stream / machine.weights;
                assert!(saved >= -1e-9 && saved <= most, "{n_sequences}: {saved} of {exchanges}");
            }
        }
        let saved = |machine: Machine| {
            let step = decode(1, 1024);
            let plain: Vec<Launch> =
                step.iter().map(|launch| Launch { ahead_bytes: 0, ..*launch }).collect();
            machine.seconds(&plain) - machine.seconds(&step)
        };
        assert!(saved(Machine::LOW).abs() < 1e-9, "of no use");
        // 20 MiB 146 times, at 2.6 TB/s and at 5.4.
        let expected = 146.0 * 20.0 * MIB * (1.0 / 2.6e12 - 1.0 / 5.4e12);
        assert!((saved(Machine::EXPECTED) / expected - 1.0).abs() < 1e-6);
    }

    #[test]
    fn more_work_takes_longer() {
        let ms = |n_sequences, context| Machine::EXPECTED.seconds(&decode(n_sequences, context));
        assert!(ms(1, 1024) < ms(8, 1024) && ms(8, 1024) < ms(8, 8192));
        let between = interpolated(NCCL, 3.0 * MIB);
        assert!(37e-6 < between && between < 50e-6);
        assert!((nccl(256.0 * MIB) - 256.0 * MIB / NCCL_LARGE).abs() < 1e-9);
        // All 64 rows of logits are 31 MiB: gathering them lasts as long as summing 16 MiB.
        let gather = decode(64, 1024).into_iter().find(|launch| launch.kind == Kind::AllGather);
        let seconds = Machine::EXPECTED.seconds(&[gather.expect("logits are gathered")]);
        let expected = nccl(64.0 * 128_256.0 * 4.0 / 2.0) + Machine::EXPECTED.gap;
        assert!((seconds / expected - 1.0).abs() < 1e-9, "{seconds}");
    }
}
