//! LN-Ultra at its true size on eight virtual GPUs: nothing is computed, but everything is planned,
//! claimed, recorded and launched, and the node checks every launch.

use std::sync::Arc;
use std::time::Instant;

use engine::kernels::N_BYTES_AHEAD_MAX;
use engine::{DeviceKind, EngineConfig, KvDtype, Probe, TokenId};
use harness::plans::{Planner, Span};
use harness::run_dry;
use virtual_node::client::Node;
use virtual_node::report::CopyKind;
use weights::Checkpoint;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat};

fn ultra(format: SyntheticFormat) -> Arc<Checkpoint> {
    let spec = preset("ultra-253b").expect("a preset");
    let config = SyntheticConfig { spec, format, n_shards: 1, seed: 0 };
    Arc::new(Checkpoint::without_data(&config).expect("it is complete"))
}

fn config(n_ranks: usize, kv_dtype: KvDtype) -> EngineConfig {
    EngineConfig {
        device: DeviceKind::Cuda,
        n_ranks,
        n_threads: None,
        n_slots: 64,
        n_waiting_max: 1,
        n_tokens_per_step: 2048,
        n_context_tokens: Some(32_768),
        kv_dtype: Some(kv_dtype),
        kv_bytes: None,
        is_deterministic: false,
        rounds_inputs: false,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
    }
}

#[test]
fn ultra_boots_and_steps_at_its_true_size() {
    if !harness::is_dry() {
        return run_dry("ultra_boots_and_steps_at_its_true_size");
    }
    for format in [SyntheticFormat::ModelOptFp8, SyntheticFormat::Fp8Dynamic] {
        let began = Instant::now();
        let config = config(8, KvDtype::Fp8);
        let mut probe = Probe::new(ultra(format), &config).expect("it boots");
        let memory = probe.memory();
        println!("{format:?}: {} KV tokens, {:?}", memory.n_kv_tokens(), memory.ranks[0]);
        assert!(memory.n_kv_tokens() > 64 * 32_768 / 2, "most of what is asked for fits");
        let mut planner = Planner::new(probe.memory());
        let prompt: Vec<TokenId> = (0..100).map(TokenId).collect();
        let spans: Vec<Span<'_>> =
            (0..8).map(|slot| Span { slot, start: 0, tokens: &prompt }).collect();
        probe.run(planner.last_only(&spans)).expect("a prompt's step runs");
        for start in 100..104 {
            let spans: Vec<Span<'_>> =
                (0..8).map(|slot| Span { slot, start, tokens: &prompt[..1] }).collect();
            probe.run(planner.last_only(&spans)).expect("a step of decoding runs");
        }
        println!("{format:?}: {:?}", began.elapsed());
    }
}

#[test]
fn a_decode_step_is_one_graph_and_absent_sub_blocks_launch_nothing() {
    if !harness::is_dry() {
        return run_dry("a_decode_step_is_one_graph_and_absent_sub_blocks_launch_nothing");
    }
    let mut probe = Probe::new(ultra(SyntheticFormat::ModelOptFp8), &config(8, KvDtype::Fp8))
        .expect("it boots");
    let mut planner = Planner::new(probe.memory());
    let node = Node::open().expect("the virtual node is loaded");
    for device in &node.counters().devices {
        assert_eq!(device.set_aside_bytes, N_BYTES_AHEAD_MAX as u64, "for what is fetched ahead");
    }
    for start in 0..3 {
        node.reset();
        let spans: Vec<Span<'_>> =
            (0..8).map(|slot| Span { slot, start, tokens: &[TokenId(7)] }).collect();
        probe.run(planner.last_only(&spans)).expect("a step of decoding runs");
    }
    // Of 162 blocks 64 attend, 81 have an FFN (17 of them nothing else), and 81 are empty.
    let expected: [(&str, u64); 7] = [
        ("embed_", 1),
        // A sum over ranks begins every sub-block, and the last norm: the first is the embedding's.
        ("reduce_norm_", 64 + 81 + 1),
        ("cublasLt e4m3", 2 * 64 + 2 * 81),
        // They rotate, and write the cache, as well.
        ("attention_decode_", 64),
        ("swiglu_", 81),
        ("cublasLt bf16", 1),
        ("nccl all_gather", 1),
    ];
    let counters = node.counters();
    assert_eq!(counters.devices.len(), 8);
    for (rank_idx, device) in counters.devices.iter().enumerate() {
        for (begin, n_expected) in expected {
            let of_family = device.kernels.iter().filter(|(name, _)| name.starts_with(begin));
            let n_launches: u64 = of_family.map(|(_, kernel)| kernel.n_launches).sum();
            assert_eq!(n_launches, n_expected, "{begin} on rank {rank_idx}");
        }
        let n_launches = device.all_kernels().n_launches;
        let n_known: u64 = expected.iter().map(|(_, n)| n).sum();
        assert_eq!(n_launches, n_known + 1, "drawing tokens is all that is left");
        assert!(n_launches <= 10 * 64 + 5 * 17 + 8, "ten launches a block with both sub-blocks");
        assert_eq!(device.graphs.n_launches, 1, "a step of decoding is one graph");
        // A rank with peers asks for its tokens until they are there; inputs wait for nothing.
        assert_eq!(device.n_host_syncs, 0, "the host blocks nowhere");
        assert_eq!(device.copies[&CopyKind::HostToDevice].n, 1, "inputs go in one copy");
        if rank_idx == 0 {
            let read: u64 = device.all_kernels().bytes_read;
            println!("{n_launches} launches a rank; products read {:.2} GB", read as f64 / 1e9);
        }
    }
}

#[test]
fn sums_of_many_tokens_take_two_shots_and_those_of_a_prompt_the_library() {
    if !harness::is_dry() {
        return run_dry("sums_of_many_tokens_take_two_shots_and_those_of_a_prompt_the_library");
    }
    let mut probe = Probe::new(ultra(SyntheticFormat::ModelOptFp8), &config(8, KvDtype::Fp8))
        .expect("it boots");
    let mut planner = Planner::new(probe.memory());
    let node = Node::open().expect("the virtual node is loaded");
    let prompt: Vec<TokenId> = (0..300).map(TokenId).collect();
    // Rows, tokens of each, and how their sums are carried: by the kernel's begin and NCCL's sums.
    let steps = [
        (64, 1, ["reduce_norm_two_shot_", "reduce_norm_e4m3"], 0),
        (16, 1, ["reduce_norm_e4m3", "reduce_norm_two_shot_"], 0),
        (1, 256, ["reduce_norm_two_shot_", "reduce_norm_e4m3"], 0),
        (1, 257, ["reduce_norm_e4m3", "reduce_norm_two_shot_"], 146),
    ];
    let mut n_done = [0; 64];
    for (n_rows, n_tokens, [wanted, other], n_of_nccl) in steps {
        node.reset();
        let spans: Vec<Span<'_>> = (0..n_rows)
            .map(|slot| Span { slot, start: n_done[slot], tokens: &prompt[..n_tokens] })
            .collect();
        probe.run(planner.last_only(&spans)).expect("a step runs");
        n_done[..n_rows].iter_mut().for_each(|n| *n += n_tokens);
        for device in &node.counters().devices {
            let n_launches = |begin: &str| -> u64 {
                let of_family = device.kernels.iter().filter(|(name, _)| name.starts_with(begin));
                of_family.map(|(_, kernel)| kernel.n_launches).sum()
            };
            let what = format!("{n_rows} rows of {n_tokens}");
            // The last norm's output is bf16: the head's.
            assert_eq!(n_launches(wanted), 145 + u64::from(wanted.contains("two_shot")), "{what}");
            assert_eq!(n_launches(other), 0, "{what}");
            assert_eq!(n_launches("reduce_norm_"), 146, "{what}");
            assert_eq!(n_launches("nccl all_reduce"), n_of_nccl, "{what}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_numbers_and_a_remedy() {
    if !harness::is_dry() {
        return run_dry("what_does_not_fit_is_refused_with_numbers_and_a_remedy");
    }
    let refused = |format, config: EngineConfig| {
        Probe::new(ultra(format), &config).map(drop).expect_err("it does not fit").to_string()
    };
    let error = refused(SyntheticFormat::Bf16, config(4, KvDtype::Fp8));
    assert!(error.contains("CUDA device 0 has") && error.contains("--tp"), "{error}");
    let error = refused(SyntheticFormat::ModelOptFp8, config(8, KvDtype::F32));
    assert!(error.contains("--kv-dtype fp8"), "{error}");
    let long = EngineConfig { n_tokens_per_step: 65_536, ..config(8, KvDtype::Fp8) };
    let error = refused(SyntheticFormat::ModelOptFp8, long);
    assert!(error.contains("--max-tokens-per-step") && error.contains("65535"), "{error}");
    let greedy = EngineConfig { kv_bytes: Some(700 << 30), ..config(8, KvDtype::Fp8) };
    let error = refused(SyntheticFormat::ModelOptFp8, greedy);
    assert!(error.contains("lower --kv-memory"), "{error}");
}
