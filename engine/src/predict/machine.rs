//! How long launches take on eight H100s, from constants that others have published. Where two
//! sources differ both are kept: the prediction is a range.
//!
//! **Not modelled:** what the smallest kernel takes beside its launch, but in products and
//! attention; that a draw's one block a row, and attention's few blocks of a few rows, read slower
//! than a whole device; how ranks drift apart, clocks that fall under load. All of them make a real
//! step longer. The host between two steps is not there: a step is launched before the one before
//! it has ended. What would make a step shorter is modelled for one thing only: weights that are
//! fetched into the L2 cache while the ranks exchange what comes before them, or while attention
//! leaves the memory time to spare.

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
/// (vllm-project/vllm#42324). Both of its stages move rows of bf16; where the engine's second moves
/// e4m3, a sum is taken to last as long as one that moves as many bytes over each link.
const TWO_SHOT: &[(f64, f64)] = &[
    (512.0 * KIB, 15.0),
    (1.0 * MIB, 17.0),
    (1.5 * MIB, 19.0),
    (2.0 * MIB, 22.0),
    (3.0 * MIB, 29.0),
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

/// Seconds of reading: those that the first byte takes, then so many bytes in each.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Seconds.
    pub latency: f64,
    /// Bytes a second.
    pub rate: f64,
}

/// How a device fares. Where published figures have no latency, it is in their rate.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Seconds between two kernels of a graph.
    pub gap: f64,
    /// Of products that weights bound, by tokens, in ascending order; the gap before it is in the
    /// latency.
    pub weights: &'static [(f64, Reading)],
    /// Of attention over the cache, beside the gap.
    pub cache: Reading,
    /// Bytes a second element by element, and of what is fetched ahead.
    pub stream: f64,
    /// Bytes a second of weights that lie in the L2 cache already; not more than of others where it
    /// is taken that fetching them was of no use.
    pub cached: f64,
    /// Of the tensor cores' peak, in large products.
    pub products: f64,
    /// Of the BF16 peak, in the attention of a prefill.
    pub attention: f64,
}

impl Reading {
    fn seconds(self, bytes: f64) -> f64 {
        self.latency + bytes / self.rate
    }

    /// Of two products' times, the one that is as far from the first.
    fn between(self, other: Reading, share: f64) -> Reading {
        let mix = |a: f64, b: f64| a + (b - a) * share;
        Reading {
            latency: mix(self.latency, other.latency),
            rate: 1.0 / mix(1.0 / self.rate, 1.0 / other.rate),
        }
    }
}

impl Machine {
    /// The least that the sources say: 68 % of the memory in skinny FP8 products (16 to 64 by
    /// 14,336 by 4,096, NVIDIA/cutlass#1139), taken for their rate beside the latency that is
    /// expected; 27.6 µs for 34 MB and 292 µs for 524 MB in attention over small pages
    /// (Dao-AILab/flash-attention#1572); 999 Tflop/s in FP8 products with a small K
    /// (deepseek-ai/DeepGEMM#73); 35 % in FlashAttention-2 on an H100 (arXiv 2407.08608). The gap
    /// is the expected one. Fetching ahead is of no use, as some have found of prefetches into L2
    /// (NVIDIA/cutlass#3127).
    pub const LOW: Machine = Machine {
        gap: Machine::EXPECTED.gap,
        weights: &[(1.0, Reading { latency: 5.4e-6, rate: 0.68 * HBM })],
        cache: Reading { latency: 9.5e-6, rate: 1.855e12 },
        stream: 0.78 * HBM,
        cached: 0.68 * HBM,
        products: 999e12 / F8_FLOPS,
        attention: 0.35,
    };

    /// What is expected: 1.3 µs from kernel to kernel of a graph on an H100 (B. Spector and
    /// others, "Look Ma, No Bubbles!", hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles).
    ///
    /// Weights: FP8 products with scales for each tensor, of 66 and 231 MB, on an H100, from graphs
    /// of products in a row, so with the gap between them (vllm-project/vllm#49363): 25.6 and 76.1
    /// µs with one token, 25.5 and 78.7 with 16, 26.6 and 83.0 with 64, 29.1 and 91.4 with 128. A
    /// line through each two, taken for BF16 as well. A part of them may have come from the L2
    /// cache, which they exceed, but read over and over; DeepGEMM's kernels alone (its README's
    /// table of an H800, 64 tokens) of 29 MB and more are within 8 % of it, 16.7 µs for 38 MB and
    /// 44.7 for 117. The published 70.92 tokens/s of this model on such a node (arXiv 2503.18908,
    /// table 2) need at least 67 % of the memory's bandwidth over all.
    ///
    /// Attention: 7.6 µs of one launch over a short e4m3 cache (XQA, vllm-project/vllm#43232), and
    /// for each byte what pages of 16 tokens take on an H100 SXM, 86.0 µs for 202 MB and 151.8 for
    /// 404 of 64 sequences (microsoft/onnxruntime#21414: 3.06 TB/s; its own latency, of two
    /// launches, is 20 µs). Products read 132 MB of BF16 at 2.87 TB/s (vllm-project/vllm#49363),
    /// which what streams is taken to do nearly. 1,404 Tflop/s in products of 4,096 by 7,168 by
    /// 16,384 (deepseek-ai/DeepGEMM#73).
    ///
    /// Weights that were fetched ahead are read from L2 at 5.4 TB/s, what an A100's yields to
    /// asynchronous copies (smallscientist1/cuda_microbenchmark, analysis_A100.md): an H100's is
    /// not slower. Others gained 7 % of a decoding step by fetching for cuBLAS's products in this
    /// way, also during attention, on another GPU (local-inference-lab/vllm#576), and up to 1.6 ×
    /// on another accelerator (arXiv 2501.08192).
    pub const EXPECTED: Machine = Machine {
        gap: 1.3e-6,
        weights: &[
            (1.0, Reading { latency: 5.4e-6, rate: 3.27e12 }),
            (16.0, Reading { latency: 4.2e-6, rate: 3.10e12 }),
            (64.0, Reading { latency: 4.0e-6, rate: 2.93e12 }),
            (128.0, Reading { latency: 4.1e-6, rate: 2.65e12 }),
        ],
        cache: Reading { latency: 7.6e-6, rate: 3.0e12 },
        stream: 2.8e12,
        cached: 5.4e12,
        products: 1404e12 / F8_FLOPS,
        attention: 0.35,
    };

    /// The same with the products of another source, to see what hangs on the choice: 2.05 µs and
    /// 2.8 TB/s go through DeepGEMM's two products, of 41 and 119 MB with what they multiply and
    /// yield (see [`Machine::EXPECTED`]), and before each is a gap. They scale blocks of weights,
    /// not tensors, and take 64 tokens.
    pub const OTHER_PRODUCTS: Machine = Machine {
        weights: &[(1.0, Reading { latency: 3.35e-6, rate: 2.8e12 })],
        ..Machine::EXPECTED
    };

    /// The most: weights at the 3.07 TB/s that BF16 products of 462 MB read with one token
    /// (vllm-project/vllm#49363), behind the gap and the 2 µs that DeepGEMM's two have beside what
    /// their bytes take; the cache at the 3 TB/s of FlashMLA on an H800 (its
    /// docs/20250422-new-kernel-deep-dive.md), with no latency; 1,470 Tflop/s in products
    /// (deepseek-ai/DeepGEMM#73), 75 % in attention (FlashAttention-3, arXiv 2407.08608). 3.4 µs a
    /// kernel of a graph of which it runs 2.9 µs (A. Gray, "Getting Started with CUDA Graphs",
    /// developer.nvidia.com/blog/cuda-graphs, on a V100). What was fetched ahead is read beside
    /// what was not, in no time of its own.
    pub const HIGH: Machine = Machine {
        gap: 0.5e-6,
        weights: &[(1.0, Reading { latency: 2.5e-6, rate: 3.07e12 })],
        cache: Reading { latency: 0.0, rate: 3.0e12 },
        stream: 2.8e12,
        cached: f64::INFINITY,
        products: 1470e12 / F8_FLOPS,
        attention: 0.75,
    };

    /// Seconds of all launches of a step, one after another.
    pub fn seconds(&self, launches: &[Launch]) -> f64 {
        let mut spare = 0.0;
        let mut sum = 0.0;
        for launch in launches {
            let seconds = self.seconds_of(launch, spare);
            // What the memory yields meanwhile, and nobody else takes.
            match launch.kind {
                Kind::AllReduce(_) => spare = seconds * self.stream,
                Kind::Attention => {
                    let seconds = seconds - self.gap;
                    spare = (seconds * self.stream - launch.bytes as f64).max(0.0);
                }
                Kind::ProductF8 | Kind::ProductBf16 => spare = 0.0,
                Kind::Stream | Kind::AllGather => {}
            }
            sum += seconds;
        }
        sum
    }

    /// `spare` is how many bytes the memory could fetch ahead.
    fn seconds_of(&self, launch: &Launch, spare: f64) -> f64 {
        let (bytes, flops) = (launch.bytes as f64, launch.flops as f64);
        match launch.kind {
            Kind::ProductF8 => self.reading(launch, spare).max(flops / (F8_FLOPS * self.products)),
            Kind::ProductBf16 => {
                self.reading(launch, spare).max(flops / (BF16_FLOPS * self.products))
            }
            Kind::Attention => {
                let computing = flops / (BF16_FLOPS * self.attention);
                self.gap + self.cache.seconds(bytes).max(computing)
            }
            Kind::Stream => self.gap + bytes / self.stream,
            Kind::AllReduce(way) => {
                let gap = if is_launched(launch) { self.gap } else { 0.0 };
                gap + all_reduce(way, bytes, launch.given_bytes as f64)
            }
            Kind::AllGather => self.gap + nccl(bytes * N_RANKS * GATHER_SHARE),
        }
    }

    /// A product that its weights bound.
    fn reading(&self, launch: &Launch, spare: f64) -> f64 {
        let fetched = (launch.ahead_bytes as f64).min(spare);
        // A multiply-add for each weight and token.
        let weight_bytes = if launch.kind == Kind::ProductF8 { 1.0 } else { 2.0 };
        let n_weights = launch.resident_bytes as f64 / weight_bytes;
        let n_tokens = launch.flops as f64 / (2.0 * n_weights);
        let reading = self.weights_of(n_tokens);
        reading.seconds(launch.bytes as f64 - fetched) + fetched / self.cached
    }

    /// How weights are read for so many tokens: between two numbers that are known, along a line.
    fn weights_of(&self, n_tokens: f64) -> Reading {
        let after = self.weights.iter().position(|(n, _)| *n >= n_tokens);
        let last = self.weights.len() - 1;
        match after.unwrap_or(last) {
            0 => self.weights[0].1,
            idx => {
                let ((n0, first), (n1, second)) = (self.weights[idx - 1], self.weights[idx]);
                first.between(second, ((n_tokens - n0) / (n1 - n0)).min(1.0))
            }
        }
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

/// `given_bytes` are what comes back in two shots: as many as went, where they are as wide.
fn all_reduce(way: Carrier, bytes: f64, given_bytes: f64) -> f64 {
    match way {
        Carrier::OneShot => one_shot(bytes, N_RANKS),
        Carrier::TwoShot => interpolated(TWO_SHOT, (bytes + given_bytes) / 2.0),
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
mod tests;
