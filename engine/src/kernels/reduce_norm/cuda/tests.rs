//! `reduce_norm.cu` and `reduce_norm_two_shot.cu`. Sums over ranks are in a fixed order, so the
//! residual is known to the last bit. The norm is held against float64: its bound is
//! [`N_ROUNDINGS`] roundings before the one to the output's type. A sum of 2,048 squares in a block
//! loses under 8 + 5 + 8, the blocks' sum 8, all of which the root halves; mean, eps, root,
//! quotient and two products add their own.

use half::bf16;

use super::{Launch, Norm, Output, TwoShot, config, from_own, launch};
use crate::device::cuda::testing::TestDevice;
use crate::device::{Deferred, DevicePtr, DeviceView, Element, WeightFactors};
use crate::kernels::ahead::Ahead;
use crate::kernels::launching::{Exchange, N_RANKS_MAX};
use crate::kernels::testing::device::{Rounding, assert_rounded, bf16s, sampled};
use crate::kernels::testing::ranks::alone_as;
use crate::kernels::testing::traffic::assert_frugal;
use crate::kernels::testing::{ROUNDING, Rng, e4m3_value};

mod meetings;

const N_ROUNDINGS: f64 = 22.0;
const EPS: f32 = 1e-5;
const STATIC_SCALE: f32 = 0.019;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Bf16,
    Static,
    PerToken,
}

const KINDS: [Kind; 3] = [Kind::Bf16, Kind::Static, Kind::PerToken];

/// Where the partial results lie, and how their ranks meet.
#[derive(Clone, Copy)]
struct Meeting<'a> {
    partials: [DevicePtr; N_RANKS_MAX],
    exchange: Exchange,
    /// Where every rank has what this one has at an address; none to sum in one shot.
    everywhere: Option<&'a dyn Fn(DevicePtr) -> [DevicePtr; N_RANKS_MAX]>,
}

impl Meeting<'_> {
    /// Whether this rank finishes the rows of a token.
    fn finishes(&self, token: usize) -> bool {
        let Exchange { n_ranks, rank, .. } = self.exchange;
        self.everywhere.is_none() || token % n_ranks == rank
    }
}

/// What goes in, the same numbers on every rank.
struct Inputs {
    n_tokens: usize,
    hidden: usize,
    /// Of each rank, `[n_tokens, hidden]`.
    partials: Vec<Vec<bf16>>,
    /// None for a stream that begins here.
    residual: Option<Vec<f32>>,
    weight: Vec<f32>,
    /// Of rows and of tokens, where the sum lacks them.
    factors: Option<(Vec<f32>, Vec<f32>)>,
    /// Tokens whose rows are wanted; none for all.
    rows: Option<Vec<i32>>,
}

/// What comes out.
struct Outcome {
    residual: Vec<f32>,
    /// `[n_rows, hidden]` by value.
    out: Vec<f64>,
    scales: Vec<f32>,
}

impl Inputs {
    fn new(seed: u64, n_ranks: usize, n_tokens: usize, hidden: usize) -> Inputs {
        let mut rng = Rng::new(seed);
        let n = n_tokens * hidden;
        Inputs {
            n_tokens,
            hidden,
            partials: (0..n_ranks).map(|_| bf16s(&mut rng, n, 2.0)).collect(),
            residual: Some(rng.numbers(n).iter().map(|x| x * 5.0).collect()),
            weight: rng.numbers(hidden),
            factors: None,
            rows: None,
        }
    }

    fn with_factors(mut self) -> Inputs {
        let mut rng = Rng::new(7);
        let mut some = |n: usize| (0..n).map(|_| 0.5 + rng.number().abs()).collect();
        self.factors = Some((some(self.hidden), some(self.n_tokens)));
        self
    }

    /// One token of it.
    fn alone(&self, token: usize) -> Inputs {
        let row = token * self.hidden..(token + 1) * self.hidden;
        Inputs {
            n_tokens: 1,
            hidden: self.hidden,
            partials: self.partials.iter().map(|partial| partial[row.clone()].to_vec()).collect(),
            residual: self.residual.as_ref().map(|residual| residual[row].to_vec()),
            weight: self.weight.clone(),
            factors: self
                .factors
                .as_ref()
                .map(|(rows, tokens)| (rows.clone(), vec![tokens[token]])),
            rows: None,
        }
    }

    fn rows(&self) -> Vec<i32> {
        self.rows.clone().unwrap_or_else(|| (0..self.n_tokens as i32).collect())
    }

    /// Weights of which no result depends: there are some where a test has factors.
    fn ahead(&self, device: &TestDevice) -> Option<Ahead> {
        self.factors.as_ref()?;
        let (n_rows, n_cols) = (37, 1000);
        let first = device.poisoned::<u8>(n_rows * n_cols);
        let element = Element::F8;
        Ahead::new(DeviceView { first, element, n_rows, n_cols, stride: n_cols }, self.n_tokens)
    }

    /// Partial results are in the ranks' memory already. Every other array is new.
    fn run(&self, device: &TestDevice, kind: Kind, meeting: Meeting<'_>) -> Outcome {
        let (n, hidden) = (self.n_tokens * self.hidden, self.hidden);
        let n_rows = self.rows().len();
        let scales = device.poisoned::<f32>(n_rows);
        let is_bf16 = kind == Kind::Bf16;
        let out = device.poisoned::<u8>(n_rows * hidden * if is_bf16 { 2 } else { 1 });
        let output = match kind {
            Kind::Bf16 => Output::Bf16,
            Kind::Static => Output::E4m3(STATIC_SCALE),
            Kind::PerToken => Output::E4m3PerToken(scales),
        };
        let weight = device.upload(&self.weight);
        let norm = Norm { weight, eps: EPS, out, output };
        // Where the stream begins there is nothing to read but poison.
        let residual = match &self.residual {
            Some(residual) => device.upload(residual),
            None => device.poisoned::<f32>(n),
        };
        let scales_of = |(rows, tokens): &(Vec<f32>, Vec<f32>)| Deferred::Scales {
            weights: WeightFactors::PerRow(device.upload(rows)),
            tokens: Some(device.upload(tokens)),
        };
        let two_shot = meeting
            .everywhere
            .map(|everywhere| TwoShot { outs: everywhere(out), scales: everywhere(scales) });
        let args = Launch {
            partials: meeting.partials,
            exchange: meeting.exchange,
            two_shot,
            scales: self.factors.as_ref().map_or(Deferred::Nothing, scales_of),
            residual_in: if self.residual.is_some() { residual } else { DevicePtr::NULL },
            residual_out: if self.rows.is_some() { DevicePtr::NULL } else { residual },
            rows: self.rows.as_ref().map_or(DevicePtr::NULL, |rows| device.upload(rows)),
            n_rows,
            hidden,
            norm,
            ahead: self.ahead(device),
        };
        launch(&device.exec, &args).expect("it is launched");
        let out = match is_bf16 {
            true => {
                device.download::<bf16>(out, n_rows * hidden).iter().map(|x| x.to_f64()).collect()
            }
            false => {
                device.download::<u8>(out, n_rows * hidden).into_iter().map(e4m3_value).collect()
            }
        };
        let scales = device.download(scales, n_rows);
        Outcome { residual: device.download(residual, n), out, scales }
    }

    /// On one device, which sums nothing.
    fn run_alone(&self, device: &TestDevice, kind: Kind) -> Outcome {
        let mut partials = [DevicePtr::NULL; N_RANKS_MAX];
        partials[0] = device.upload(&self.partials[0]);
        let exchange = Exchange::ALONE;
        self.run(device, kind, Meeting { partials, exchange, everywhere: None })
    }

    /// The stream of a token after the sum, bit for bit.
    fn summed(&self, token: usize) -> Vec<f32> {
        let element = |col: usize| {
            let at = token * self.hidden + col;
            let first = self.partials[0][at].to_f32();
            let rest = self.partials[1..].iter();
            let mut sum = rest.fold(first, |sum, partial| sum + partial[at].to_f32());
            if let Some((rows, tokens)) = &self.factors {
                sum = sum * rows[col] * tokens[token];
            }
            self.residual.as_ref().map_or(0.0, |residual| residual[at]) + sum
        };
        (0..self.hidden).map(element).collect()
    }

    fn check(&self, outcome: &Outcome, kind: Kind, what: &str) {
        self.check_owned(outcome, kind, |_| true, what);
    }

    /// The same where only some tokens' residual is to be as it should: that of the others must not
    /// be touched.
    fn check_owned(
        &self,
        outcome: &Outcome,
        kind: Kind,
        is_owned: impl Fn(usize) -> bool,
        what: &str,
    ) {
        for row in sampled(self.rows().len()) {
            let what = format!("{what} {kind:?} row {row} of {}", self.hidden);
            let token = self.rows()[row];
            let out = &outcome.out[row * self.hidden..][..self.hidden];
            if token < 0 {
                assert!(out.iter().all(|x| x.is_nan()), "{what}: padding is written");
                continue;
            }
            let summed = self.summed(token as usize);
            if self.rows.is_none() {
                let at = row * self.hidden..(row + 1) * self.hidden;
                let expected = match (&self.residual, is_owned(row)) {
                    (_, true) => summed.clone(),
                    (Some(before), false) => before[at.clone()].to_vec(),
                    (None, false) => vec![f32::from_bits(u32::MAX); self.hidden],
                };
                let is_same = bits(&outcome.residual[at]) == bits(&expected);
                assert!(is_same, "{what}: the residual differs");
            }
            self.check_norm(&summed, out, (kind, outcome.scales[row]), &what);
        }
    }

    fn check_norm(&self, x: &[f32], out: &[f64], (kind, scale): (Kind, f32), what: &str) {
        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let factor = (squares / self.hidden as f64 + f64::from(EPS)).sqrt().recip();
        let normed = |(x, w): (&f32, &f32)| f64::from(*x) * factor * f64::from(*w);
        let expected: Vec<f64> = x.iter().zip(&self.weight).map(normed).collect();
        let loss = N_ROUNDINGS * ROUNDING;
        let (rounding, scale) = match kind {
            Kind::Bf16 => (Rounding::Bf16, 1.0),
            Kind::Static => {
                let scale = f64::from(STATIC_SCALE);
                (Rounding::E4m3 { scale }, scale)
            }
            Kind::PerToken => {
                let greatest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                let scale = f64::from(scale);
                let off = (scale * 448.0 / greatest - 1.0).abs();
                assert!(off <= loss + 2.0 * ROUNDING, "{what}: scale {scale:e} is off by {off:e}");
                (Rounding::E4m3 { scale }, scale)
            }
        };
        for (col, (&value, &got)) in expected.iter().zip(out).enumerate() {
            let expected = (value, value.abs() * (loss + ROUNDING));
            assert_rounded(got * scale, rounding, expected, &format!("{what} column {col}"));
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn one_rank_adds_and_normalises() {
    let device = TestDevice::open(0);
    for (i, (n_tokens, hidden)) in
        [(1, 16_384), (3, 8192), (256, 16_384), (5, 5120), (7, 128), (2, 8), (2, 2056)]
            .into_iter()
            .enumerate()
    {
        let inputs = Inputs::new(141 + i as u64, 1, n_tokens, hidden);
        let inputs = if i % 2 == 0 { inputs } else { inputs.with_factors() };
        // The largest once: the others differ in what they write alone.
        let kinds = if n_tokens == 256 { &KINDS[2..3] } else { &KINDS };
        for &kind in kinds {
            inputs.check(&inputs.run_alone(&device, kind), kind, "alone");
        }
    }
}

#[test]
fn a_stream_begins_with_zeroes() {
    let device = TestDevice::open(0);
    let mut inputs = Inputs::new(151, 1, 3, 2048);
    inputs.residual = None;
    for kind in KINDS {
        inputs.check(&inputs.run_alone(&device, kind), kind, "begin");
    }
}

#[test]
fn rows_are_picked_and_the_stream_is_left_alone() {
    let device = TestDevice::open(0);
    let mut inputs = Inputs::new(152, 1, 9, 16_384);
    inputs.rows = Some(vec![8, -1, 0, 5]);
    let outcome = inputs.run_alone(&device, Kind::Bf16);
    inputs.check(&outcome, Kind::Bf16, "picked");
    assert_eq!(Some(outcome.residual), inputs.residual);
}

#[test]
fn nan_stays_in_its_row_and_zeroes_stay_finite() {
    let device = TestDevice::open(0);
    let mut inputs = Inputs::new(153, 1, 3, 2048);
    inputs.partials[0][2048] = bf16::NAN;
    inputs.partials[0][..2048].fill(bf16::ZERO);
    inputs.residual.as_mut().expect("there is one")[..2048].fill(0.0);
    let outcome = inputs.run_alone(&device, Kind::PerToken);
    assert!(outcome.out[..2048].iter().all(|x| *x == 0.0), "a row of zeroes");
    assert_eq!(outcome.scales[..2], [1.0, 1.0]);
    assert!(outcome.out[2048..4096].iter().all(|x| x.is_nan()), "a row with NaN");
    assert!(outcome.out[4096..].iter().all(|x| !x.is_nan()), "the row after it");
}

#[test]
fn a_token_alone_has_the_same_bits() {
    let device = TestDevice::open(0);
    let inputs = Inputs::new(154, 1, 40, 16_384).with_factors();
    let batch = inputs.run_alone(&device, Kind::PerToken);
    for token in sampled(40) {
        let row = token * 16_384..(token + 1) * 16_384;
        let alone = inputs.alone(token).run_alone(&device, Kind::PerToken);
        assert_eq!(alone.out, batch.out[row.clone()], "token {token}");
        assert_eq!(alone.residual, batch.residual[row], "token {token}");
        assert_eq!(alone.scales[0], batch.scales[token], "token {token}");
    }
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    let hidden = 16_384;
    let inputs = Inputs::new(155, 1, 1, hidden);
    // A partial result, the residual twice, weights and the output.
    for (kind, kernel, of_output) in [
        (Kind::Bf16, "reduce_norm_bf16", 2),
        (Kind::Static, "reduce_norm_e4m3", 1),
        (Kind::PerToken, "reduce_norm_e4m3_token", 1),
    ] {
        let fewest_bytes = (2 + 4 + 4 + 4 + of_output) * hidden;
        assert_frugal(kernel, fewest_bytes, |device| drop(inputs.run_alone(device, kind)));
        // Each of eight ranks' partial results.
        let fewest_bytes = fewest_bytes + 7 * 2 * hidden;
        assert_frugal(kernel, fewest_bytes, |device| {
            let partials = [(); N_RANKS_MAX].map(|()| device.upload(&inputs.partials[0]));
            let exchange = alone_as(device, N_RANKS_MAX);
            drop(inputs.run(device, kind, Meeting { partials, exchange, everywhere: None }));
        });
    }
}

#[test]
fn hardly_more_is_moved_in_two_shots_than_must_be() {
    let hidden = 16_384;
    // A row of which each rank has one.
    let inputs = Inputs::new(156, 8, 8, hidden);
    for (kind, kernel, of_output) in [
        (Kind::Bf16, "reduce_norm_two_shot_bf16", 2),
        (Kind::Static, "reduce_norm_two_shot_e4m3", 1),
        (Kind::PerToken, "reduce_norm_two_shot_e4m3_token", 1),
    ] {
        // Partial results, the residual twice, weights and the output on all ranks.
        let fewest_bytes = (8 * 2 + 4 + 4 + 4 + 8 * of_output) * hidden;
        assert_frugal(kernel, fewest_bytes, |device| {
            let partials: Vec<DevicePtr> =
                inputs.partials.iter().map(|partial| device.upload(partial)).collect();
            let everywhere = |own: DevicePtr| {
                let others = [(); N_RANKS_MAX - 1].map(|()| device.poisoned::<bf16>(8 * hidden));
                std::array::from_fn(|rank| if rank == 0 { own } else { others[rank - 1] })
            };
            let meeting = Meeting {
                partials: partials.try_into().expect("one of each rank"),
                exchange: alone_as(device, N_RANKS_MAX),
                everywhere: Some(&everywhere),
            };
            let outcome = inputs.run(device, kind, meeting);
            let n_written = outcome.out.iter().filter(|x| !x.is_nan()).count();
            assert_eq!(n_written, hidden, "one row is this rank's");
            assert_eq!(device.download::<u32>(meeting.exchange.state, 2), [2, 0], "it met twice");
        });
    }
}

#[test]
fn a_rank_writes_to_itself_first() {
    let own = Exchange { n_ranks: 3, rank: 2, ..Exchange::ALONE };
    let places = [1, 2, 3, 0, 0, 0, 0, 0].map(DevicePtr);
    assert_eq!(from_own(places, own), [3, 1, 2, 0, 0, 0, 0, 0].map(DevicePtr));
}

#[test]
fn the_width_alone_decides_the_order_of_summation() {
    let launch = |n_ranks: usize, n_rows: usize, hidden: usize| Launch {
        partials: [DevicePtr::NULL; N_RANKS_MAX],
        exchange: Exchange { n_ranks, ..Exchange::ALONE },
        two_shot: None,
        scales: Deferred::Nothing,
        residual_in: DevicePtr::NULL,
        residual_out: DevicePtr::NULL,
        rows: DevicePtr::NULL,
        n_rows,
        hidden,
        norm: Norm {
            weight: DevicePtr::NULL,
            eps: EPS,
            out: DevicePtr::NULL,
            output: Output::Bf16,
        },
        ahead: None,
    };
    let config_of = |launch: &Launch| config(132, launch);
    for hidden in [128, 2048, 2056, 5120, 16_384] {
        let cluster = config_of(&launch(1, 1, hidden)).cluster;
        assert!(cluster as usize * 2048 >= hidden, "{hidden}: every column has a thread");
        for (n_ranks, n_rows) in [(1, 7), (8, 1), (8, 256), (8, 0)] {
            let config = config_of(&launch(n_ranks, n_rows, hidden));
            assert_eq!(config.cluster, cluster);
            assert!(
                config.grid[0] >= cluster && config.grid[0].is_multiple_of(cluster),
                "{config:?}"
            );
            let is_resident = n_ranks == 1 || config.grid[0] <= 264;
            assert!(is_resident, "{config:?}: all blocks must run at once");
            if n_ranks > 1 {
                let none = [DevicePtr::NULL; N_RANKS_MAX];
                let two_shot = Some(TwoShot { outs: none, scales: none });
                let owned = config_of(&Launch { two_shot, ..launch(n_ranks, n_rows, hidden) });
                let n_owned = n_rows.div_ceil(n_ranks);
                assert_eq!(owned, config_of(&launch(n_ranks, n_owned, hidden)), "{n_rows} rows");
            }
        }
    }
}
