//! Ranks that meet in the kernel, each on a device of its own: in one shot, in two, again and
//! again. What is summed and what must come of it is the parent's.

use std::time::Duration;

use super::*;
use crate::kernels::launching::{SPENT_OFFSET_BYTES, STATE_BYTES};
use crate::kernels::testing::ranks::{TestRank, on_ranks};

/// What a rank of a test has for its launches.
struct Member<'a> {
    rank: &'a TestRank<'a>,
    exchange: Exchange,
    /// Two places of every rank for partial results.
    partials: [DevicePtr; N_RANKS_MAX],
    n: usize,
}

impl Member<'_> {
    /// For partial results of up to `n` elements.
    fn new<'a>(rank: &'a TestRank<'a>, n: usize) -> Member<'a> {
        let partials = rank.share(rank.device.poisoned::<bf16>(2 * n));
        Member { rank, exchange: rank.exchange(), partials, n }
    }

    /// Makes the sum number `round` of all, as every rank does.
    fn run(&self, inputs: &Inputs, kind: Kind, round: usize, is_two_shot: bool) -> Outcome {
        let TestRank { rank, ref device, .. } = *self.rank;
        let partials = self.partials.map(|ptr| ptr.elements::<bf16>(round % 2 * self.n));
        device.exec.upload(partials[rank], &inputs.partials[rank]).expect("it is copied");
        let everywhere = |own: DevicePtr| self.rank.share(own);
        let meeting = Meeting {
            partials,
            exchange: self.exchange,
            everywhere: if is_two_shot { Some(&everywhere) } else { None },
        };
        let outcome = inputs.run(device, kind, meeting);
        let what = format!("rank {rank} of {}", self.rank.n_ranks);
        inputs.check_owned(&outcome, kind, |token| meeting.finishes(token), &what);
        outcome
    }
}

/// Several exchanges, with partial results in two arrays that take turns.
fn exchanges(rank: &TestRank<'_>, n_tokens: usize, hidden: usize) {
    let member = Member::new(rank, n_tokens * hidden);
    for (round, kind) in KINDS.into_iter().enumerate() {
        let inputs = Inputs::new(160 + round as u64, rank.n_ranks, n_tokens, hidden);
        let inputs = if round == 2 { inputs.with_factors() } else { inputs };
        member.run(&inputs, kind, round, false);
    }
}

#[test]
fn eight_ranks_meet() {
    on_ranks(8, |rank| exchanges(rank, 1, 16_384));
    on_ranks(8, |rank| exchanges(rank, 40, 128));
}

/// What exchanges took by the device's clock, and what of it they waited.
fn spent_ns(rank: &TestRank<'_>, state: DevicePtr) -> [u64; 2] {
    let words = rank.device.download::<u64>(state, STATE_BYTES / size_of::<u64>());
    words[SPENT_OFFSET_BYTES / size_of::<u64>()..].try_into().expect("two numbers")
}

#[test]
fn who_is_late_is_waited_for_and_that_is_told() {
    const LATE: Duration = Duration::from_millis(20);
    on_ranks(2, |rank| {
        let member = Member::new(rank, 4 * 512);
        let states = rank.share(member.exchange.state);
        let inputs = Inputs::new(192, 2, 4, 512);
        for (round, is_two_shot) in [false, true].into_iter().enumerate() {
            let before_ns = spent_ns(rank, states[rank.rank]);
            member.run(&inputs, Kind::Bf16, round, is_two_shot);
            let after_ns = spent_ns(rank, states[rank.rank]);
            let [taken_ns, waited_ns] = [0, 1].map(|i| after_ns[i] - before_ns[i]);
            assert!(0 < waited_ns && waited_ns <= taken_ns, "{waited_ns} of {taken_ns} ns");
        }
        rank.meet();
        let before_ns = spent_ns(rank, states[0]);
        rank.meet();
        if rank.rank == 1 {
            // The other has come when it has noted that.
            while spent_ns(rank, states[0])[1] == before_ns[1] {
                std::thread::yield_now();
            }
            std::thread::sleep(LATE);
        }
        member.run(&inputs, Kind::Bf16, 2, false);
        if rank.rank == 0 {
            let after_ns = spent_ns(rank, states[0]);
            let [taken_ns, waited_ns] = [0, 1].map(|i| after_ns[i] - before_ns[i]);
            assert!(Duration::from_nanos(waited_ns) >= LATE, "{waited_ns} ns");
            assert!(waited_ns <= taken_ns, "{waited_ns} of {taken_ns} ns");
        }
    });
}

#[test]
fn two_and_three_ranks_meet() {
    on_ranks(2, |rank| exchanges(rank, 5, 8192));
    on_ranks(3, |rank| exchanges(rank, 2, 264));
}

/// Sums in one shot and in two, in turn, of the same numbers: bit by bit the same.
fn both_ways(rank: &TestRank<'_>, n_tokens: usize, hidden: usize) {
    let member = Member::new(rank, n_tokens * hidden);
    for (i, kind) in KINDS[..3].iter().copied().enumerate() {
        let inputs = Inputs::new(180 + i as u64, rank.n_ranks, n_tokens, hidden);
        let inputs = if i == 2 { inputs.with_factors() } else { inputs };
        let one = member.run(&inputs, kind, 2 * i, false);
        let two = member.run(&inputs, kind, 2 * i + 1, true);
        let what = format!("{kind:?}, rank {} of {}", rank.rank, rank.n_ranks);
        assert!(one.out == two.out, "{what}: {n_tokens} rows of {hidden} differ");
        // Poison where there are none.
        assert_eq!(bits(&one.scales), bits(&two.scales), "{what}");
        assert!(one.out.iter().all(|x| !x.is_nan()), "{what}: all rows are written");
    }
}

#[test]
fn two_shots_give_the_bits_of_one() {
    on_ranks(8, |rank| both_ways(rank, 11, 16_384));
    // Fewer rows than ranks, or none.
    on_ranks(8, |rank| both_ways(rank, 3, 16_384));
    on_ranks(8, |rank| both_ways(rank, 0, 16_384));
    on_ranks(4, |rank| both_ways(rank, 7, 8192));
    on_ranks(2, |rank| both_ways(rank, 5, 5120));
    on_ranks(3, |rank| both_ways(rank, 300, 264));
}

#[test]
fn a_token_alone_has_the_same_bits_in_two_shots() {
    on_ranks(8, |rank| {
        let member = Member::new(rank, 64 * 16_384);
        let inputs = Inputs::new(190, 8, 64, 16_384).with_factors();
        let batch = member.run(&inputs, Kind::PerToken, 0, true);
        for (i, token) in sampled(64).into_iter().enumerate() {
            let row = token * 16_384..(token + 1) * 16_384;
            let alone = member.run(&inputs.alone(token), Kind::PerToken, i + 1, true);
            assert!(alone.out == batch.out[row.clone()], "token {token}");
            assert_eq!(alone.scales[0].to_bits(), batch.scales[token].to_bits(), "token {token}");
            // Alone it is the first rank's.
            if rank.rank == 0 && token % 8 == 0 {
                assert_eq!(bits(&alone.residual), bits(&batch.residual[row]), "token {token}");
            }
        }
    });
}

#[test]
fn rows_are_picked_in_two_shots() {
    on_ranks(4, |rank| {
        let member = Member::new(rank, 90 * 128);
        let mut inputs = Inputs::new(191, 4, 90, 128);
        // All of one owner's in a row, padding between them, and a stream that begins.
        let rows = (0..70).map(|i| if i % 5 == 3 { -1 } else { (89 - i) / 4 * 4 % 90 });
        inputs.rows = Some(rows.chain([3, 1, 2, 0]).collect());
        let outcome = member.run(&inputs, Kind::Bf16, 0, true);
        assert_eq!(Some(outcome.residual), inputs.residual, "the stream is left alone");
        inputs.residual = None;
        member.run(&inputs, Kind::Bf16, 1, true);
    });
}

/// Meets twice in a graph, each time with partial results of its own, and replays that.
fn replays(rank: &TestRank<'_>, is_two_shot: bool) {
    let (device, hidden) = (&rank.device, 512);
    let exchange = rank.exchange();
    let inputs = Inputs::new(171, rank.n_ranks, 1, hidden);
    let mut stream = vec![0.0f32; hidden];
    let residual = device.upload(&stream);
    let weight = device.upload(&inputs.weight);
    let out = device.poisoned::<bf16>(hidden);
    let outs = rank.share(out);
    let twice = [0, 1].map(|_| rank.share(device.upload(&inputs.partials[rank.rank])));
    let streams = device.exec.stream();
    streams.begin_capture().expect("capture begins");
    for partials in twice {
        let norm = Norm { weight, eps: EPS, out, output: Output::Bf16 };
        let args = Launch {
            partials,
            exchange,
            two_shot: is_two_shot.then_some(TwoShot { outs, scales: outs }),
            scales: Deferred::Nothing,
            residual_in: residual,
            residual_out: residual,
            rows: DevicePtr::NULL,
            n_rows: 1,
            hidden,
            norm,
            ahead: None,
        };
        launch(&device.exec, &args).expect("it is captured");
    }
    let graph = streams.end_capture().expect("capture ends");
    for replay in 0..3 {
        device.exec.upload(out, &vec![bf16::NAN; hidden]).expect("it is copied");
        // Nobody writes here before that has happened.
        rank.meet();
        streams.launch(&graph).expect("it is replayed");
        for _ in 0..2 {
            let inputs = Inputs { residual: Some(stream), ..inputs.alone(0) };
            stream = inputs.summed(0);
        }
        let what = format!("rank {} replay {replay}", rank.rank);
        let got = device.download::<f32>(residual, hidden);
        if !is_two_shot || rank.rank == 0 {
            assert_eq!(got, stream, "{what}");
        }
        let out =
            device.download::<bf16>(out, hidden).iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        inputs.check_norm(&stream, &out, (Kind::Bf16, 1.0), &what);
        rank.meet();
    }
}

#[test]
fn a_graph_meets_again_at_every_replay() {
    on_ranks(4, |rank| replays(rank, false));
    on_ranks(4, |rank| replays(rank, true));
}
