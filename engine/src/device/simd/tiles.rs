//! Products by tiles of sixteen tokens and sixteen outputs, for processors that multiply those at
//! once. Every level can: the others do it by vectors, bit for bit the same, for tests.
//!
//! Weights were packed when the model was loaded, see [`TileWeights`], and are widened into tiles
//! as they are read: for few tokens a unit at a time, between one multiplication and the next, so
//! that memory is always being read; for many a panel of columns of all outputs at once, which then
//! meets all tokens. Tokens come as tiles too, see [`TokenTiles`].
//!
//! A sum takes 32 columns at a time, from zero on: those of even number are one chain of
//! multiply-adds, those of odd number another, and the sum of the two is added to what was there.
//! So few tokens and many have the same bits, however outputs, tokens and columns are cut.

mod alone;
mod multiply;
#[cfg(test)]
mod tests;
mod tokens;
mod weights;

use ::weights::{Dtype, WeightScale};

use crate::device::{Aligned, HostView, HostViewMut};

use super::element::{LINE_BYTES, widened_factor};
use super::lanes::Lanes;
use super::product::row_factors;
use super::rows::{quantized_lanes, silu_times_lanes};

use alone::alone;

pub(super) use multiply::{N_GROUPS, N_STRIPS, Sums, TILE, Tiles, VectorTiles, WeightStep};
#[cfg(target_arch = "x86_64")]
pub(super) use multiply::{STEP_COLUMNS, check_steps};
pub(super) use tokens::pack_tokens;
pub(crate) use tokens::{Rounding, TokenLayout, TokenTiles};
use weights::{Bf16Units, E4m3Units, PAIR_ROWS, TileElement};
pub(crate) use weights::{Stored, TileWeights, pack_pair};

/// Tokens up to which weights are widened a little at a time.
const N_TOKENS_FEW: usize = N_GROUPS * TILE;

/// Most pairs of strips of a product.
pub(crate) const N_PAIRS_MAX: usize = 8;

/// Most tokens of one: their sums stay in the second-level cache.
pub(crate) const TILE_TOKENS: usize = 512;

/// Steps of a panel: two groups' tokens stay in the first-level cache.
const PANEL_STEPS: usize = 8;

/// A tile of an output.
pub(crate) struct TileProduct<'a> {
    /// `[T, K]`
    pub(crate) x: HostView<'a>,
    /// The same as tiles.
    pub(crate) tokens: TokenTiles<'a>,
    /// `[N, K]`
    pub(crate) weights: TileRows<'a>,
    /// `[T]`: of the inputs.
    pub(crate) x_scales: &'a [f32],
    /// Quantizes gated outputs by this.
    pub(crate) out_scale: Option<f32>,
    /// `[T, N]`: sums times the weights' scale, then times the input's; of a gate and what it
    /// gates, `silu` of the one times the other.
    pub(crate) out: HostViewMut<'a>,
}

/// Packed weights of outputs from some one on, with their scales.
#[derive(Clone, Copy)]
pub(crate) struct TileRows<'a> {
    /// `[N_all, K]`
    pub(crate) weights: &'a TileWeights,
    /// The first output, which begins a pair of strips.
    pub(crate) begin: usize,
    /// Of all rows: of a gate's and of what it gates, or the same twice.
    pub(crate) scales: [&'a WeightScale; N_STRIPS],
}

/// What a thread needs.
pub(crate) struct TileScratch {
    /// `[N_PAIRS_MAX, PANEL_STEPS]` of [`WeightStep`].
    steps: Aligned,
    /// `[TILE_TOKENS / TILE / N_GROUPS, N_PAIRS_MAX]` of [`Sums`].
    sums: Aligned,
}

impl TileScratch {
    pub(crate) fn new() -> TileScratch {
        TileScratch {
            steps: Aligned::new(N_PAIRS_MAX * PAIR_ROWS * PANEL_STEPS * TILE),
            sums: Aligned::new(TILE_TOKENS * N_PAIRS_MAX * PAIR_ROWS),
        }
    }

    fn parts(&mut self) -> (&mut [WeightStep], &mut [Sums]) {
        let steps = self.steps.as_chunks_mut::<TILE>().0.as_chunks_mut::<TILE>().0;
        let sums = self.sums.as_chunks_mut::<TILE>().0.as_chunks_mut::<TILE>().0;
        (steps.as_chunks_mut().0, sums.as_chunks_mut().0.as_chunks_mut().0)
    }
}

impl<'a> TileRows<'a> {
    /// All units of the pair of strips that gives output `n` and those after it.
    #[inline(always)]
    fn units(&self, n: usize) -> &'a [WeightStep] {
        self.weights.units((self.begin + n) / self.weights.n_pair_outputs())
    }

    /// The units that `n_steps` from `step`, which begins one, on are made of.
    #[inline(always)]
    fn panel<E: TileElement>(&self, n: usize, (step, n_steps): (usize, usize)) -> &'a [WeightStep] {
        &self.units(n)[step / E::N_STEPS..(step + n_steps).div_ceil(E::N_STEPS)]
    }

    /// What sums of a strip, whose first output is `n`, are multiplied by. The power of two that
    /// widening left out is exact wherever it goes, and goes with the scale.
    #[inline(always)]
    fn factors(&self, strip_idx: usize, n: usize) -> [f32; TILE] {
        let factor = widened_factor(self.weights.dtype());
        row_factors(factor, self.scales[strip_idx], self.begin + n)
    }
}

#[inline(always)]
pub(super) fn by_tiles<S: Lanes>(s: S, product: TileProduct<'_>, scratch: &mut TileScratch) {
    match product.weights.weights.dtype() {
        Dtype::F8E4m3 => by_tiles_of::<S, E4m3Units>(s, product, scratch),
        Dtype::Bf16 => by_tiles_of::<S, Bf16Units>(s, product, scratch),
        dtype => panic!("tiles of {dtype:?}"),
    }
}

#[inline(always)]
fn by_tiles_of<S: Lanes, E: TileElement>(
    s: S,
    product: TileProduct<'_>,
    scratch: &mut TileScratch,
) {
    let (n_tokens, n_rows) = (product.out.n_rows(), product.out.n_cols());
    assert_eq!((n_tokens, n_tokens), (product.tokens.n_tokens(), product.x_scales.len()), "[T]");
    let TileRows { weights, begin, .. } = product.weights;
    assert!(n_tokens <= TILE_TOKENS, "[{n_tokens}, {n_rows}]");
    assert!(n_rows <= N_PAIRS_MAX * weights.n_pair_outputs(), "[{n_tokens}, {n_rows}]");
    assert!(begin.is_multiple_of(weights.n_pair_outputs()), "{begin} begins no strip");
    assert!(begin + n_rows <= weights.n_outputs(), "[N]");
    match n_tokens {
        1 if E::IS_NORMAL => return alone::<S, E, 1>(s, product),
        2 if E::IS_NORMAL => return alone::<S, E, 2>(s, product),
        _ => {}
    }
    // The layout of tiles is the thread's until the product is done.
    let mut tiles = s.tiles(product.tokens.group_width());
    let (steps, sums) = scratch.parts();
    match n_tokens {
        ..=N_TOKENS_FEW => few::<S, E>(s, &mut tiles, product, (steps, &mut sums[0])),
        _ => many::<S, E>(s, &mut tiles, product, (steps, sums)),
    }
}

/// All of a product with one group of tokens or two.
#[inline(always)]
fn few<S: Lanes, E: TileElement>(
    s: S,
    tiles: &mut S::Tiles,
    mut product: TileProduct<'_>,
    (steps, sums): (&mut [WeightStep], &mut Sums),
) {
    let TileProduct { tokens, weights, .. } = product;
    let n_steps = tokens.n_steps();
    // A unit is widened while tiles of the one before it are multiplied.
    let (mut now, rest) = steps.split_at_mut(E::N_STEPS);
    let mut next = &mut rest[..E::N_STEPS];
    for n in (0..product.out.n_cols()).step_by(weights.weights.n_pair_outputs()) {
        let units = weights.units(n);
        tiles.clear();
        E::widen(s, &units[0], true, now);
        for (unit_idx, unit) in units.iter().enumerate() {
            if let Some(unit) = units.get(unit_idx + 1) {
                E::widen(s, unit, true, next);
            }
            let step = unit_idx * E::N_STEPS;
            let part = (step, E::N_STEPS.min(n_steps - step));
            let steps = &E::steps(std::slice::from_ref(unit), now)[..part.1];
            match tokens.n_groups() {
                1 => tiles.add_one(steps, tokens.group(0, part)),
                _ => tiles.add_two(steps, [tokens.group(0, part), tokens.group(1, part)]),
            }
            std::mem::swap(&mut now, &mut next);
        }
        tiles.put(sums);
        write(s, &mut product, (n, 0), sums);
    }
}

/// All of a product with many groups of tokens.
#[inline(always)]
fn many<S: Lanes, E: TileElement>(
    s: S,
    tiles: &mut S::Tiles,
    mut product: TileProduct<'_>,
    (steps, sums): (&mut [WeightStep], &mut [Sums]),
) {
    let TileProduct { tokens, weights, .. } = product;
    let n_steps = tokens.n_steps();
    let n_pair_outputs = weights.weights.n_pair_outputs();
    let n_pairs = product.out.n_cols().div_ceil(n_pair_outputs);
    let n_twos = tokens.n_groups().div_ceil(N_GROUPS);
    for step in (0..n_steps).step_by(PANEL_STEPS) {
        let n_panel = PANEL_STEPS.min(n_steps - step);
        for (pair_idx, steps) in steps.chunks_exact_mut(PANEL_STEPS).enumerate().take(n_pairs) {
            let panel = weights.panel::<E>(pair_idx * n_pair_outputs, (step, n_panel));
            for (unit, steps) in panel.iter().zip(steps.chunks_exact_mut(E::N_STEPS)) {
                E::widen(s, unit, false, steps);
            }
        }
        for two_idx in 0..n_twos {
            let group_idx = N_GROUPS * two_idx;
            let group = tokens.group(group_idx, (step, n_panel));
            let has_two = group_idx + 1 < tokens.n_groups();
            for pair_idx in 0..n_pairs {
                let panel = weights.panel::<E>(pair_idx * n_pair_outputs, (step, n_panel));
                // What is multiplied next lies behind what is now. Of tokens every other line is
                // asked for: the processor brings its neighbour.
                ask_for_part(s, group, N_GROUPS, (pair_idx, n_pairs), 2 * LINE_BYTES);
                ask_for_part(s, panel, 1, (two_idx, n_twos), LINE_BYTES);
                let sums = &mut sums[two_idx * n_pairs + pair_idx];
                match step {
                    0 => tiles.clear(),
                    _ => tiles.resume(sums),
                }
                let steps = &E::steps(panel, &steps[pair_idx * PANEL_STEPS..])[..n_panel];
                if has_two {
                    let next = tokens.group(group_idx + 1, (step, n_panel));
                    tiles.add_two(steps, [group, next]);
                } else {
                    tiles.add_one(steps, group);
                }
                tiles.put(sums);
                if step + n_panel == n_steps {
                    write(s, &mut product, (pair_idx * n_pair_outputs, group_idx * TILE), sums);
                }
            }
        }
    }
    s.finish_streams();
}

/// Asks for part `idx` of `n` of what lies behind `n_such` such slices, if anything does: one line
/// every `stride` bytes, no nearer than into the second-level cache.
#[inline(always)]
fn ask_for_part<S: Lanes, T>(
    s: S,
    slice: &[T],
    n_such: usize,
    (idx, n): (usize, usize),
    stride: usize,
) {
    let n_part_bytes = (n_such * size_of_val(slice)).div_ceil(n);
    let begin = n_such * size_of_val(slice) + idx * n_part_bytes;
    for at in (begin..begin + n_part_bytes).step_by(stride) {
        s.prefetch_outer(slice.as_ptr().cast::<u8>().wrapping_add(at));
    }
}

/// Writes the outputs of two strips and one or two groups: `n` is the first of these outputs, `t`
/// the first token.
#[inline(always)]
fn write<S: Lanes>(s: S, product: &mut TileProduct<'_>, (n, t): (usize, usize), sums: &Sums) {
    let n_tokens = product.out.n_rows();
    for (group_idx, [first, second]) in sums.iter().enumerate() {
        let t = t + group_idx * TILE;
        for (sums, t) in first.iter().zip(second).zip(t..n_tokens) {
            write_token(s, product, (n, t), [s.load(sums.0), s.load(sums.1)]);
        }
    }
}

/// Writes the outputs of two strips, as far as there are such, for one token.
#[inline(always)]
fn write_token<S: Lanes>(
    s: S,
    product: &mut TileProduct<'_>,
    (n, t): (usize, usize),
    [first, second]: [S::V; N_STRIPS],
) {
    let weights = product.weights;
    let x_scale = s.splat(product.x_scales[t]);
    let first = s.mul(s.mul(first, s.load(&weights.factors(0, n))), x_scale);
    if weights.weights.is_gated() {
        let second = s.mul(s.mul(second, s.load(&weights.factors(1, n))), x_scale);
        let activated = silu_times_lanes(s, first, second);
        let outputs = match product.out_scale {
            Some(scale) => quantized_lanes(s, activated, s.splat(scale)),
            None => activated,
        };
        write_strip(s, product, (n, t), outputs);
        return;
    }
    write_strip(s, product, (n, t), first);
    if n + TILE < product.out.n_cols() {
        let second = s.mul(s.mul(second, s.load(&weights.factors(1, n + TILE))), x_scale);
        write_strip(s, product, (n + TILE, t), second);
    }
}

/// Writes the outputs of a strip, as far as there are such, for one token.
#[inline(always)]
fn write_strip<S: Lanes>(s: S, product: &mut TileProduct<'_>, (n, t): (usize, usize), v: S::V) {
    let is_many = product.out.n_rows() > N_TOKENS_FEW;
    let out = &mut product.out.row_mut(t)[n..];
    if let Some((out, _)) = out.split_first_chunk_mut() {
        // Of many tokens no cache keeps what is written until it is read.
        if is_many { s.stream(v, out) } else { s.store(v, out) }
    } else {
        let mut last = [0.0; TILE];
        s.store(v, &mut last);
        out.copy_from_slice(&last[..out.len()]);
    }
}
