//! The report on a small synthetic checkpoint and on a preset, to the letter.

use std::path::PathBuf;

use engine::DeviceKind;
use weights::presets::preset;
use weights::synthetic::write_synthetic;

use super::*;

fn engine(n_ranks: usize) -> EngineConfig {
    EngineConfig {
        device: DeviceKind::Cpu,
        n_ranks,
        n_threads: Some(1),
        n_slots: 2,
        n_waiting_max: 2,
        n_tokens_per_step: 16,
        n_context_tokens: None,
        kv_dtype: None,
        kv_bytes: None,
    }
}

/// The tiny model as ModelOpt FP8, in a directory of its own that goes away.
struct Tiny {
    dir: PathBuf,
    checkpoint: Checkpoint,
}

impl Tiny {
    fn write(test: &str) -> Tiny {
        let dir = std::env::temp_dir().join(format!("lnserve-{test}-{}", std::process::id()));
        let spec = preset("tiny").expect("a preset");
        let format = SyntheticFormat::ModelOptFp8;
        let config = SyntheticConfig { spec, format, n_shards: 2, seed: 1 };
        write_synthetic(&dir, &config, &mut |_, _| {}).expect("writes");
        let checkpoint = Checkpoint::open(&dir).expect("opens");
        Tiny { dir, checkpoint }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).expect("the directory is ours");
    }
}

#[test]
fn a_checkpoint_s_report() {
    let tiny = Tiny::write("inspect-report");
    assert_eq!(of_checkpoint("tiny", &tiny.checkpoint, false), "");
}

#[test]
fn a_checkpoint_s_plan_is_the_engine_s() {
    let tiny = Tiny::write("inspect-plan");
    assert_eq!(plan_of_checkpoint(&tiny.checkpoint, &engine(2)).expect("fits"), "");
}

#[test]
fn a_preset_s_report_needs_no_weights() {
    let spec = preset("ultra-253b").expect("a preset");
    let text = plan_of_model(spec, SyntheticFormat::ModelOptFp8, &engine(8)).expect("shares");
    assert_eq!(text, "");
}

#[test]
fn ranks_that_cannot_share_are_told_why() {
    let spec = preset("tiny").expect("a preset");
    let error = plan_of_model(spec, SyntheticFormat::Bf16, &engine(3)).expect_err("uneven");
    let message = error.to_string();
    assert!(message.contains("which 3 ranks cannot share evenly"), "{message}");
    assert!(message.ends_with("choose another --tp"), "{message}");
}
