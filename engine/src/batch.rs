//! A plan as the kernels want it: positions, KV locations and emitting rows, in flat arrays that
//! are allocated once.

use scheduler::{GroupIdx, SlotIdx, StepPlan, TokenId};

use crate::cache::PageTables;
use crate::device::{Array, DevicePtr, KvLocation, RopeAngles};
use crate::kernels::attention::{AttentionRow, Rows};
use crate::kernels::rope_kv::Places;
use crate::model::DeviceInputs;

/// The tokens of a step, row after row.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) tokens: Vec<TokenId>,
    /// Position of each token in its sequence.
    pub(crate) positions: Vec<u32>,
    /// For each group, where each token's KV goes.
    pub(crate) locations: Vec<Vec<KvLocation>>,
    pub(crate) spans: Vec<Span>,
    n_rows_max: usize,
    /// Tokens whose hidden state becomes logits, in batch order.
    pub(crate) emits: Vec<EmitPoint>,
    /// Their places among the tokens alone.
    pub(crate) emitting: Vec<u32>,
}

/// A row's place in the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) slot: SlotIdx,
    pub(crate) token_idx: usize,
    pub(crate) n_tokens: usize,
    pub(crate) start: usize,
}

/// A token whose logits are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmitPoint {
    pub(crate) row_idx: usize,
    /// Of the plan's answers, the one that this token yields.
    pub(crate) answer_idx: usize,
    pub(crate) slot: SlotIdx,
    pub(crate) position: usize,
    /// Score the prompt's token at `position + 1`, if the prompt has one.
    pub(crate) scores: bool,
    /// Sample the token at `position + 1`.
    pub(crate) samples: bool,
    /// This token is a guess: nothing is sampled behind it unless the point before sampled it.
    pub(crate) candidate: Option<TokenId>,
}

/// A step's inputs, as kernels take them.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// In this machine's memory.
    Host {
        batch: &'a Batch,
        /// The batch's rows with their pages, per cache group.
        rows: &'a [Vec<AttentionRow<'a>>],
        angles: &'a RopeAngles,
    },
    /// On a device.
    Device(&'a DeviceInputs),
}

impl<'a> Inputs<'a> {
    pub(crate) fn n_tokens(&self) -> usize {
        match self {
            Inputs::Host { batch, .. } => batch.n_tokens(),
            Inputs::Device(inputs) => inputs.n_tokens(),
        }
    }

    pub(crate) fn tokens(&self) -> Array<'a, TokenId> {
        match self {
            Inputs::Host { batch, .. } => Array::Host(&batch.tokens),
            Inputs::Device(inputs) => Array::Device(inputs.tokens()),
        }
    }

    /// What each slot sampled last, where only a device knows it.
    pub(crate) fn last_tokens(&self) -> DevicePtr {
        match self {
            Inputs::Host { .. } => DevicePtr::NULL,
            Inputs::Device(inputs) => inputs.last_tokens(),
        }
    }

    /// Positions, and where the KV of `group` goes.
    pub(crate) fn places(&self, group: GroupIdx) -> Places<'a> {
        match self {
            Inputs::Host { batch, angles, .. } => {
                Places::Host { angles, locations: &batch.locations[group.idx()] }
            }
            Inputs::Device(inputs) => Places::Device(inputs.places(group)),
        }
    }

    /// Rows with their pages in `group`.
    pub(crate) fn rows(&self, group: GroupIdx) -> Rows<'a> {
        match self {
            Inputs::Host { rows, .. } => Rows::Host(&rows[group.idx()]),
            Inputs::Device(inputs) => Rows::Device(inputs.rows(group)),
        }
    }

    /// The tokens that emit; `None` where all do.
    pub(crate) fn emitting(&self) -> Option<Array<'a, u32>> {
        match self {
            Inputs::Host { batch, .. } => Some(Array::Host(&batch.emitting)),
            Inputs::Device(inputs) => inputs.emitting().map(Array::Device),
        }
    }
}

impl Batch {
    pub(crate) fn new(n_groups: usize, n_tokens_max: usize, n_slots: usize) -> Batch {
        Batch {
            tokens: Vec::with_capacity(n_tokens_max),
            positions: Vec::with_capacity(n_tokens_max),
            locations: (0..n_groups).map(|_| Vec::with_capacity(n_tokens_max)).collect(),
            spans: Vec::with_capacity(n_slots),
            n_rows_max: n_slots,
            emits: Vec::with_capacity(n_tokens_max),
            emitting: Vec::with_capacity(n_tokens_max),
        }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Rows that it has room for.
    pub(crate) fn n_rows_max(&self) -> usize {
        self.n_rows_max
    }

    /// Becomes `plan`, whose page updates `tables` have taken.
    pub(crate) fn fill(&mut self, plan: &StepPlan, tables: &PageTables) {
        let n_tokens_max = self.tokens.capacity();
        assert!(plan.tokens.len() <= n_tokens_max, "{} tokens planned", plan.tokens.len());
        self.clear();
        self.tokens.extend_from_slice(&plan.tokens);
        for (row_idx, row) in plan.rows.iter().enumerate() {
            self.spans.push(Span {
                slot: row.slot,
                token_idx: row.token_idx,
                n_tokens: row.n_tokens,
                start: row.start,
            });
            let n_own = row.n_tokens - row.n_candidates;
            for (offset, &token) in plan.row_tokens(row).iter().enumerate() {
                let position = row.start + offset;
                self.positions.push(position as u32);
                for (group_idx, locations) in self.locations.iter_mut().enumerate() {
                    let group = GroupIdx(group_idx as u16);
                    locations.push(tables.location(group, row.slot, position));
                }
                let samples = row.emit.samples() && offset + 1 >= n_own;
                let scores = row.emit.scores() && offset < n_own;
                if samples || scores {
                    self.emits.push(EmitPoint {
                        row_idx,
                        answer_idx: row.answer_idx + (offset + 1).saturating_sub(n_own),
                        slot: row.slot,
                        position,
                        scores,
                        samples,
                        candidate: (offset >= n_own).then_some(token),
                    });
                    self.emitting.push((row.token_idx + offset) as u32);
                }
            }
        }
    }

    /// The rows with their page tables in `group`, for attention.
    pub(crate) fn attention_rows<'a>(
        &'a self,
        tables: &'a PageTables,
        group: GroupIdx,
    ) -> impl Iterator<Item = AttentionRow<'a>> {
        self.spans.iter().map(move |span| AttentionRow {
            token_idx: span.token_idx,
            n_tokens: span.n_tokens,
            start: span.start,
            pages: tables.pages(group, span.slot, span.start + span.n_tokens),
        })
    }

    /// No token, no row.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.locations.iter_mut().for_each(Vec::clear);
        self.spans.clear();
        self.emits.clear();
        self.emitting.clear();
    }
}
