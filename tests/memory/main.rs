//! What the memory plan says is what devices give, to the byte.

mod interrupted;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use engine::device::CudaExec;
use engine::device::cuda::memory_bytes;
use engine::{DeviceKind, EngineConfig, KvDtype, MemoryPlan, Probe, RankMemory, Term, TokenId};
use harness::plans::{Planner, Span};
use harness::run_dry;
use weights::presets::preset;
use weights::sharded::write_sharded;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_sparse, write_synthetic};
use weights::{Checkpoint, MixerSpec, ModelSpec};

/// Allocations beyond this are the driver's own; smaller ones share a chunk of twice as much.
const OWN_BYTES: u64 = 32 << 20;

/// What a driver gives at least.
const UNIT_BYTES: u64 = 512;

/// What a boot reads of files beside a checkpoint's, at most.
const BESIDE_BYTES_MAX: u64 = 64 << 10;

/// What `nvidia-smi` counts on the devices that the virtual node's are like.
const H100_BYTES: u64 = 81_559 << 20;

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
        rounds_inputs: false,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
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

/// Bytes of a device that our kernels' code takes: part of what the plan has for libraries.
fn of_kernels(device: usize) -> u64 {
    let before = taken(device + 1)[device];
    let exec = CudaExec::open(device).expect("the node has it");
    let given = taken(device + 1)[device] - before;
    let n_claimed = exec.n_claimed_bytes() as u64;
    drop(exec);
    given - n_claimed
}

/// Terms of what the engine does not allocate itself.
const OF_OTHERS: [&str; 5] =
    ["paging_bytes", "graphs_bytes", "libraries_bytes", "nccl_bytes", "driver_bytes"];

/// Boots, and compares what every device has given with what was planned, and the plan with the
/// one on paper. How many of the parts of all plans were allocations of their own.
fn check(checkpoint: Checkpoint, config: &EngineConfig) -> usize {
    let checkpoint = Arc::new(checkpoint);
    let of_kernels: Vec<u64> = (0..config.n_ranks).map(of_kernels).collect();
    let before = taken(config.n_ranks);
    assert!(before.iter().all(|n_bytes| *n_bytes == before[0]), "contexts alone: {before:?}");
    let probe = Probe::new(Arc::clone(&checkpoint), config).expect("it boots");
    let after = taken(config.n_ranks);
    let plan = probe.memory();
    let mut n_own = 0;
    for (rank_idx, planned) in plan.ranks.iter().enumerate() {
        let terms = planned.terms();
        assert_eq!(terms.iter().map(|term| term.n_bytes).sum::<u64>(), planned.total_bytes());
        let ours = terms.iter().filter(|term| !OF_OTHERS.contains(&term.name));
        let ours: u64 = ours.map(|term| term.n_bytes).sum();
        let parts = [planned.weights_bytes, planned.kv_bytes, planned.workspace_bytes];
        let own = parts.into_iter().filter(|&n_bytes| n_bytes > OWN_BYTES);
        n_own += own.clone().count();
        let rounded: u64 = own.map(|n| n.next_multiple_of(UNIT_BYTES) - n).sum();
        let expected = ours + rounded + of_kernels[rank_idx];
        assert_eq!(after[rank_idx], expected, "device {rank_idx}, {planned:?}");
        let reserve = planned.reserve.expect("it is a device");
        assert!(of_kernels[rank_idx] < reserve.libraries_bytes, "{}", of_kernels[rank_idx]);
        assert!(planned.total_bytes() <= reserve.device_bytes, "device {rank_idx}, {planned:?}");
    }
    let paper = MemoryPlan::on_paper(&checkpoint, config, H100_BYTES).expect("it fits");
    assert_eq!(paper.group_pages, plan.group_pages, "the same devices, on paper");
    for (paper, booted) in paper.ranks.iter().zip(&plan.ranks) {
        let without_card = |rank: &RankMemory| {
            let terms = rank.terms().into_iter().filter(|term| term.name != "driver_bytes");
            terms.collect::<Vec<Term>>()
        };
        assert_eq!(without_card(paper), without_card(booted));
    }
    drop(probe);
    assert_eq!(taken(config.n_ranks), before, "everything is given back");
    n_own
}

fn without_data(name: &str, format: SyntheticFormat) -> Checkpoint {
    let spec = preset(name).expect("a preset");
    let config = SyntheticConfig { spec, format, n_shards: 1, seed: 0 };
    Checkpoint::without_data(&config).expect("it is complete")
}

/// LN-Ultra at its true size: as ModelOpt would write it in files whose weights are holes, else
/// without files.
fn ultra(format: SyntheticFormat) -> Checkpoint {
    if format != SyntheticFormat::ModelOptFp8 {
        return without_data("ultra-253b", format);
    }
    let spec = preset("ultra-253b").expect("a preset");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ultra-sparse");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    let config = SyntheticConfig { spec, format, n_shards: 60, seed: 1 };
    write_sparse(&dir, &config, &mut |_, _| {}).expect("there is a file system for it");
    Checkpoint::open(&dir).expect("what we write is valid")
}

#[test]
fn what_is_planned_at_full_size_is_what_devices_give() {
    if !harness::is_dry() {
        return run_dry("what_is_planned_at_full_size_is_what_devices_give");
    }
    for n_ranks in [1, 2] {
        let checkpoint = without_data("bench-0.6b", SyntheticFormat::Bf16);
        let config = EngineConfig { n_tokens_per_step: 2048, ..config(n_ranks) };
        assert!(check(checkpoint, &config) >= 2 * n_ranks, "weights and what a step writes");
    }
    for (format, kv_dtype) in [
        (SyntheticFormat::ModelOptFp8, KvDtype::Fp8),
        (SyntheticFormat::Fp8Dynamic, KvDtype::Fp8),
        (SyntheticFormat::Bf16, KvDtype::Bf16),
    ] {
        let config = EngineConfig {
            n_slots: 64,
            n_tokens_per_step: 512,
            n_context_tokens: None,
            kv_dtype: Some(kv_dtype),
            ..config(8)
        };
        assert_eq!(check(ultra(format), &config), 3 * 8, "all there is");
    }
}

/// What users of these models are promised, with nothing left over that has no name.
#[test]
fn the_published_models_fit_as_they_should() {
    for (name, format, n_ranks, kv_dtype, n_tokens_min) in [
        ("ultra-253b", SyntheticFormat::ModelOptFp8, 8, KvDtype::Fp8, 3_000_000),
        ("ultra-253b", SyntheticFormat::Fp8Dynamic, 8, KvDtype::Fp8, 3_000_000),
        ("ultra-253b", SyntheticFormat::Bf16, 8, KvDtype::Bf16, 580_000),
        ("super-49b", SyntheticFormat::ModelOptFp8, 1, KvDtype::Fp8, 300_000),
    ] {
        let config = EngineConfig {
            n_slots: 64,
            n_tokens_per_step: 512,
            n_context_tokens: None,
            kv_dtype: Some(kv_dtype),
            ..config(n_ranks)
        };
        let checkpoint = without_data(name, format);
        let plan = MemoryPlan::on_paper(&checkpoint, &config, H100_BYTES).expect("it fits");
        println!("{name} {format:?}: {} tokens", plan.n_kv_tokens());
        for term in plan.ranks[0].terms() {
            println!("  {:20} {:>15}  {}", term.name, term.n_bytes, term.source);
        }
        assert!(plan.n_kv_tokens() >= n_tokens_min, "{name}: {} tokens", plan.n_kv_tokens());
        for rank in &plan.ranks {
            // The rank with least room leaves no page of it unused.
            let n_unused = H100_BYTES - rank.total_bytes();
            let page_bytes = rank.kv_bytes / plan.group_pages[0] as u64;
            assert!(n_unused < page_bytes + (2 << 20), "{n_unused} bytes have no name");
        }
    }
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

/// Bytes that this process had of files, as the kernel counts its reads: none of ours counts here.
fn n_bytes_read_of_files() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("the kernel tells");
    let n_bytes = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
    n_bytes.expect("it is a number")
}

/// Whether ranks cut a tensor by rows or columns, share its heads, or take it twice because the
/// embedding is the head's, too.
#[test]
fn no_byte_of_a_file_is_read_twice() {
    if !harness::is_dry() {
        return run_dry("no_byte_of_a_file_is_read_twice");
    }
    let mut spec = preset("tiny").expect("a preset");
    for block in &mut spec.blocks {
        if let Some(MixerSpec::Attention(attention)) = &mut block.mixer {
            attention.head_dim = 32;
        }
    }
    for (format, ties_embeddings) in [
        (SyntheticFormat::ModelOptFp8, false),
        (SyntheticFormat::Fp8Dynamic, true),
        (SyntheticFormat::F16, true),
    ] {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("once-{format:?}"));
        if dir.exists() {
            std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
        }
        let spec = ModelSpec { ties_embeddings, ..spec.clone() };
        let synthetic = SyntheticConfig { spec, format, n_shards: 3, seed: 1 };
        write_synthetic(&dir, &synthetic, &mut |_, _| {}).expect("it can be written");
        for n_ranks in [1, 2, 8] {
            let checkpoint = Arc::new(Checkpoint::open(&dir).expect("what we write is valid"));
            let before = n_bytes_read_of_files();
            let probe = Probe::new(Arc::clone(&checkpoint), &config(n_ranks)).expect("it boots");
            let n_read_of_files = n_bytes_read_of_files() - before;
            let n_bytes: u64 = checkpoint.tensors().map(|tensor| tensor.n_bytes).sum();
            let name = format!("{format:?}, {n_ranks} ranks");
            assert_eq!(checkpoint.n_bytes_read(), n_bytes, "{name}");
            // Beside it the machine is asked about itself.
            let most = n_bytes + BESIDE_BYTES_MAX;
            assert!(n_bytes > 2 * BESIDE_BYTES_MAX && n_read_of_files <= most, "{name}: {before}");
            // A single byte that is read twice would have been noticed.
            let embedding = checkpoint.load_rank(0, n_ranks).expect("it was loaded").embedding;
            embedding.bytes.read_at(embedding.offset, &mut [0]).expect("it is there");
            assert_eq!(checkpoint.n_bytes_read(), n_bytes + 1, "{name}");
            drop(probe);
        }
    }
}

/// Bytes that a rank may take of the host's memory while it loads.
const HOST_BYTES_MAX: u64 = 256 << 20;

/// A line of the process's status that counts memory, in bytes.
fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it has the line");
    let kib = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    kib.expect("it is a number") * 1024
}

/// Neither staging nor mapped pages: a checkpoint of more than twice as much goes by.
#[test]
fn what_is_loaded_does_not_stay_in_the_hosts_memory() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("passing");
    if !harness::is_dry() {
        if dir.exists() {
            std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
        }
        let (spec, format) =
            (preset("bench-0.6b").expect("a preset"), SyntheticFormat::ModelOptFp8);
        let synthetic = SyntheticConfig { spec, format, n_shards: 2, seed: 1 };
        write_synthetic(&dir, &synthetic, &mut |_, _| {}).expect("it can be written");
        run_dry("what_is_loaded_does_not_stay_in_the_hosts_memory");
        return std::fs::remove_dir_all(&dir).expect("it is ours");
    }
    for n_ranks in [1, 2] {
        let checkpoint = Arc::new(Checkpoint::open(&dir).expect("what we write is valid"));
        let before = status_bytes("VmRSS:");
        let probe = Probe::new(Arc::clone(&checkpoint), &config(n_ranks)).expect("it boots");
        let peak = status_bytes("VmHWM:").saturating_sub(before);
        let most = n_ranks as u64 * HOST_BYTES_MAX;
        assert!(checkpoint.n_bytes_read() > most, "{}", checkpoint.n_bytes_read());
        assert!(peak <= most, "{n_ranks} ranks: {peak}");
        drop(probe);
    }
}

#[test]
fn a_checkpoint_cut_for_its_ranks_computes_the_same_bits() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cut");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    let (spec, format) = (preset("tiny").expect("a preset"), SyntheticFormat::Fp8Dynamic);
    let synthetic = SyntheticConfig { spec, format, n_shards: 2, seed: 1 };
    write_synthetic(&dir, &synthetic, &mut |_, _| {}).expect("it can be written");
    let original = Checkpoint::open(&dir).expect("what we write is valid");
    for n_ranks in [1, 2, 8] {
        let out = dir.join(format!("for-{n_ranks}"));
        let go_on = &mut |_, _| ControlFlow::Continue(());
        write_sharded(&original, &out, n_ranks, go_on).expect("it is cut");
        let cut = Checkpoint::open(&out).expect("what we cut is valid");
        let bits = |checkpoint: Checkpoint| {
            let device = DeviceKind::Cpu;
            let config = EngineConfig { device, n_threads: Some(1), ..config(n_ranks) };
            let mut probe = Probe::new(Arc::new(checkpoint), &config).expect("it boots");
            let tokens: Vec<TokenId> = (0..40).map(|idx| TokenId(idx * 7 % 301)).collect();
            let span = Span { slot: 0, start: 0, tokens: &tokens };
            let plan = Planner::new(probe.memory()).last_only(&[span]);
            let probed = probe.run(plan).expect("a step runs");
            probed[0].logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>()
        };
        assert!(bits(original.clone()) == bits(cut), "{n_ranks} ranks");
    }
}

#[test]
fn a_step_on_weights_that_are_gone_is_an_error_that_names_the_file() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("shrinking");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    let (spec, format) = (preset("tiny").expect("a preset"), SyntheticFormat::F32);
    let synthetic = SyntheticConfig { spec, format, n_shards: 1, seed: 1 };
    write_synthetic(&dir, &synthetic, &mut |_, _| {}).expect("it can be written");
    let checkpoint = Arc::new(Checkpoint::open(&dir).expect("what we write is valid"));
    let kv_dtype = Some(KvDtype::F32);
    let config =
        EngineConfig { device: DeviceKind::Cpu, kv_dtype, n_threads: Some(1), ..config(2) };
    let mut probe = Probe::new(checkpoint, &config).expect("it boots");
    let mut planner = Planner::new(probe.memory());
    let mut step = |probe: &mut Probe, start| {
        let span = Span { slot: 0, start, tokens: &[TokenId(7)] };
        probe.run(planner.last_only(&[span]))
    };
    step(&mut probe, 0).expect("a step runs");
    let shard = std::fs::OpenOptions::new().write(true).open(dir.join("model.safetensors"));
    shard.and_then(|file| file.set_len(4096)).expect("it can be cut off");
    let error = step(&mut probe, 1).expect_err("weights are gone").to_string();
    assert!(error.contains("model.safetensors shrank"), "{error}");
}
