//! Tokens laid as tiles want them.

use crate::device::HostView;

use super::super::lanes::Lanes;
use super::super::packed::{pack_pairs, round_to_pairs};
use super::PANEL_STEPS;
use super::multiply::{STEP_COLUMNS, TILE};

/// How numbers become pairs of bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// They are bf16 values already.
    Exact,
    /// To the nearest.
    Nearest,
}

/// How tokens lie: `[group, step, pair of columns, token]`, in groups of [`TILE`] tokens, or one of
/// fewer; zeroes behind the last token of a group and behind the last column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenLayout {
    n_tokens: usize,
    n_cols: usize,
}

/// `[T, K]` as tiles.
#[derive(Clone, Copy)]
pub(crate) struct TokenTiles<'a> {
    memory: &'a [f32],
    layout: TokenLayout,
    /// Of this view.
    first_group: usize,
    n_tokens: usize,
}

impl TokenLayout {
    pub(crate) fn new(n_tokens: usize, n_cols: usize) -> TokenLayout {
        TokenLayout { n_tokens, n_cols }
    }

    /// Tokens of a group.
    pub(crate) fn group_width(self) -> usize {
        self.n_tokens.min(TILE)
    }

    pub(crate) fn n_groups(self) -> usize {
        self.n_tokens.div_ceil(TILE)
    }

    /// Steps of 32 columns.
    fn n_steps(self) -> usize {
        self.n_cols.div_ceil(STEP_COLUMNS)
    }

    /// Floats of a step of a group.
    fn n_step_floats(self) -> usize {
        TILE * self.group_width()
    }

    /// Floats of a group.
    pub(crate) fn n_group_floats(self) -> usize {
        self.n_steps() * self.n_step_floats()
    }

    /// Room that all takes.
    pub(crate) fn n_floats(self) -> usize {
        self.n_groups() * self.n_group_floats()
    }

    /// What is packed at once: tokens, and the floats and columns that become of them.
    pub(crate) fn piece(self) -> (usize, usize, usize) {
        (TILE, PANEL_STEPS * self.n_step_floats(), PANEL_STEPS * STEP_COLUMNS)
    }
}

impl<'a> TokenTiles<'a> {
    /// Of memory in which every piece was packed.
    pub(crate) fn new(layout: TokenLayout, memory: &'a [f32]) -> TokenTiles<'a> {
        let memory = &memory[..layout.n_floats()];
        TokenTiles { memory, layout, first_group: 0, n_tokens: layout.n_tokens }
    }

    /// Tokens `begin..end` alone, whole groups but for the last.
    pub(crate) fn tokens(self, begin: usize, end: usize) -> TokenTiles<'a> {
        assert!(begin <= end && end <= self.n_tokens, "{begin}..{end} of {}", self.n_tokens);
        let is_whole = |at: usize| at.is_multiple_of(TILE) || at == self.n_tokens;
        assert!(is_whole(begin) && is_whole(end), "{begin}..{end} are no groups");
        let first_group = self.first_group + begin / TILE;
        TokenTiles { first_group, n_tokens: end - begin, ..self }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub(super) fn group_width(&self) -> usize {
        self.layout.group_width()
    }

    pub(super) fn n_groups(&self) -> usize {
        self.n_tokens.div_ceil(TILE)
    }

    pub(super) fn n_steps(&self) -> usize {
        self.layout.n_steps()
    }

    /// Some steps of a group.
    #[inline(always)]
    pub(super) fn group(&self, group_idx: usize, (step, n_steps): (usize, usize)) -> &'a [f32] {
        let n_step_floats = self.layout.n_step_floats();
        let begin = (self.first_group + group_idx) * self.layout.n_group_floats();
        &self.memory[begin + step * n_step_floats..][..n_steps * n_step_floats]
    }
}

/// Packs a piece: the columns `x` of a group's tokens. Whether all were bf16 where they are to be;
/// if not, what lies in `out` is worth nothing.
#[inline(always)]
pub(in super::super) fn pack_tokens<S: Lanes>(
    s: S,
    x: HostView<'_>,
    (rounding, width): (Rounding, usize),
    out: &mut [f32],
) -> bool {
    const N_PAIRS: usize = PANEL_STEPS * TILE;
    let mut pairs = [[0.0; N_PAIRS]; TILE];
    let n_pairs = out.len() / width;
    let mut is_exact = true;
    for (t, pairs) in pairs.iter_mut().enumerate().take(x.n_rows()) {
        match rounding {
            Rounding::Exact => is_exact &= pack_pairs(s, x.row(t), &mut pairs[..n_pairs]),
            Rounding::Nearest => round_to_pairs(s, x.row(t), &mut pairs[..n_pairs]),
        }
    }
    if width < TILE {
        for (k, out) in out.chunks_exact_mut(width).enumerate() {
            for (out, pairs) in out.iter_mut().zip(&pairs) {
                *out = pairs[k];
            }
        }
        return is_exact;
    }
    for (step, out) in out.as_chunks_mut::<TILE>().0.chunks_exact_mut(TILE).enumerate() {
        let mut v = [s.splat(0.0); TILE];
        for t in 0..TILE {
            v[t] = s.load(pairs[t].as_chunks().0[step..].first().expect("a step of the piece"));
        }
        let v = s.transposed(v);
        for k in 0..TILE {
            s.store(v[k], &mut out[k]);
        }
    }
    is_exact
}
