//! What one rank launches in a step, with the fewest bytes and flops, from the model's shapes.
//!
//! The list follows the engine's fusions: the all-reduce of a sub-block's partial result belongs to
//! the `reduce_norm` that begins the next; q, k, v are one product, gate and up another; attention
//! of tokens that decode rotates them and writes the cache. Which way a sum takes, and what is
//! fetched ahead, is asked of the engine. Weights and KV are FP8 or BF16, embedding and head BF16,
//! partial results BF16, the residual f32. Scales of single tokens are not in it. The benches hold
//! the list against what was really launched.

use crate::kernels::fetched_ahead;
use crate::peers::{Carrier, carrier};
use weights::{AttentionSpec, FfnSpec, MixerSpec, ModelSpec};

/// Bytes of an element.
const F8: u64 = 1;
const BF16: u64 = 2;
const F32: u64 = 4;
const F64: u64 = 8;

/// Sequences that take part in a step in the same way.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// How many.
    pub n_sequences: u64,
    /// New tokens of each: 1 to decode.
    pub n_tokens_each: u64,
    /// Tokens that the last new one attends to, itself among them.
    pub context: u64,
}

/// How weights and cache are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Weights of the blocks, and what they are multiplied with, are e4m3, else bf16.
    pub has_fp8_weights: bool,
    /// Keys and values are e4m3, else bf16.
    pub has_fp8_kv: bool,
}

/// What limits a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A product in FP8.
    ProductF8,
    /// A product in BF16.
    ProductBf16,
    /// Attention.
    Attention,
    /// Element by element.
    Stream,
    /// The ranks sum a message of that many bytes.
    AllReduce(Carrier),
    /// The ranks give each other messages of that many bytes.
    AllGather,
}

/// One launch, or several of the same.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// The kernel's family, or the projection.
    pub name: &'static str,
    /// What limits it.
    pub kind: Kind,
    /// Of weights and cache: what the roofline counts.
    pub resident_bytes: u64,
    /// Of a product's weights: what is fetched into the cache during the exchange, or the
    /// attention, before it.
    pub ahead_bytes: u64,
    /// All bytes, with activations; of an exchange, this rank's message.
    pub bytes: u64,
    /// Of a sum in two shots: the rows that owners give every rank.
    pub given_bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

impl Step {
    /// New tokens of all sequences.
    pub fn n_tokens(&self) -> u64 {
        self.n_sequences * self.n_tokens_each
    }

    /// Pairs of a new token and one that it attends to.
    fn n_pairs(&self) -> u64 {
        let before = self.context - self.n_tokens_each;
        let n = self.n_tokens_each;
        self.n_sequences * (n * before + n * (n + 1) / 2)
    }
}

impl Storage {
    /// As the models are published for H100s.
    pub const FP8: Storage = Storage { has_fp8_weights: true, has_fp8_kv: true };
}

/// All launches of one of `n_ranks` ranks, in their order, where all is FP8.
pub fn launches(spec: &ModelSpec, step: Step, n_ranks: u64) -> Vec<Launch> {
    launches_of(spec, step, n_ranks, Storage::FP8)
}

/// The same where weights and cache are stored as `storage` says.
pub fn launches_of(spec: &ModelSpec, step: Step, n_ranks: u64, storage: Storage) -> Vec<Launch> {
    let element = |is_fp8| if is_fp8 { F8 } else { BF16 };
    let rank = Rank {
        hidden: spec.hidden_size as u64,
        n_ranks,
        step,
        weight: element(storage.has_fp8_weights),
        kv: element(storage.has_fp8_kv),
        fetches: false,
        launches: Vec::new(),
    };
    rank.run(spec)
}

struct Rank {
    hidden: u64,
    n_ranks: u64,
    step: Step,
    /// Bytes of a weight, and of what it is multiplied with.
    weight: u64,
    /// Bytes of an element of the cache.
    kv: u64,
    /// Whether a kernel has just run that fetches what the next product reads.
    fetches: bool,
    launches: Vec<Launch>,
}

impl Rank {
    fn run(mut self, spec: &ModelSpec) -> Vec<Launch> {
        let row_bytes = self.hidden * BF16;
        // Read where the token is of this rank's part of the vocabulary, written everywhere.
        self.stream("embed", self.step.n_tokens() * 2 * row_bytes);
        for block in &spec.blocks {
            match &block.mixer {
                Some(MixerSpec::Attention(attention)) => self.attention(attention),
                Some(MixerSpec::Linear) => self.linear(),
                None => {}
            }
            match &block.ffn {
                Some(FfnSpec::SwiGlu { width }) => self.swiglu(*width as u64),
                Some(FfnSpec::Linear) => self.linear(),
                None => {}
            }
        }
        self.head(spec.vocab_size as u64);
        self.launches
    }

    fn attention(&mut self, attention: &AttentionSpec) {
        self.reduce_norm(self.step.n_tokens(), self.weight);
        let head_dim = attention.head_dim as u64;
        let n_q_heads = attention.n_q_heads as u64 / self.n_ranks;
        let n_kv_heads = (attention.n_kv_heads as u64).div_ceil(self.n_ranks);
        let (q, kv) = (n_q_heads * head_dim, 2 * n_kv_heads * head_dim);
        self.product("qkv", q + kv, self.hidden);
        let tokens = self.step.n_tokens();
        let frequencies = head_dim / 2 * F64;
        // What turning reads and writes, beside the queries that it leaves.
        let turning = (q + kv) * BF16 + kv * self.kv + frequencies;
        let decodes = self.step.n_tokens_each == 1;
        if !decodes {
            self.stream("rope_kv", tokens * (turning + q * BF16));
        }
        // A decoding sequence reads its cache once; the tiles of a prefill share theirs.
        let cache = self.step.n_sequences * self.step.context * kv * self.kv;
        self.launches.push(Launch {
            name: "attention",
            kind: Kind::Attention,
            resident_bytes: cache,
            ahead_bytes: 0,
            given_bytes: 0,
            bytes: cache + tokens * (if decodes { turning } else { q * BF16 } + q * self.weight),
            flops: 4 * self.step.n_pairs() * q,
        });
        self.fetches = decodes;
        self.product("o", self.hidden, q);
    }

    fn swiglu(&mut self, width: u64) {
        self.reduce_norm(self.step.n_tokens(), self.weight);
        let width = width / self.n_ranks;
        self.product("gate_up", 2 * width, self.hidden);
        self.stream("swiglu", self.step.n_tokens() * width * (2 * BF16 + self.weight));
        self.product("down", self.hidden, width);
    }

    fn linear(&mut self) {
        self.reduce_norm(self.step.n_tokens(), self.weight);
        self.product("linear", self.hidden, self.hidden / self.n_ranks);
    }

    /// The last norm, the head and the choice of a token: only the last token of a sequence. Every
    /// rank gets all logits and draws alike.
    fn head(&mut self, vocab: u64) {
        let rows = self.step.n_sequences;
        self.reduce_norm(rows, BF16);
        let weights = vocab / self.n_ranks * self.hidden * BF16;
        let logits = rows * vocab / self.n_ranks * F32;
        let ahead_bytes = self.ahead(weights);
        self.launches.push(Launch {
            name: "head",
            kind: Kind::ProductBf16,
            resident_bytes: weights,
            ahead_bytes,
            given_bytes: 0,
            bytes: weights + rows * self.hidden * BF16 + logits,
            flops: 2 * rows * vocab / self.n_ranks * self.hidden,
        });
        if self.n_ranks > 1 {
            self.exchange("all_gather", Kind::AllGather, logits, 0);
        }
        self.stream("sample", rows * vocab * F32);
    }

    /// Meets the other ranks over all tokens; of `rows` adds to the residual, norms and rounds. In
    /// two shots a rank does so for every eighth row alone, of eight ranks, and gets the others.
    fn reduce_norm(&mut self, rows: u64, element: u64) {
        let mut n_sharing = 1;
        if self.n_ranks > 1 {
            let bytes = self.step.n_tokens() * self.hidden * BF16;
            let way = carrier(bytes as usize, self.n_ranks as usize);
            let given_bytes =
                if way == Carrier::TwoShot { rows * self.hidden * element } else { 0 };
            self.exchange("all_reduce", Kind::AllReduce(way), bytes, given_bytes);
            self.fetches = way != Carrier::Nccl;
            if way == Carrier::TwoShot {
                n_sharing = self.n_ranks;
            }
        }
        // The first begins the stream, so that there is none to read.
        let is_first = !self.launches.iter().any(|launch| launch.name == "reduce_norm");
        let residual = if is_first { F32 } else { 2 * F32 };
        let own_rows = rows.div_ceil(n_sharing);
        let row_bytes = own_rows * (BF16 + residual) + rows * element;
        self.stream("reduce_norm", self.hidden * (row_bytes + F32));
    }

    fn exchange(&mut self, name: &'static str, kind: Kind, bytes: u64, given_bytes: u64) {
        let (resident_bytes, ahead_bytes, flops) = (0, 0, 0);
        let launch = Launch { name, kind, resident_bytes, ahead_bytes, bytes, given_bytes, flops };
        self.launches.push(launch);
    }

    /// Of a product's weights, if it is the first after an exchange: what was fetched meanwhile.
    fn ahead(&mut self, weights: u64) -> u64 {
        match std::mem::take(&mut self.fetches) {
            true => fetched_ahead(weights as usize, self.step.n_tokens() as usize) as u64,
            false => 0,
        }
    }

    fn product(&mut self, name: &'static str, n_outputs: u64, n_inputs: u64) {
        let tokens = self.step.n_tokens();
        let weights = n_outputs * n_inputs * self.weight;
        let ahead_bytes = self.ahead(weights);
        self.launches.push(Launch {
            name,
            kind: if self.weight == F8 { Kind::ProductF8 } else { Kind::ProductBf16 },
            resident_bytes: weights,
            ahead_bytes,
            given_bytes: 0,
            bytes: weights + tokens * (n_inputs * self.weight + n_outputs * BF16),
            flops: 2 * tokens * n_outputs * n_inputs,
        });
    }

    fn stream(&mut self, name: &'static str, bytes: u64) {
        let (kind, resident_bytes, ahead_bytes, given_bytes) = (Kind::Stream, 0, 0, 0);
        let flops = 0;
        let launch = Launch { name, kind, resident_bytes, ahead_bytes, bytes, given_bytes, flops };
        self.launches.push(launch);
    }
}

#[cfg(test)]
mod tests {
    use weights::presets::preset;

    use super::*;

    fn ultra(n_sequences: u64, n_tokens_each: u64, context: u64) -> Vec<Launch> {
        let spec = preset("ultra-253b").expect("a preset");
        launches(&spec, Step { n_sequences, n_tokens_each, context }, 8)
    }

    fn sum(launches: &[Launch], kind: Kind, value: impl Fn(&Launch) -> u64) -> u64 {
        launches.iter().filter(|launch| launch.kind == kind).map(value).sum()
    }

    #[test]
    fn weights_and_cache_are_those_of_the_published_config() {
        let step = ultra(1, 1, 1000);
        // 249.20 billion parameters in products of the blocks, an eighth of them on each rank.
        let blocks = sum(&step, Kind::ProductF8, |launch| launch.resident_bytes);
        assert_eq!((8 * blocks) / 10_000_000, 24_919);
        let head = sum(&step, Kind::ProductBf16, |launch| launch.resident_bytes);
        assert_eq!(head, 128_256 / 8 * 16_384 * 2);
        // 16,384 bytes a token and rank.
        assert_eq!(sum(&step, Kind::Attention, |launch| launch.resident_bytes), 16_384_000);
    }

    #[test]
    fn wider_elements_move_more_bytes() {
        let spec = preset("ultra-253b").expect("a preset");
        let step = Step { n_sequences: 1, n_tokens_each: 1, context: 1000 };
        let storage = Storage { has_fp8_weights: false, has_fp8_kv: false };
        let (narrow, wide) = (ultra(1, 1, 1000), launches_of(&spec, step, 8, storage));
        assert_eq!(narrow.len(), wide.len());
        assert_eq!(sum(&wide, Kind::ProductF8, |launch| launch.resident_bytes), 0);
        for (narrow, wide) in narrow.iter().zip(&wide) {
            let factor = if narrow.name == "head" { 1 } else { 2 };
            assert_eq!(wide.resident_bytes, factor * narrow.resident_bytes, "{}", wide.name);
            assert_eq!(wide.flops, narrow.flops, "{}", wide.name);
        }
    }

    #[test]
    fn absent_sub_blocks_launch_nothing() {
        let step = ultra(4, 1, 100);
        let count = |name| step.iter().filter(|launch| launch.name == name).count();
        assert_eq!((count("attention"), count("swiglu")), (64, 81));
        // Attention does it where each sequence has one token.
        assert_eq!(count("rope_kv"), 0);
        assert_eq!(ultra(1, 2, 100).iter().filter(|launch| launch.name == "rope_kv").count(), 64);
        // 145 sub-blocks, and the embedding, whose vocabulary is shared out.
        assert_eq!((count("all_reduce"), count("all_gather")), (146, 1));
        let message = step.iter().find(|launch| launch.name == "all_reduce");
        assert_eq!(message.expect("there is one").bytes, 4 * 16_384 * 2);
        // A rank's eighth of the logits is given away, all of them are drawn from.
        let bytes = |name| step.iter().find(|launch| launch.name == name).map(|one| one.bytes);
        assert_eq!(bytes("all_gather"), Some(4 * 16_032 * 4));
        assert_eq!(bytes("sample"), Some(4 * 128_256 * 4));
        assert!(step.len() <= 10 * 81, "{} launches", step.len());
    }

    #[test]
    fn sums_go_the_engines_way() {
        let ways = |n_sequences| -> Vec<Carrier> {
            let way = |launch: Launch| match launch.kind {
                Kind::AllReduce(way) => Some(way),
                _ => None,
            };
            let mut ways: Vec<_> = ultra(n_sequences, 1, 100).into_iter().filter_map(way).collect();
            ways.dedup();
            ways
        };
        // 16,384 columns of two bytes: 512 KiB are 16 tokens.
        for n_sequences in [1, 8, 16, 17, 32, 64, 256] {
            let bytes = n_sequences as usize * 16_384 * 2;
            assert_eq!(ways(n_sequences), [carrier(bytes, 8)], "{n_sequences} sequences");
        }
    }

    #[test]
    fn in_two_shots_the_ranks_share_the_residual_stream() {
        let bytes = |n_sequences| {
            let norms = ultra(n_sequences, 1, 100).into_iter();
            norms.filter(|one| one.name == "reduce_norm").nth(1).expect("there are 146").bytes
        };
        assert_eq!(bytes(16), 16_384 * (16 * (2 + 8 + 1) + 4), "one shot: all rows");
        assert_eq!(bytes(32), 16_384 * (4 * (2 + 8) + 32 + 4), "an eighth of them");
        assert_eq!(bytes(33), 16_384 * (5 * (2 + 8) + 33 + 4), "the rank with the most");
        assert_eq!(bytes(512), 16_384 * (512 * (2 + 8 + 1) + 4), "NCCL: all rows");
    }

    #[test]
    fn what_follows_a_sum_or_attention_is_fetched_during_it() {
        let fetched = |n_sequences| -> Vec<(&str, u64)> {
            let step = ultra(n_sequences, 1, 100).into_iter();
            let fetched = step.filter(|launch| launch.ahead_bytes > 0);
            fetched.map(|launch| (launch.name, launch.ahead_bytes)).collect()
        };
        let few = fetched(1);
        let count = |name| few.iter().filter(|(other, _)| *other == name).count();
        // After a sum, and after attention.
        assert_eq!((count("qkv"), count("gate_up"), count("head")), (64, 81, 1));
        assert_eq!(count("o"), 64);
        // 672 columns of each of gate and up are 22 MB: the least.
        assert!(few.iter().all(|(_, bytes)| *bytes == 20 << 20), "{few:?}");
        assert_eq!(few.len(), 146 + 64);
        // With many tokens weights are not what a product waits for.
        assert_eq!(fetched(257), []);
        // Nor is there time in the attention of a prompt.
        let prompt = ultra(1, 8, 8);
        assert!(prompt.iter().all(|launch| launch.name != "o" || launch.ahead_bytes == 0));
    }

    #[test]
    fn prefill_attends_to_what_is_before() {
        let pairs = |n_tokens_each, context| {
            sum(&ultra(1, n_tokens_each, context), Kind::Attention, |launch| launch.flops)
                / (64 * 4 * 16 * 128)
        };
        assert_eq!(pairs(1, 50), 50);
        assert_eq!(pairs(4, 4), 1 + 2 + 3 + 4);
        assert_eq!(pairs(2, 10), 9 + 10);
    }
}
