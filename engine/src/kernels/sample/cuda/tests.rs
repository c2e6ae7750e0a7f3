//! Against the host's sampler on random rows. A different token is accepted only where another
//! uniform number or another top-p, a millionth away, makes the host yield it too.

use std::sync::Arc;

use scheduler::SlotIdx;

use super::*;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::sample::cpu;
use crate::kernels::testing::Rng;
use crate::kernels::testing::traffic::assert_frugal;
use crate::rank::Entering;
use crate::request::{Request, Terms};
use crate::sampler::Sampler;

const N_BIASES_MAX: usize = 8;
const STOPS: [TokenId; 2] = [TokenId(0), TokenId(3)];

/// One sequence of a test.
struct Sequence {
    request: Arc<Request>,
    /// Generated before it takes its slot.
    generated: Vec<TokenId>,
    /// Drawn so far.
    drawn: Vec<TokenId>,
}

/// How a row's logits are spread.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// A few hundred likely tokens of many.
    Usual,
    /// Multiples of a quarter: many are equal.
    Coarse,
    /// Close together.
    Flat,
    /// All the same.
    Equal,
    /// Far beyond what a weight can express.
    Wide,
}

const SPREADS: [Spread; 5] =
    [Spread::Usual, Spread::Coarse, Spread::Flat, Spread::Equal, Spread::Wide];

fn logits(rng: &mut Rng, n_vocab: usize, spread: Spread) -> Vec<f32> {
    let mut normal = || -> f32 { (0..4).map(|_| rng.number()).sum::<f32>() * 2.0 };
    let mut one = || match spread {
        Spread::Usual => normal() * 1.5,
        Spread::Coarse => (normal() * 4.0).round() / 4.0,
        Spread::Flat => normal() * 1e-3,
        Spread::Equal => -0.75,
        Spread::Wide => normal() * 1e4,
    };
    (0..n_vocab).map(|_| one()).collect()
}

fn params(rng: &mut Rng, n_vocab: usize) -> SamplingParams {
    let mut pick = |values: &[f32]| values[rng.below(values.len())];
    let mut params = SamplingParams {
        temperature: pick(&[0.0, 0.6, 1.0, 1.0, 0.05, 7.5]),
        top_p: pick(&[1.0, 1.0, 0.95, 0.5, 1e-4]),
        min_p: pick(&[0.0, 0.0, 0.05, 1.0]),
        repetition_penalty: pick(&[1.0, 1.0, 1.3, 0.7]),
        presence_penalty: pick(&[0.0, 0.0, 0.6, -1.0]),
        frequency_penalty: pick(&[0.0, 0.0, 0.3]),
        ..SamplingParams::greedy()
    };
    params.top_k = [0, 0, 1, 5, 50, n_vocab][rng.below(6)];
    params.n_tokens_min = [0, 0, 2][rng.below(3)];
    params.seed = rng.next_u64();
    for _ in 0..[0, 0, 3][rng.below(3)] {
        params.logit_bias.push((TokenId(rng.below(n_vocab) as u32), rng.number() * 9.0));
    }
    params.logit_bias.sort_by_key(|&(token, _)| token);
    params.logit_bias.dedup_by_key(|&mut (token, _)| token);
    params
}

fn sequence(rng: &mut Rng, n_vocab: usize) -> Sequence {
    let mut tokens = |n: usize| -> Vec<TokenId> {
        (0..n).map(|_| TokenId(rng.below(n_vocab.min(40)) as u32)).collect()
    };
    let (prompt, generated) = (tokens(7).into(), tokens(4));
    let request = Request {
        prompt,
        n_new_max: 100,
        stop_tokens: STOPS.map(|t| TokenId(t.0 % n_vocab as u32)).to_vec().into(),
        sampling: params(rng, n_vocab),
        n_logprobs: None,
        n_prompt_logprobs: None,
        hashes_logits: false,
        cache_salt: None,
        terms: Terms::ordinary(),
    };
    let generated = if rng.below(2) == 0 { generated } else { Vec::new() };
    Sequence { request: Arc::new(request), generated, drawn: Vec::new() }
}

/// A host sampler as if `drawn` had been drawn.
fn host(sequence: &Sequence, params: SamplingParams, n_vocab: usize) -> Sampler {
    let mut sampler = Sampler::new(1, n_vocab);
    let request = Request { sampling: params, ..(*sequence.request).clone() };
    let generated = [&sequence.generated[..], &sequence.drawn[..]].concat();
    sampler.enter(&Entering {
        slot: SlotIdx(0),
        request: Arc::new(request),
        generated,
        is_guided: false,
    });
    sampler
}

/// Tokens that the host yields with another top-p or another draw, a millionth away.
fn neighbours(sequence: &Sequence, logits: &[f32]) -> Vec<TokenId> {
    let params = &sequence.request.sampling;
    let mut tokens = Vec::new();
    for factor in [1.0 - 1e-6, 1.0, 1.0 + 1e-6] {
        let top_p = ((params.top_p as f64 * factor) as f32).min(1.0);
        let params = SamplingParams { top_p, ..params.clone() };
        let mut sampler = host(sequence, params.clone(), logits.len());
        tokens.push(sampler.sample(SlotIdx(0), logits, None));
        let sampler = host(sequence, params.clone(), logits.len());
        let n_before = sequence.generated.len() + sequence.drawn.len();
        let uniform = cpu::uniform(params.seed, n_before as u64);
        let adjusted = sampler.adjusted(SlotIdx(0), logits);
        for shift in [-1e-6, 1e-6] {
            let uniform = (uniform + shift).clamp(0.0, 1.0 - 1e-15);
            let mut scratch = cpu::Scratch::new(logits.len());
            tokens.push(cpu::draw(&adjusted, &params, uniform, &mut scratch));
        }
    }
    tokens
}

/// A vocabulary as ranks hold it.
#[derive(Clone, Copy, Debug)]
struct Vocabulary {
    n_vocab: usize,
    n_ranks: usize,
    /// Elements after a rank's part of a row.
    n_gap: usize,
}

impl Vocabulary {
    fn n_local(self) -> usize {
        self.n_vocab.div_ceil(self.n_ranks)
    }

    fn row_stride(self) -> usize {
        self.n_local() + self.n_gap
    }

    /// `[n_ranks][n_rows][row_stride]`, NaN where there is no token.
    fn lay_out(self, rows: &[Vec<f32>]) -> Vec<f32> {
        let mut laid = vec![f32::NAN; self.n_ranks * rows.len() * self.row_stride()];
        for (row_idx, row) in rows.iter().enumerate() {
            for (rank, part) in row.chunks(self.n_local()).enumerate() {
                let begin = (rank * rows.len() + row_idx) * self.row_stride();
                laid[begin..begin + part.len()].copy_from_slice(part);
            }
        }
        laid
    }
}

/// Slots in a device's memory.
struct Slots<'a> {
    device: &'a TestDevice,
    state: State,
    vocabulary: Vocabulary,
}

impl<'a> Slots<'a> {
    fn new(
        device: &'a TestDevice,
        vocabulary: Vocabulary,
        sequences: &[Sequence],
        wants_logprob: bool,
    ) -> Slots<'a> {
        let n_slots = sequences.len();
        let n_vocab = vocabulary.n_vocab;
        let mut slots = Vec::new();
        let mut all_biases = vec![DeviceBias { token: -1, bias: f32::NAN }; n_slots * N_BIASES_MAX];
        for (slot_idx, sequence) in sequences.iter().enumerate() {
            let params = &sequence.request.sampling;
            slots.push(DeviceSlot::new(params, sequence.generated.len(), wants_logprob));
            let own = biases(params);
            all_biases[slot_idx * N_BIASES_MAX..][..own.len()].copy_from_slice(&own);
        }
        let state = State {
            slots: device.upload(&slots),
            facts: device.poisoned::<u32>(n_slots * n_vocab),
            biases: device.upload(&all_biases),
            n_biases_max: N_BIASES_MAX,
            last_tokens: device.poisoned::<i32>(n_slots),
            n_vocab,
        };
        let this = Slots { device, state, vocabulary };
        for (slot_idx, sequence) in sequences.iter().enumerate() {
            if uses_facts(&sequence.request.sampling) {
                this.enter(slot_idx, sequence);
            }
        }
        this
    }

    fn enter(&self, slot_idx: usize, sequence: &Sequence) {
        let ids = |tokens: &[TokenId]| tokens.iter().map(|t| t.0 as i32).collect::<Vec<_>>();
        let prompt = &sequence.request.prompt;
        let tokens = [ids(prompt), ids(&sequence.generated)].concat();
        let stops = ids(&sequence.request.stop_tokens);
        let args = Enter {
            state: self.state,
            slot_idx,
            tokens: self.device.upload(&tokens),
            n_prompt: prompt.len(),
            n_generated: sequence.generated.len(),
            stops: self.device.upload(&stops),
            n_stops: stops.len(),
            n_biases: biases(&sequence.request.sampling).len(),
        };
        enter(&self.device.exec, &args).expect("it launches");
    }

    /// Samples slot `rows[i]` from `logits[i]`; `None` for padding.
    fn sample(&self, rows: &[i32], logits: &[Vec<f32>]) -> Vec<Option<DeviceAnswer>> {
        let laid = self.vocabulary.lay_out(logits);
        let launch = Launch {
            state: self.state,
            logits: self.device.upload(&laid),
            row_stride: self.vocabulary.row_stride(),
            rank_stride: rows.len() * self.vocabulary.row_stride(),
            n_ranks: self.vocabulary.n_ranks,
            n_local: self.vocabulary.n_local(),
            rows: self.device.upload(rows),
            n_rows: rows.len(),
            answers: self.device.poisoned::<DeviceAnswer>(rows.len()),
        };
        sample(&self.device.exec, &launch).expect("it launches");
        let answers: Vec<DeviceAnswer> = self.device.download(launch.answers, rows.len());
        let paired = rows.iter().zip(answers);
        paired.map(|(&slot, answer)| (slot >= 0).then_some(answer)).collect()
    }
}

/// Draws three times for each of `n_slots` sequences and compares each token.
fn compare(device: &TestDevice, vocabulary: Vocabulary, n_slots: usize, seed: u64) {
    let rng = &mut Rng::new(seed);
    let n_vocab = vocabulary.n_vocab;
    let mut sequences: Vec<Sequence> = (0..n_slots).map(|_| sequence(rng, n_vocab)).collect();
    let slots = Slots::new(device, vocabulary, &sequences, false);
    let mut n_others = 0;
    for _ in 0..3 {
        // Slots in another order, one of them left out, padding in its place.
        let mut rows: Vec<i32> = (0..n_slots as i32).rev().collect();
        rows[rng.below(n_slots)] = -1;
        let drawn: Vec<Vec<f32>> = rows
            .iter()
            .map(|_| {
                let spread = SPREADS[rng.below(5)];
                logits(rng, n_vocab, spread)
            })
            .collect();
        let answers = slots.sample(&rows, &drawn);
        let last: Vec<i32> = device.download(slots.state.last_tokens, n_slots);
        for ((&slot, answer), logits) in rows.iter().zip(answers).zip(&drawn) {
            let Some(answer) = answer else { continue };
            let sequence = &mut sequences[slot as usize];
            let params = sequence.request.sampling.clone();
            let expected =
                host(sequence, params.clone(), n_vocab).sample(SlotIdx(0), logits, None).0 as i32;
            let what = format!("{vocabulary:?}, seed {seed}, slot {slot}: {params:?}");
            if answer.token != expected {
                let token = TokenId(answer.token as u32);
                let is_near =
                    params.temperature > 0.0 && neighbours(sequence, logits).contains(&token);
                assert!(is_near, "{answer:?} for {expected}: {what}");
                n_others += 1;
            }
            assert_eq!(answer.is_broken, 0, "{what}");
            assert_eq!(last[slot as usize], answer.token, "{what}");
            sequence.drawn.push(TokenId(answer.token as u32));
        }
    }
    assert!(n_others * 200 <= n_slots * 3 + 200, "{n_others} tokens differ: {vocabulary:?}");
}

#[test]
fn small_vocabularies_give_the_hosts_tokens() {
    let device = TestDevice::open(0);
    let sizes = [(5, 1, 0), (64, 8, 0), (512, 2, 4), (1000, 3, 1), (2001, 1, 0)];
    for (seed, (n_vocab, n_ranks, n_gap)) in sizes.into_iter().enumerate() {
        compare(&device, Vocabulary { n_vocab, n_ranks, n_gap }, 100, seed as u64);
    }
}

#[test]
fn ultras_vocabulary_gives_the_hosts_tokens() {
    let device = TestDevice::open(0);
    compare(&device, Vocabulary { n_vocab: 128_256, n_ranks: 8, n_gap: 0 }, 10, 31);
    compare(&device, Vocabulary { n_vocab: 32_003, n_ranks: 1, n_gap: 2 }, 4, 32);
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let device = TestDevice::open(0);
    let vocabulary = Vocabulary { n_vocab: 9000, n_ranks: 2, n_gap: 0 };
    let greedy = |rng: &mut Rng| {
        let mut sequence = sequence(rng, 9000);
        let request = Arc::make_mut(&mut sequence.request);
        request.sampling = SamplingParams::greedy();
        sequence
    };
    let rng = &mut Rng::new(5);
    let sequences: Vec<Sequence> = (0..3).map(|_| greedy(rng)).collect();
    let slots = Slots::new(&device, vocabulary, &sequences, false);
    let mut rows = vec![vec![-3.0f32; 9000]; 3];
    (rows[0][8999], rows[0][4500]) = (2.0, 2.0);
    // Minus zero is no less than zero.
    (rows[1][17], rows[1][18]) = (-0.0, 0.0);
    rows[2].fill(-1.0e30);
    let answers = slots.sample(&[0, 1, 2], &rows);
    let tokens: Vec<i32> = answers.into_iter().flatten().map(|answer| answer.token).collect();
    assert_eq!(tokens, [4500, 17, 0]);
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    let vocabulary = Vocabulary { n_vocab: 128_256, n_ranks: 8, n_gap: 0 };
    let rng = &mut Rng::new(8);
    let mut greedy = sequence(rng, vocabulary.n_vocab);
    Arc::make_mut(&mut greedy.request).sampling = SamplingParams::greedy();
    let rows = [logits(rng, vocabulary.n_vocab, Spread::Usual)];
    assert_frugal("sample", vocabulary.n_vocab * size_of::<f32>(), |device| {
        let slots = Slots::new(device, vocabulary, std::slice::from_ref(&greedy), false);
        slots.sample(&[0], &rows);
    });
}

#[test]
fn broken_logits_are_noticed_and_yield_a_token() {
    let device = TestDevice::open(0);
    let vocabulary = Vocabulary { n_vocab: 5000, n_ranks: 2, n_gap: 0 };
    let rng = &mut Rng::new(6);
    let broken = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN];
    let sequences: Vec<Sequence> = (0..32).map(|_| sequence(rng, 5000)).collect();
    let slots = Slots::new(&device, vocabulary, &sequences, true);
    let mut rows: Vec<Vec<f32>> = (0..32).map(|i| logits(rng, 5000, SPREADS[i / 8])).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        match i % 8 {
            // All of it, one element of it, or nothing.
            0..4 => row[rng.below(5000)] = broken[i % 4],
            4 => row.fill(f32::NAN),
            5 => row.fill(f32::INFINITY),
            _ => {}
        }
    }
    let order: Vec<i32> = (0..32).collect();
    for (i, answer) in slots.sample(&order, &rows).into_iter().enumerate() {
        let answer = answer.expect("no padding");
        assert_eq!(answer.is_broken, u32::from(i % 8 < 6), "row {i}");
        assert!((0..5000).contains(&answer.token), "row {i}: {answer:?}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_untouched_logits() {
    let device = TestDevice::open(0);
    let vocabulary = Vocabulary { n_vocab: 3000, n_ranks: 4, n_gap: 2 };
    let rng = &mut Rng::new(7);
    let sequences: Vec<Sequence> = (0..20).map(|_| sequence(rng, 3000)).collect();
    let slots = Slots::new(&device, vocabulary, &sequences, true);
    let rows: Vec<Vec<f32>> = (0..20).map(|i| logits(rng, 3000, SPREADS[i % 4])).collect();
    let order: Vec<i32> = (0..20).collect();
    for (answer, row) in slots.sample(&order, &rows).into_iter().zip(&rows) {
        let answer = answer.expect("no padding");
        let expected = cpu::score(row, TokenId(answer.token as u32), 0).logprob;
        let difference = f64::from(answer.logprob) - f64::from(expected);
        assert!(
            difference.abs() <= 0.5f64.powi(18) * f64::from(expected.abs().max(1.0)),
            "{answer:?} {expected}"
        );
    }
}

#[test]
fn parameters_reach_the_device_exactly() {
    let mut params = SamplingParams { top_p: 0.95, top_k: 7, ..SamplingParams::greedy() };
    params.logit_bias = vec![(TokenId(9), 1.0), (TokenId(2), 0.5), (TokenId(9), 0.25)];
    let slot = DeviceSlot::new(&params, 3, false);
    assert_eq!(slot.top_p as f64 / 2f64.powi(63), f64::from(0.95f32));
    assert_eq!((slot.top_k, slot.n_generated, slot.n_biases, slot.uses_facts), (7, 3, 2, 1));
    let expected = [DeviceBias { token: 2, bias: 0.5 }, DeviceBias { token: 9, bias: 1.25 }];
    assert_eq!(biases(&params), expected);
    let all = DeviceSlot::new(&SamplingParams { top_p: 1.0, ..params }, 0, true);
    assert_eq!(all.top_p, 1 << 63);
}
