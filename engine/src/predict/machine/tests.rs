//! The cost model, held against what was published and against itself.

use weights::presets::preset;

use super::*;
use crate::predict::work::{Step, launches};

fn decode(n_sequences: u64, context: u64) -> Vec<Launch> {
    let spec = preset("ultra-253b").expect("a preset");
    launches(&spec, Step { n_sequences, n_tokens_each: 1, context }, 8)
}

/// The same if nothing were fetched ahead.
fn without_ahead(step: &[Launch]) -> Vec<Launch> {
    step.iter().map(|launch| Launch { ahead_bytes: 0, ..*launch }).collect()
}

#[test]
fn the_roofline_is_what_arithmetic_on_the_config_gives() {
    // Worked out apart from this code: weights 9.46 ms, 16,384 bytes of cache a token, 145
    // messages (here 146, with the embedding's).
    for (n_sequences, context, ms) in [
        (1, 1024, 10.77),
        (1, 32_768, 10.92),
        (8, 8192, 11.23),
        (32, 8192, 12.77),
        (64, 8192, 14.63),
        (64, 32_768, 22.32),
        (128, 1024, 14.01),
        (256, 8192, 26.38),
    ] {
        let ours = 1e3 * roofline_seconds(&decode(n_sequences, context));
        assert!((ours / ms - 1.0).abs() < 0.01, "{n_sequences} x {context}: {ours} for {ms}");
    }
}

#[test]
fn the_one_shot_exchange_agrees_with_what_others_measured() {
    // 13 µs for 512 KiB between six H100s, one stage (vllm-project/vllm#24111).
    let us = 1e6 * one_shot(512.0 * KIB, 6.0);
    assert!((us - 13.0).abs() < 1.0, "{us}");
    // Reading seven messages costs more than NCCL from somewhere beyond 1 MiB on.
    assert!(one_shot(1.0 * MIB, 8.0) < nccl(1.0 * MIB));
    assert!(one_shot(4.0 * MIB, 8.0) > nccl(4.0 * MIB));
    // So small steps launch 146 kernels fewer than the largest.
    let (small, large) = (n_launches(&decode(1, 1024)), n_launches(&decode(1024, 1024)));
    assert_eq!((small, large - small), (585, 146));
}

#[test]
fn the_range_is_one_and_contains_what_was_published() {
    for (n_sequences, context) in [(1, 1024), (8, 8192), (64, 8192), (256, 32_768)] {
        let step = decode(n_sequences, context);
        let [low, expected, high] =
            [Machine::LOW, Machine::EXPECTED, Machine::HIGH].map(|machine| machine.seconds(&step));
        assert!(roofline_seconds(&step) < high && high < expected && expected < low);
    }
    // 70.92 tokens/s, for TensorRT-LLM's own graph and all-reduce (arXiv 2503.18908).
    let rate = |machine: Machine| 1.0 / machine.seconds(&decode(1, 1024));
    assert!(rate(Machine::LOW) < 70.92 && 70.92 < rate(Machine::HIGH));
}

#[test]
fn fetching_ahead_saves_no_more_than_there_is_time_for() {
    let saved = |machine: Machine, n_sequences, context| {
        let step = decode(n_sequences, context);
        machine.seconds(&without_ahead(&step)) - machine.seconds(&step)
    };
    for machine in [Machine::LOW, Machine::EXPECTED, Machine::HIGH] {
        for n_sequences in [1, 16, 64, 256] {
            let step = decode(n_sequences, 8192);
            let is_time = |one: &&Launch| matches!(one.kind, Kind::AllReduce(_) | Kind::Attention);
            let time: f64 = step.iter().filter(is_time).map(|one| machine.seconds(&[*one])).sum();
            let most = time * machine.stream / machine.weights_of(n_sequences as f64).rate;
            let saved = saved(machine, n_sequences, 8192);
            assert!(saved >= -1e-9 && saved <= most, "{n_sequences}: {saved} of {time}");
        }
    }
    assert!(saved(Machine::LOW, 1, 1024).abs() < 1e-9, "of no use");
    // 20 MiB 146 times and 64 times, at 3.27 TB/s and at 5.4.
    let expected = 210.0 * 20.0 * MIB * (1.0 / 3.27e12 - 1.0 / 5.4e12);
    assert!((saved(Machine::EXPECTED, 1, 1024) / expected - 1.0).abs() < 1e-6);
    // Where attention itself takes all that the memory yields, nothing is fetched beside it.
    let step = decode(256, 32_768);
    let plain: Vec<Launch> = step
        .iter()
        .map(|one| Launch { ahead_bytes: one.ahead_bytes * u64::from(one.name != "o"), ..*one })
        .collect();
    let [all, none] = [&step, &plain].map(|step| Machine::HIGH.seconds(step));
    assert!((all - none).abs() < 1e-9, "{all} {none}");
}

#[test]
fn products_last_as_long_as_those_that_were_measured() {
    // Tokens, outputs, inputs, and microseconds of vllm-project/vllm#49363.
    for (n_tokens, n_outputs, n_inputs, us) in [
        (1, 12_288, 5376, 25.6),
        (1, 43_008, 5376, 76.1),
        (16, 12_288, 5376, 25.5),
        (16, 43_008, 5376, 78.7),
        (64, 12_288, 5376, 26.6),
        (64, 43_008, 5376, 83.0),
        (128, 12_288, 5376, 29.1),
        (128, 43_008, 5376, 91.4),
    ] {
        let bytes = n_outputs * n_inputs;
        let launch = Launch {
            name: "gate_up",
            kind: Kind::ProductF8,
            resident_bytes: bytes,
            ahead_bytes: 0,
            given_bytes: 0,
            bytes,
            flops: 2 * n_tokens * bytes,
        };
        let ours = 1e6 * Machine::EXPECTED.seconds(&[launch]);
        assert!((ours / us - 1.0).abs() < 0.01, "{launch:?}: {ours} for {us}");
    }
    // Between them, and beyond them.
    let rate = |n_tokens| Machine::EXPECTED.weights_of(n_tokens).rate;
    assert!(rate(32.0) < rate(16.0) && rate(32.0) > rate(64.0));
    assert_eq!(rate(200.0), rate(128.0));
}

#[test]
fn what_comes_back_in_two_shots_is_half_of_what_goes() {
    let sum = |bytes, given_bytes| 1e6 * all_reduce(Carrier::TwoShot, bytes, given_bytes);
    assert!((sum(2.0 * MIB, 2.0 * MIB) - 22.0).abs() < 1e-9);
    assert!((sum(2.0 * MIB, 1.0 * MIB) - 19.0).abs() < 1e-9);
    let step = decode(64, 1024);
    let sums: Vec<&Launch> =
        step.iter().filter(|one| matches!(one.kind, Kind::AllReduce(_))).collect();
    let (last, others) = sums.split_last().expect("there are 146");
    assert!(others.iter().all(|one| 2 * one.given_bytes == one.bytes), "e4m3 for bf16");
    assert_eq!(last.given_bytes, last.bytes, "the head's");
}

#[test]
fn more_work_takes_longer() {
    let ms = |n_sequences, context| Machine::EXPECTED.seconds(&decode(n_sequences, context));
    assert!(ms(1, 1024) < ms(8, 1024) && ms(8, 1024) < ms(8, 8192));
    let between = interpolated(NCCL, 3.0 * MIB);
    assert!(37e-6 < between && between < 50e-6);
    assert!((nccl(256.0 * MIB) - 256.0 * MIB / NCCL_LARGE).abs() < 1e-9);
    // All 64 rows of logits are 31 MiB: gathering them lasts as long as summing 16 MiB.
    let gather = decode(64, 1024).into_iter().find(|launch| launch.kind == Kind::AllGather);
    let seconds = Machine::EXPECTED.seconds(&[gather.expect("logits are gathered")]);
    let expected = nccl(64.0 * 128_256.0 * 4.0 / 2.0) + Machine::EXPECTED.gap;
    assert!((seconds / expected - 1.0).abs() < 1e-9, "{seconds}");
}

#[test]
fn what_was_fetched_serves_one_product() {
    let step = decode(8, 8192);
    let at = step.iter().position(|launch| launch.name == "gate_up").expect("there are 81");
    let [twice, once] = [20 << 20, 0].map(|ahead_bytes| {
        let second = Launch { ahead_bytes, ..step[at] };
        Machine::EXPECTED.seconds(&[step[at - 2], step[at - 1], step[at], second])
    });
    assert!(step[at].ahead_bytes > 0 && twice == once, "{twice} {once}");
}

#[test]
fn what_is_expected_is_near_the_roofline() {
    for n_sequences in [1, 8, 32, 64] {
        let step = decode(n_sequences, 8192);
        let ratio = Machine::EXPECTED.seconds(&step) / roofline_seconds(&step);
        assert!((1.0..1.25).contains(&ratio), "{n_sequences} sequences: {ratio}");
    }
    // Published for another engine (arXiv 2503.18908, table 2).
    assert!(1.0 / Machine::EXPECTED.seconds(&decode(1, 1024)) > 70.92);
}
