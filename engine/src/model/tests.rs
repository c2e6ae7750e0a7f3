//! A step allocates nothing: all its memory was taken at boot.

use std::cell::Cell;

use scheduler::{Emit, GroupIdx, PageId, PageUpdate, RequestId, Row, SlotIdx, StepId, TokenId};
use weights::Checkpoint;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};

use super::*;
use crate::config::{DeviceKind, EngineConfig};

/// Positions `start .. start + n_tokens` of two sequences, whose pages are set at position 0.
fn plan(start: usize, n_tokens: usize, n_groups: usize) -> StepPlan {
    let mut plan = StepPlan {
        step: StepId(0),
        admitted: Vec::new(),
        pages: Vec::new(),
        moves: Vec::new(),
        rows: Vec::new(),
        tokens: Vec::new(),
    };
    for slot in 0..2 {
        if start == 0 {
            plan.pages.extend((0..n_groups as u16).map(|group| PageUpdate {
                slot: SlotIdx(slot),
                group: GroupIdx(group),
                page_idx: 0,
                page: PageId(slot),
            }));
        }
        plan.rows.push(Row {
            request: RequestId(u64::from(slot)),
            slot: SlotIdx(slot),
            start,
            n_tokens,
            token_idx: plan.tokens.len(),
            n_candidates: 0,
            answer_idx: plan.rows.len(),
            follows: None,
            emit: Emit::Sample,
        });
        plan.tokens.extend((0..n_tokens as u32).map(TokenId));
    }
    plan
}

#[test]
fn a_step_allocates_nothing() {
    let config = EngineConfig {
        device: DeviceKind::Cpu,
        n_ranks: 1,
        // This thread alone: the count is this thread's.
        n_threads: Some(1),
        n_slots: 2,
        n_waiting_max: 1,
        n_tokens_per_step: 24,
        n_context_tokens: Some(16),
        kv_dtype: None,
        kv_bytes: None,
        is_deterministic: false,
        rounds_inputs: false,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: crate::config::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
    };
    for format in [SyntheticFormat::Bf16, SyntheticFormat::ModelOptFp8, SyntheticFormat::Fp8Dynamic]
    {
        let dir = std::env::temp_dir().join(format!("lnserve-{}-{format:?}", std::process::id()));
        let spec = preset("tiny").expect("a preset");
        let synthetic = SyntheticConfig { spec, format, n_shards: 1, seed: 3 };
        write_synthetic(&dir, &synthetic, &mut |_, _| {}).expect("it can be written");
        let checkpoint = Checkpoint::open(&dir).expect("what we write is valid");
        std::fs::remove_dir_all(&dir).expect("mapped files outlive their names");

        let memory = MemoryPlan::new(&checkpoint, &config).expect("it fits");
        let weights = checkpoint.load_rank(0, 1).expect("it loads");
        let cpu = CpuExec::new(1).expect("one thread");
        let mut communicator = Communicator::Solo;
        let rank = communicator.rank();
        let n_packed = Cell::new(0);
        let packed = |n_bytes| n_packed.set(n_packed.get() + n_bytes);
        let mut model = Model::host((&cpu, &packed), checkpoint.spec(), weights, &memory, rank);
        assert_eq!(n_packed.get(), memory.packed_bytes, "what was planned is packed");
        let mut exec = Exec::Cpu(cpu);
        let n_groups = memory.group_pages.len();
        for (what, plan) in [
            ("prefill", plan(0, 12, n_groups)),
            ("decode", plan(12, 1, n_groups)),
            ("a chunk", plan(13, 3, n_groups)),
        ] {
            let mut n_emitted = 0;
            let counted = allocation_counter::measure(|| {
                let consume: &mut dyn FnMut(&EmitPoint, &[f32]) = &mut |_, _| n_emitted += 1;
                let (exec, communicator) = (&mut exec, &mut communicator);
                let run = StepRun { exec, communicator, plan: &plan, consume, sampling: None };
                model.forward(run).expect("it runs");
            });
            assert_eq!(n_emitted, 2);
            assert_eq!(counted.count_total, 0, "{format:?}, {what}: {counted:?}");
        }
    }
}
