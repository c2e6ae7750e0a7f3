//! How the server is set up: bounds of the scheduler, from the memory plan that the engine would
//! boot from.

use engine::{DeviceKind, EngineConfig, HostKv, KvDtype, MemoryPlan, Policy};
use scheduler::{HostTier, LatencyTarget, Limits, PrefixCache};
use weights::Checkpoint;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat};

/// What it is about.
pub(crate) const MACHINE: &str = "LN-Ultra 253B, FP8 weights and KV, 8 x H100 SXM, TP 8";

/// Ranks.
pub(crate) const N_RANKS: u64 = 8;

/// Of a card, as `nvidia-smi` says it.
const DEVICE_BYTES: u64 = 81_559 << 20;

/// Tokens of a sequence.
const N_CONTEXT_TOKENS: usize = 32_768;

/// Tokens that are fetched from the host at least: where fetching is published to be as fast as
/// computing, for this model.
const HOST_TOKENS_MIN: usize = 1000;

/// What the operator decides.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) n_tokens_per_step: usize,
    pub(crate) step_target_ms: Option<u64>,
    pub(crate) page_tokens: usize,
    pub(crate) caches_prefixes: bool,
    /// Of the host's memory, for pages that fall out of the cache.
    pub(crate) n_host_gib: u64,
}

impl Setup {
    /// What others differ from in one thing.
    pub(crate) fn base(name: &str) -> Setup {
        Setup {
            name: name.to_owned(),
            n_tokens_per_step: 2048,
            step_target_ms: None,
            page_tokens: 16,
            caches_prefixes: true,
            n_host_gib: 0,
        }
    }

    /// The scheduler's bounds; with other pages than the engine's, as many tokens of KV.
    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        let plan = MemoryPlan::on_paper(&*checkpoint()?, &self.config(), DEVICE_BYTES)?;
        let mut limits = plan.limits(1024);
        for group in &mut limits.groups {
            group.n_pages = group.n_pages * limits.page_tokens / self.page_tokens;
        }
        limits.host_tier = self.host_kv().map(|host_kv| HostTier {
            group_pages: plan.host_pages.clone(),
            n_tokens_min: host_kv.n_tokens_min,
        });
        limits.page_tokens = self.page_tokens;
        limits.prefix_cache = self.caches_prefixes.then_some(PrefixCache { seed: 1 });
        limits.latency = self
            .step_target_ms
            .map(|ms| LatencyTarget { step_us: 1000 * ms, n_prompt_tokens_min: 64 });
        Ok(limits)
    }

    fn host_kv(&self) -> Option<HostKv> {
        let n_bytes = self.n_host_gib << 30;
        (n_bytes > 0).then_some(HostKv { n_bytes, n_tokens_min: HOST_TOKENS_MIN })
    }

    fn config(&self) -> EngineConfig {
        EngineConfig {
            device: DeviceKind::Cuda,
            n_ranks: N_RANKS as usize,
            n_threads: None,
            n_slots: 256,
            n_waiting_max: 1024,
            n_tokens_per_step: self.n_tokens_per_step,
            n_context_tokens: Some(N_CONTEXT_TOKENS),
            kv_dtype: Some(KvDtype::Fp8),
            kv_bytes: None,
            overlaps_steps: true,
            caches_prefixes: true,
            policy: Policy::plain(),
            n_candidates_max: 0,
            host_kv: self.host_kv(),
            is_deterministic: false,
            rounds_inputs: false,
        }
    }
}

fn checkpoint() -> anyhow::Result<Box<Checkpoint>> {
    let spec = preset("ultra-253b").ok_or_else(|| anyhow::anyhow!("there is no such preset"))?;
    let format = SyntheticFormat::ModelOptFp8;
    let config = SyntheticConfig { spec, format, n_shards: 1, seed: 0 };
    Ok(Box::new(Checkpoint::without_data(&config)?))
}
