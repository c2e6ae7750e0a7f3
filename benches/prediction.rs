//! The work that step times are predicted from is what a virtual node counts: launches, products
//! and exchanges of LN-Ultra at its true size, and our kernels' bytes where they are executed.

mod dry;

use std::sync::Arc;

use benches::cost::CHUNK;
use benches::cost::work::{Step, launches};
use dry::{N_RANKS, N_SLOTS, Ultra, counted};
use engine::{DeviceKind, EngineConfig, KvDtype, Probe, TokenId};
use harness::plans::{Planner, Span};
use virtual_node::client::Node;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat};
use weights::{BlockSpec, Checkpoint, ModelSpec};

/// Bytes of sectors that a kernel of ours moves at most, for each byte that the prediction has.
const EXCESS_MAX: f64 = 1.10;

/// Positions that attention reads: with fewer, what its parts tell each other counts.
const N_CONTEXT: usize = 8192;

#[test]
fn what_is_predicted_is_what_is_launched() {
    if !harness::is_dry() {
        return harness::run_dry("what_is_predicted_is_what_is_launched");
    }
    let spec = preset("ultra-253b").expect("a preset");
    let mut ultra = Ultra::boot().expect("it boots");
    assert!(ultra.n_cached_max() > 64 * 32_768, "the cache of the table's largest lines fits");
    let work = |n_sequences: usize, n_tokens_each: u64| {
        let n_sequences = n_sequences as u64;
        launches(&spec, Step { n_sequences, n_tokens_each, context: CHUNK }, N_RANKS)
    };
    for n_sequences in [1, 8, 64, N_SLOTS] {
        let counted = ultra.decode(n_sequences).expect("a step of decoding runs");
        assert_eq!(counted.len() as u64, N_RANKS);
        for (rank_idx, counted) in counted.iter().enumerate() {
            let differences = counted.differences(&work(n_sequences, 1), N_RANKS);
            assert_eq!(differences, [""; 0], "{n_sequences} sequences on rank {rank_idx}");
        }
        let others = counted[0].differences(&work(n_sequences + 1, 1), N_RANKS);
        assert!(!others.is_empty(), "the work of another batch is told from this one's");
    }
    for (rank_idx, counted) in ultra.prefill().expect("a prompt runs").iter().enumerate() {
        assert_eq!(counted.differences(&work(1, CHUNK), N_RANKS), [""; 0], "rank {rank_idx}");
    }
}

/// A block with Ultra's heads and an FFN, and an empty one, in a narrow stream.
fn small() -> ModelSpec {
    let (spec, ultra) = (preset("bench-0.6b"), preset("ultra-253b"));
    let (spec, ultra) = (spec.expect("a preset"), ultra.expect("a preset"));
    let blocks = vec![
        BlockSpec { mixer: ultra.blocks[0].mixer.clone(), ffn: spec.blocks[0].ffn.clone() },
        BlockSpec { mixer: None, ffn: None },
    ];
    ModelSpec { blocks, ..spec }
}

#[test]
fn our_kernels_move_the_bytes_that_are_predicted() {
    let (spec, format) = (small(), SyntheticFormat::ModelOptFp8);
    let config = SyntheticConfig { spec: spec.clone(), format, n_shards: 1, seed: 0 };
    let checkpoint = Arc::new(Checkpoint::without_data(&config).expect("it is complete"));
    let config = EngineConfig {
        device: DeviceKind::Cuda,
        n_ranks: N_RANKS as usize,
        n_threads: None,
        n_slots: 1,
        n_waiting_max: 1,
        n_tokens_per_step: 16,
        n_context_tokens: Some(N_CONTEXT),
        kv_dtype: Some(KvDtype::Fp8),
        kv_bytes: None,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
        is_deterministic: false,
        rounds_inputs: false,
    };
    let mut probe = Probe::new(checkpoint, &config).expect("it boots");
    let mut planner = Planner::new(probe.memory());
    let node = Node::open().expect("the virtual node is loaded");
    node.set_checks("sectors").expect("it counts sectors");
    for start in [0, N_CONTEXT - 1] {
        node.reset();
        // A token of the first rank's part of the vocabulary.
        let plan = planner.last_only(&[Span { slot: 0, start, tokens: &[TokenId(7)] }]);
        probe.step(plan).expect("a step of decoding runs");
    }
    let step = Step { n_sequences: 1, n_tokens_each: 1, context: N_CONTEXT as u64 };
    let work = launches(&spec, step, N_RANKS);
    let counted = counted(&node.counters().devices[0], true);
    let devices = node.counters().devices;
    let fetched: u64 = devices[0].kernels.values().map(|kernel| kernel.bytes_prefetched).sum();
    let predicted: u64 = work.iter().map(|launch| launch.ahead_bytes).sum();
    assert!(fetched > 0 && fetched == predicted, "{fetched} bytes ahead, predicted {predicted}");
    let excess = counted.excess(&work, N_RANKS);
    println!("{excess:.3?}");
    assert_eq!(excess.len(), 8, "two kinds of products, an exchange, five kernels of ours");
    for (family, excess) in excess {
        // How often a kernel asks whether the other ranks are there is up to the ranks; how much it
        // moves beside that is held where it is tested alone.
        let is_waiting = family == "reduce_";
        let is_as_predicted = excess >= 1.0 && (excess <= EXCESS_MAX || is_waiting);
        assert!(is_as_predicted, "{family}: {excess:.3} of what is predicted");
    }
}
