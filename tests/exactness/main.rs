//! The same request gives the same bits, whatever shares its batch: alone or together, whole or in
//! chunks, after preemption, with steps overlapped, with tokens guessed; on the processor also if
//! it is found in the cache. On the processor always, on devices where they are told to be
//! deterministic. No tolerance anywhere in this folder. That threads change no bit is for the
//! kernels' own tests to show: this model is mostly too small to be split.

mod answers;
mod drawn;
mod planted;
mod workloads;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use engine::{DeviceKind, EngineConfig, KvDtype, MemoryPlan, PAGE_TOKENS, Probe, TokenId};
use harness::plans::{Planner, Span};
use harness::random::Random;
use virtual_node::client::Node;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{BlockSpec, Checkpoint, MixerSpec, ModelSpec};

const FORMATS: [(SyntheticFormat, KvDtype); 4] = [
    (SyntheticFormat::F32, KvDtype::F32),
    (SyntheticFormat::Bf16, KvDtype::Bf16),
    (SyntheticFormat::ModelOptFp8, KvDtype::Fp8),
    (SyntheticFormat::Fp8Dynamic, KvDtype::Bf16),
];

/// Written anew for each test: two that run at once do not share a folder.
fn tiny(test: &str, format: SyntheticFormat) -> Arc<Checkpoint> {
    write(test, format, preset("tiny").expect("a preset"))
}

/// The same with heads that a device's kernels know, and a vocabulary that two ranks share evenly:
/// then devices draw.
fn tiny_for_devices(test: &str, format: SyntheticFormat) -> Arc<Checkpoint> {
    write(test, format, for_devices())
}

fn for_devices() -> ModelSpec {
    let mut spec = preset("tiny").expect("a preset");
    spec.vocab_size = 302;
    for block in &mut spec.blocks {
        if let Some(MixerSpec::Attention(attention)) = &mut block.mixer {
            attention.head_dim = 32;
        }
    }
    spec
}

/// Of its blocks one of each cache group, and one without attention.
fn short_for_devices() -> ModelSpec {
    let mut spec = for_devices();
    let is_windowed = |block: &BlockSpec| block.attention().map(|one| one.window.is_some());
    let kinds = [Some(false), Some(true), None];
    let one_of = |kind| spec.blocks.iter().find(|block| is_windowed(block) == kind).cloned();
    spec.blocks = kinds.into_iter().filter_map(one_of).collect();
    assert_eq!(spec.blocks.len(), kinds.len());
    spec
}

fn write(test: &str, format: SyntheticFormat, spec: ModelSpec) -> Arc<Checkpoint> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{format:?}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    let config = SyntheticConfig { spec, format, n_shards: 2, seed: 7 };
    write_synthetic(&dir, &config, &mut |_, _| {}).expect("it can be written");
    Arc::new(Checkpoint::open(&dir).expect("what we write is valid"))
}

fn config(n_ranks: usize, n_threads: usize, kv_dtype: KvDtype) -> EngineConfig {
    EngineConfig {
        device: DeviceKind::Cpu,
        n_ranks,
        n_threads: Some(n_threads),
        n_slots: 8,
        n_waiting_max: 64,
        n_tokens_per_step: 96,
        n_context_tokens: Some(128),
        kv_dtype: Some(kv_dtype),
        kv_bytes: None,
        is_deterministic: false,
        // As the program does.
        rounds_inputs: true,
        overlaps_steps: false,
        caches_prefixes: false,
        host_kv: None,
        n_candidates_max: 0,
        policy: engine::Policy::plain(),
    }
}

/// Bytes of KV with which full attention has `n_full_pages`, and windows have what the slots and
/// steps of `config` take. `roomy` is what the same model took for slots and steps of its own.
fn kv_bytes(roomy: &MemoryPlan, config: &EngineConfig, n_full_pages: usize) -> u64 {
    let pages = |n_tokens: usize| n_tokens.div_ceil(PAGE_TOKENS);
    let groups = roomy.group_pages.iter().zip(&roomy.group_windows).zip(&roomy.page_bytes);
    let bytes = groups.map(|((&n_pages, window), n_bytes)| {
        let in_slots = n_pages - pages(roomy.n_tokens_per_step);
        let windowed = in_slots / roomy.n_slots * config.n_slots + pages(config.n_tokens_per_step);
        window.map_or(n_full_pages, |_| windowed) as u64 * n_bytes
    });
    bytes.sum()
}

fn random_tokens(random: &mut Random, vocab_size: usize, n: usize) -> Vec<TokenId> {
    (0..n).map(|_| TokenId(random.below(vocab_size) as u32)).collect()
}

/// Logits of every position of every sequence, by bits.
type Bits = HashMap<(usize, usize), Vec<u32>>;

/// Runs the sequences with rows cut at random; `n_rows_max` of 1 runs them one after another.
fn run_cut(
    probe: &mut Probe,
    sequences: &[Vec<TokenId>],
    random: &mut Random,
    n_rows_max: usize,
) -> Bits {
    let mut planner = Planner::new(probe.memory());
    let mut done = vec![0; sequences.len()];
    let mut bits = Bits::new();
    loop {
        let unfinished = (0..sequences.len()).filter(|&idx| done[idx] < sequences[idx].len());
        let mut slots: Vec<usize> = unfinished.collect();
        if slots.is_empty() {
            return bits;
        }
        random.shuffle(&mut slots);
        slots.truncate(1 + random.below(n_rows_max));
        let mut n_budget = probe.memory().n_tokens_per_step;
        let mut spans = Vec::new();
        for &slot in &slots {
            let n_left = sequences[slot].len() - done[slot];
            let n_tokens = (1 + random.below(n_left)).min(n_budget);
            if n_tokens == 0 {
                break;
            }
            n_budget -= n_tokens;
            let tokens = &sequences[slot][done[slot]..done[slot] + n_tokens];
            spans.push(Span { slot, start: done[slot], tokens });
            done[slot] += n_tokens;
        }
        let probed = probe.run(planner.plan(&spans)).expect("the ranks run");
        for one in probed {
            let logits = one.logits.iter().map(|logit| logit.to_bits()).collect();
            bits.insert((spans[one.row_idx].slot, one.position), logits);
        }
    }
}

/// Sequences of any length up to 90 tokens, cut at random.
fn difference(
    checkpoint: &Arc<Checkpoint>,
    configs: [&EngineConfig; 2],
    seed: u64,
) -> Option<(&'static str, (usize, usize))> {
    let mut random = Random::new(seed);
    let vocab_size = checkpoint.spec().vocab_size;
    let sequences: Vec<Vec<TokenId>> = (0..6)
        .map(|_| {
            let n = 1 + random.below(90);
            random_tokens(&mut random, vocab_size, n)
        })
        .collect();
    difference_of(checkpoint, configs, &sequences, &mut random)
}

/// Runs sequences whole and alone on the first engine, cut at random on the second. How, and for
/// which sequence and position, logits differ first.
fn difference_of(
    checkpoint: &Arc<Checkpoint>,
    configs: [&EngineConfig; 2],
    sequences: &[Vec<TokenId>],
    random: &mut Random,
) -> Option<(&'static str, (usize, usize))> {
    let boot = |config| Probe::new(Arc::clone(checkpoint), config).expect("it boots");
    let [mut one, mut two] = configs.map(boot);
    let mut alone = Bits::new();
    for (slot, sequence) in sequences.iter().enumerate() {
        let mut planner = Planner::new(one.memory());
        let plan = planner.plan(&[Span { slot, start: 0, tokens: sequence }]);
        for probed in one.run(plan).expect("the ranks run") {
            let bits = probed.logits.iter().map(|logit| logit.to_bits()).collect();
            alone.insert((slot, probed.position), bits);
        }
    }
    for (what, n_rows_max) in [("in chunks", 1), ("batched", 6)] {
        let cut = run_cut(&mut two, sequences, random, n_rows_max);
        assert_eq!(cut.len(), alone.len());
        let mut differing: Vec<_> = alone.keys().filter(|at| cut[at] != alone[at]).collect();
        differing.sort();
        if let Some(&&at) = differing.first() {
            return Some((what, at));
        }
    }
    None
}

#[test]
fn logits_are_bit_equal_alone_batched_and_chunked() {
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("chunks", format);
        for n_ranks in [1, 2, 4, 1, 2, 4, 1, 2, 4] {
            let seed = harness::seed();
            let [one, two] = [1, 2 * n_ranks].map(|n_threads| config(n_ranks, n_threads, kv_dtype));
            let differing = difference(&checkpoint, [&one, &two], seed);
            assert_eq!(differing, None, "{format:?}, {n_ranks} ranks (SEED={seed})");
        }
    }
}

/// As `config`, on devices.
fn on_devices(n_ranks: usize, kv_dtype: KvDtype, is_deterministic: bool) -> EngineConfig {
    EngineConfig { device: DeviceKind::Cuda, is_deterministic, ..config(n_ranks, 1, kv_dtype) }
}

/// Has the virtual node's products show in their bits which algorithm was chosen.
fn split_as_a_real_node_does() {
    let node = Node::open().expect("this runs on the virtual node");
    node.set_checks("splits").expect("it knows them");
}

#[test]
fn devices_give_equal_bits_where_they_are_told_to() {
    split_as_a_real_node_does();
    for (format, kv_dtype) in &FORMATS[1..] {
        let checkpoint = tiny_for_devices("devices", *format);
        for n_ranks in [1, 2] {
            let config = on_devices(n_ranks, *kv_dtype, true);
            let differing = difference(&checkpoint, [&config, &config], 5);
            assert_eq!(differing, None, "{format:?}, {n_ranks} ranks");
        }
        // And they are told for a reason: else this test would show nothing.
        let config = on_devices(2, *kv_dtype, false);
        assert_ne!(difference(&checkpoint, [&config, &config], 5), None, "{format:?}");
    }
}

/// Sums of many tokens go two ways: eight ranks exchange more than half a MiB in two shots, and
/// less in one. Long chunks here are the former, short ones the latter.
#[test]
fn devices_give_equal_bits_whichever_way_sums_are_exchanged() {
    split_as_a_real_node_does();
    let mut spec = for_devices();
    (spec.hidden_size, spec.vocab_size) = (4096, 304);
    spec.blocks.truncate(1);
    let checkpoint = write("two-shots", SyntheticFormat::ModelOptFp8, spec);
    let config = EngineConfig { n_slots: 2, ..on_devices(8, KvDtype::Fp8, true) };
    let mut random = Random::new(3);
    let sequences = [80, 70].map(|n| random_tokens(&mut random, 304, n));
    let differing = difference_of(&checkpoint, [&config, &config], &sequences, &mut random);
    assert_eq!(differing, None);
    let counters = Node::open().expect("this runs on the virtual node").counters();
    let n_launches = |name: &str| -> u64 {
        let kernels = counters.devices.iter().flat_map(|device| &device.kernels);
        kernels.filter(|(one, _)| one.starts_with(name)).map(|(_, kernel)| kernel.n_launches).sum()
    };
    assert!(n_launches("reduce_norm_two_shot") > 0, "no sum went in two shots");
}
