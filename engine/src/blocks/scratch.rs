//! Step-local memory, allocated at boot for the widest block and the fullest step.

use weights::InputScale;

use crate::device::simd::TokenLayout;
use crate::device::{ArrayMut, Buffer, DevicePtr, Element, Projection, View, ViewMut};
use crate::loading::Carve;

/// What sub-blocks write and read within a step. A device stores the residual stream as f32, a
/// projection's input as e4m3 where it is quantized, everything else as bf16.
pub(crate) struct Scratch {
    pub(crate) hidden_size: usize,
    /// The residual stream, `[n_tokens, hidden]`.
    pub(crate) residual: Buffer,
    /// A first projection's input, `[n_tokens, hidden]`.
    pub(crate) normed: Buffer,
    /// A factor per token of `normed`.
    pub(crate) normed_scales: Buffer,
    /// The widest first projection, `[n_tokens, …]`.
    pub(crate) wide: Buffer,
    /// Rotated queries, where a device does not leave them in `wide`.
    pub(crate) rotated: Option<Buffer>,
    /// What the second projection takes, `[n_tokens, …]`.
    pub(crate) inner: Buffer,
    /// The same, where a device has quantized it in a step of its own.
    pub(crate) inner_quantized: Option<Buffer>,
    /// A factor per token of `inner`.
    pub(crate) inner_scales: Buffer,
    /// A sub-block's result on this rank, `[n_tokens, hidden]`.
    pub(crate) partial: Partials,
}

/// Where partial results lie. Those that are summed in one shot take turns: what other ranks'
/// kernels read at one meeting of the ranks may be written again after the next. A step's first has
/// a place of its own, so that no count of sub-blocks lets two steps meet in one. Of the others all
/// reading has ended when the sum is there.
pub(crate) struct Partials {
    /// For any number of tokens.
    any: Buffer,
    one_shot: Option<OneShotPartials>,
}

struct OneShotPartials {
    /// The first of a step, and the two that follow in turn.
    buffers: [Buffer; 3],
    n_tokens_max: usize,
    turn: usize,
}

impl Partials {
    /// The place of a step's first.
    pub(crate) fn first(&mut self, n_tokens: usize) -> &mut Buffer {
        if let Some(one_shot) = &mut self.one_shot {
            one_shot.turn = 0;
        }
        self.current(n_tokens)
    }

    /// The place of the one after the current one.
    pub(crate) fn next(&mut self, n_tokens: usize) -> &mut Buffer {
        if let Some(one_shot) = &mut self.one_shot {
            one_shot.turn = if one_shot.turn == 1 { 2 } else { 1 };
        }
        self.current(n_tokens)
    }

    /// The place of what was last asked for.
    pub(crate) fn current(&mut self, n_tokens: usize) -> &mut Buffer {
        match &mut self.one_shot {
            Some(one_shot) if n_tokens <= one_shot.n_tokens_max => {
                &mut one_shot.buffers[one_shot.turn]
            }
            _ => &mut self.any,
        }
    }
}

/// Where a kernel puts the second projection's input.
pub(crate) struct Inner<'a> {
    /// What the kernel itself quantizes by.
    pub(crate) input: InputScale,
    pub(crate) out: ViewMut<'a>,
    pub(crate) scales: ArrayMut<'a, f32>,
}

/// Widths that decide how large [`Scratch`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Widths {
    pub(crate) hidden: usize,
    /// Columns of the widest first projection (q, k, v together; gate and up together).
    pub(crate) wide: usize,
    /// Columns of the widest queries.
    pub(crate) queries: usize,
    /// Columns of the widest second projection's input.
    pub(crate) inner: usize,
}

/// What a device's [`Scratch`] needs to know besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceScratch {
    pub(crate) widths: Widths,
    pub(crate) n_tokens: usize,
    /// Whether some second projection's input is quantized token by token.
    pub(crate) quantizes_inner: bool,
    /// Where partial results of up to `n_one_shot_tokens` tokens take turns.
    pub(crate) one_shot_partials: Option<[DevicePtr; 3]>,
    pub(crate) n_one_shot_tokens: usize,
}

impl Widths {
    /// Floats that the processor packs a projection's input in, one way or the other.
    pub(crate) fn n_packed_floats(&self, n_tokens: usize) -> usize {
        let n_cols = self.hidden.max(self.inner);
        let as_tiles = TokenLayout::new(n_tokens, n_cols).n_floats();
        as_tiles.max(n_tokens * n_cols.next_multiple_of(32))
    }
}

impl Scratch {
    pub(crate) fn new(widths: Widths, n_tokens: usize) -> Scratch {
        Scratch {
            hidden_size: widths.hidden,
            residual: Buffer::host(n_tokens * widths.hidden),
            normed: Buffer::host(n_tokens * widths.hidden),
            normed_scales: Buffer::host(n_tokens),
            wide: Buffer::host(n_tokens * widths.wide),
            rotated: None,
            inner: Buffer::host(n_tokens * widths.inner),
            inner_quantized: None,
            inner_scales: Buffer::host(n_tokens),
            partial: Partials { any: Buffer::host(n_tokens * widths.hidden), one_shot: None },
        }
    }

    /// The same on a device.
    pub(crate) fn on_device(config: DeviceScratch, carve: &mut Carve) -> Scratch {
        let DeviceScratch { widths, n_tokens, n_one_shot_tokens, .. } = config;
        let mut buffer = |element: Element, n_cols: usize| {
            let n_bytes = n_tokens * n_cols * element.n_bytes();
            Buffer::Device { first: carve.take(n_bytes), n_bytes }
        };
        let n_bytes = n_one_shot_tokens * widths.hidden * Element::Bf16.n_bytes();
        let one_shot = config.one_shot_partials.map(|addresses| OneShotPartials {
            buffers: addresses.map(|first| Buffer::Device { first, n_bytes }),
            n_tokens_max: n_one_shot_tokens,
            turn: 0,
        });
        Scratch {
            hidden_size: widths.hidden,
            residual: buffer(Element::F32, widths.hidden),
            normed: buffer(Element::Bf16, widths.hidden),
            normed_scales: buffer(Element::F32, 1),
            wide: buffer(Element::Bf16, widths.wide),
            rotated: Some(buffer(Element::Bf16, widths.queries)),
            inner: buffer(Element::Bf16, widths.inner),
            inner_quantized: config.quantizes_inner.then(|| buffer(Element::F8, widths.inner)),
            inner_scales: buffer(Element::F32, 1),
            partial: Partials { any: buffer(Element::Bf16, widths.hidden), one_shot },
        }
    }

    /// Bytes that [`Scratch::new`] allocates.
    pub(crate) fn n_bytes(widths: Widths, n_tokens: usize) -> u64 {
        let n_floats_per_token = 3 * widths.hidden + widths.wide + widths.inner + 2;
        (n_tokens * n_floats_per_token * size_of::<f32>()) as u64
    }

    /// The first projection's result of `n_cols` columns, the queries where they lie apart from it,
    /// and the place for the input of `second`.
    pub(crate) fn wide_and_inner(
        &mut self,
        n_tokens: usize,
        n_cols: usize,
        second: &Projection,
    ) -> (View<'_>, Option<&Buffer>, Inner<'_>) {
        let wide = self.wide.view(Element::Bf16, n_tokens, n_cols);
        let input = fused(second.input());
        let out = self.inner.view_mut(Element::of_input(input), n_tokens, second.n_cols());
        let inner = Inner { input, out, scales: self.inner_scales.array_mut(n_tokens) };
        (wide, self.rotated.as_ref(), inner)
    }
}

/// What the kernel before a projection that is cut by columns quantizes by: a scale per token
/// needs the other ranks' columns, and so a step of its own.
pub(crate) fn fused(input: InputScale) -> InputScale {
    match input {
        InputScale::PerToken => InputScale::None,
        known => known,
    }
}
