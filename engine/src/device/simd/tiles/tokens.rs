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

/// How tokens lie: `[panel, group, step, token, pair of columns]`, in groups of [`TILE`] tokens, or
/// one of fewer, and panels of [`PANEL_STEPS`] steps; zeroes behind the last token of a group and
/// behind the last column.
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

    fn n_panels(self) -> usize {
        self.n_steps().div_ceil(PANEL_STEPS)
    }

    /// Floats of a step of a group.
    fn n_step_floats(self) -> usize {
        TILE * self.group_width()
    }

    /// Floats of a panel of a group, which is what is packed at once.
    pub(crate) fn n_piece_floats(self) -> usize {
        PANEL_STEPS * self.n_step_floats()
    }

    /// Tokens and columns that become of it.
    pub(crate) const PIECE: (usize, usize) = (TILE, PANEL_STEPS * STEP_COLUMNS);

    /// Panels, and floats of each: `[panel, group, piece]`.
    pub(crate) fn shape(self) -> (usize, usize) {
        (self.n_panels(), self.n_groups() * self.n_piece_floats())
    }

    /// Room that all takes.
    pub(crate) fn n_floats(self) -> usize {
        self.n_panels() * self.n_groups() * self.n_piece_floats()
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

    /// Some steps of a group, all of one panel.
    #[inline(always)]
    pub(super) fn group(&self, group_idx: usize, (step, n_steps): (usize, usize)) -> &'a [f32] {
        let layout = self.layout;
        let (panel_idx, step) = (step / PANEL_STEPS, step % PANEL_STEPS);
        assert!(step + n_steps <= PANEL_STEPS, "{n_steps} steps from {step} on are two panels'");
        let piece_idx = panel_idx * layout.n_groups() + self.first_group + group_idx;
        let begin = piece_idx * layout.n_piece_floats() + step * layout.n_step_floats();
        &self.memory[begin..][..n_steps * layout.n_step_floats()]
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
    let mut pairs = [0.0; N_PAIRS];
    let mut is_exact = true;
    for t in 0..width {
        match rounding {
            _ if t >= x.n_rows() => pairs.fill(0.0),
            Rounding::Exact => is_exact &= pack_pairs(s, x.row(t), &mut pairs),
            Rounding::Nearest => round_to_pairs(s, x.row(t), &mut pairs),
        }
        let steps = out.as_chunks_mut::<TILE>().0.chunks_exact_mut(width);
        for (step, pairs) in steps.zip(pairs.as_chunks::<TILE>().0) {
            s.store(s.load(pairs), &mut step[t]);
        }
    }
    is_exact
}
