//! The report on a small synthetic checkpoint and on a preset, to the letter.

use std::path::PathBuf;

use engine::DeviceKind;
use weights::presets::preset;
use weights::synthetic::write_synthetic;

use super::*;

const REPORT: &str = "\
tiny: 8 blocks (2 empty), hidden size 64, vocabulary 301, 512 positions, 223,552 parameters

         0
  mixer  █··▓/w·▓
  ffn    ▄█··▁/·▆

  █   1 block   attention, 8 query and 4 KV heads of 16
  ▓   2 blocks  attention, 8 query and 2 KV heads of 16
  w   1 block   attention, 8 query and 4 KV heads of 16, window 8
  /   1 block   linear in place of attention
  ·   3 blocks  no attention
  █   1 block   ffn of width 160
  ▆   1 block   ffn of width 128
  ▄   1 block   ffn of width 96
  ▁   1 block   ffn of width 64
  /   1 block   linear in place of ffn
  ·   3 blocks  no ffn

tensors
  kind                  tensors  elements      bytes   format
  embedding                   1    19,264   37.6 KiB     BF16
  attention                  16    90,112   88.0 KiB  F8_E4M3
  linear for attention        1     4,096   4.00 KiB  F8_E4M3
  ffn                        12    86,016   84.0 KiB  F8_E4M3
  linear for ffn              1     4,096   4.00 KiB  F8_E4M3
  norms                      11       704   1.38 KiB     BF16
  head                        1    19,264   37.6 KiB     BF16
  scales                     68        68      272 B      F32
  total                     111   223,620  256.9 KiB
";

const PLAN: &str = "
weights of each of 2 ranks
  rank  embedding  attention       ffn     norms  scales      head      total
  0      18.9 KiB   46.0 KiB  44.0 KiB  2.75 KiB   272 B  18.9 KiB  130.8 KiB
  1      18.8 KiB   46.0 KiB  44.0 KiB  2.75 KiB   272 B  18.8 KiB  130.5 KiB

memory plan
  over all ranks            bytes
  weights, mapped once  256.9 KiB
";

const PRESET_PLAN: &str = "
weights of each of 8 ranks
  rank  embedding  attention       ffn     norms    scales       head     total
  0-7   501.0 MiB   4.25 GiB  24.8 GiB  9.12 MiB  4.40 KiB  501.0 MiB  30.0 GiB

KV cache as fp8: 128.0 KiB a token over all blocks, 16.0 KiB on each of 8 ranks
";

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
        is_deterministic: false,
        rounds_inputs: false,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
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
    assert_eq!(of_checkpoint("tiny", &tiny.checkpoint, false), REPORT);
}

#[test]
fn a_checkpoint_s_plan_is_the_engine_s() {
    let tiny = Tiny::write("inspect-plan");
    let config = engine(2);
    let text = plan_of_checkpoint(&tiny.checkpoint, &config).expect("fits");
    let rest = text.strip_prefix(PLAN).unwrap_or_else(|| panic!("{text}"));
    // Sizes of the engine's own buffers are its business, and change with its kernels.
    let plan = MemoryPlan::new(&tiny.checkpoint, &config).expect("fits");
    let mut words: Vec<&str> = rest.lines().map(|line| line.trim()).collect();
    // Where the processor has tiles.
    if plan.packed_bytes > 0 {
        let line = words.remove(0);
        assert!(line.starts_with("weights, packed"), "{text}");
        assert!(line.ends_with(&ByteSize(plan.packed_bytes).to_string()), "{text}");
    }
    assert!(words[0].starts_with("KV cache, fp8"), "{text}");
    assert!(words[1].starts_with("workspace"), "{text}");
    assert!(words[2].starts_with("collectives"), "{text}");
    assert!(words[3].starts_with("total"), "{text}");
    assert!(words[3].ends_with(&ByteSize(plan.total_bytes()).to_string()), "{text}");
    assert_eq!(
        words[4],
        "up to 2 sequences at once, each up to 512 tokens; the cache holds 1,024 tokens"
    );
    assert_eq!(words.len(), 5, "{text}");
}

#[test]
fn a_preset_s_report_needs_no_weights() {
    let spec = preset("ultra-253b").expect("a preset");
    let text = plan_of_model(spec, SyntheticFormat::ModelOptFp8, &engine(8)).expect("shares");
    assert_eq!(text, PRESET_PLAN);
}

#[test]
fn ranks_that_cannot_share_are_told_why() {
    let tiny = Tiny::write("inspect-uneven");
    let spec = preset("tiny").expect("a preset");
    let errors = [
        plan_of_model(spec, SyntheticFormat::Bf16, &engine(3)).expect_err("uneven"),
        plan_of_checkpoint(&tiny.checkpoint, &engine(3)).expect_err("uneven"),
    ];
    for message in errors.map(|error| error.to_string()) {
        assert!(message.contains("which 3 ranks cannot share evenly"), "{message}");
        assert!(message.ends_with("choose another --tp"), "{message}");
    }
}
