//! From what the engine says of itself to the values of its metrics, at the moment when somebody
//! reads them. It names none.

use engine::{EngineInfo, EngineStats};
use prometheus_client::encoding::text;

use super::{Metrics, cache};

impl Metrics {
    /// The text of all metrics, with the engine's as they are now.
    pub fn render(&self, stats: &EngineStats, info: &EngineInfo) -> String {
        let _publishing = self.publishing.lock();
        self.publish_engine(stats, info);
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry).expect("a string takes everything");
        text
    }

    fn publish_engine(&self, stats: &EngineStats, info: &EngineInfo) {
        let engine = &self.engine;
        engine.running.set(stats.n_running as i64);
        engine.waiting.set(stats.n_waiting as i64);
        self.priority.waiting(&stats.n_waiting_by_level);
        engine.pages.set(stats.n_pages as i64);
        engine.pages_used.set(stats.n_pages_used as i64);
        engine.pages_cached.set(stats.n_pages_cached as i64);
        engine.cached_tokens.set(stats.n_cached_tokens);
        engine.host_tokens.set(stats.n_host_tokens);
        engine.shared_tokens.set(stats.n_shared_tokens);
        engine.host.publish(stats, info);
        engine.kv_share.set(cache::kv_share(stats));
        cache::publish(&engine.cache_size, stats, info);
        engine.steps.set(stats.n_steps);
        engine.proposed_tokens.set(stats.n_proposed_tokens);
        engine.accepted_tokens.set(stats.n_accepted_tokens);
        engine.preemptions.set(stats.n_preemptions);
        engine.step_seconds.set(stats.step_time.as_secs_f64());
        self.step.publish(stats);
        self.triton.publish(stats, info);
    }
}
