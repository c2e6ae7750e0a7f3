//! LN-Ultra at its true size on eight virtual GPUs that count and do not compute, for what counts
//! its steps. The process must have been told to be dry before its first step.

use std::sync::Arc;

use benches::cost::CHUNK;
use benches::cost::counted::{Count, Counted};
use engine::{DeviceKind, EngineConfig, KvDtype, Probe, TokenId};
use harness::plans::{Planner, Span};
use virtual_node::client::Node;
use virtual_node::report::DeviceCounters;
use weights::Checkpoint;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat};

/// Ranks.
pub(crate) const N_RANKS: u64 = 8;

/// Sequences at most.
pub(crate) const N_SLOTS: usize = 256;

const N_CONTEXT: usize = 32_768;

/// The model, booted.
pub(crate) struct Ultra {
    probe: Probe,
    planner: Planner,
    node: Node,
    /// Tokens of each sequence that decodes.
    n_tokens: usize,
}

impl Ultra {
    /// Boots it and lets a sequence into every slot.
    pub(crate) fn boot() -> anyhow::Result<Ultra> {
        let spec = preset("ultra-253b").expect("a preset");
        let format = SyntheticFormat::ModelOptFp8;
        let config = SyntheticConfig { spec, format, n_shards: 1, seed: 0 };
        let checkpoint = Arc::new(Checkpoint::without_data(&config)?);
        let config = EngineConfig {
            device: DeviceKind::Cuda,
            n_ranks: N_RANKS as usize,
            n_threads: None,
            n_slots: N_SLOTS,
            n_waiting_max: 1,
            n_tokens_per_step: CHUNK as usize,
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
        let probe = Probe::new(checkpoint, &config)?;
        let planner = Planner::new(probe.memory());
        let mut ultra = Ultra { probe, planner, node: Node::open()?, n_tokens: 0 };
        ultra.decode(N_SLOTS)?;
        Ok(ultra)
    }

    /// Tokens whose cache fits beside the weights.
    pub(crate) fn n_cached_max(&self) -> u64 {
        self.probe.memory().n_kv_tokens() as u64
    }

    /// What each rank launches where so many sequences decode.
    pub(crate) fn decode(&mut self, n_sequences: usize) -> anyhow::Result<Vec<Counted>> {
        let start = self.n_tokens;
        let spans: Vec<Span<'_>> =
            (0..n_sequences).map(|slot| Span { slot, start, tokens: &[TokenId(7)] }).collect();
        self.n_tokens += 1;
        self.count(&spans)
    }

    /// The same of a whole prompt of one chunk.
    pub(crate) fn prefill(&mut self) -> anyhow::Result<Vec<Counted>> {
        let prompt: Vec<TokenId> = (0..CHUNK as u32).map(TokenId).collect();
        self.planner.restart(0);
        self.count(&[Span { slot: 0, start: 0, tokens: &prompt }])
    }

    fn count(&mut self, spans: &[Span<'_>]) -> anyhow::Result<Vec<Counted>> {
        let plan = self.planner.last_only(spans);
        self.node.reset();
        self.probe.step(plan)?;
        let counters = self.node.counters();
        Ok(counters.devices.iter().map(|device| counted(device, false)).collect())
    }
}

/// A device's counts of one step; where kernels were executed, their bytes in whole sectors.
pub(crate) fn counted(device: &DeviceCounters, is_executed: bool) -> Counted {
    let mut counted = Counted::default();
    for (name, kernel) in &device.kernels {
        let asked = kernel.bytes_read + kernel.bytes_written;
        let sectors = kernel.sectors_read + kernel.sectors_written;
        let is_of_library = name.starts_with("cublasLt") || name.starts_with("nccl");
        let count = Count {
            n_launches: kernel.n_launches,
            bytes: if is_executed && !is_of_library { 32 * sectors } else { asked },
            flops: if is_of_library { kernel.flops.total() } else { 0 },
        };
        counted.kernels.insert(name.clone(), count);
    }
    // Of exchanges it is the message that counts, and what is summed on the way is nobody's work.
    for (name, moved) in &device.collectives {
        counted.kernels.retain(|kernel, _| !kernel.starts_with(&format!("nccl {name}")));
        let count = Count { n_launches: moved.n, bytes: moved.bytes, flops: 0 };
        counted.kernels.insert(format!("nccl {name}"), count);
    }
    counted
}
