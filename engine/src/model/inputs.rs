//! A step's inputs on a device: one block of words that is laid out on the host and copied at once,
//! and the page tables, which stay and are changed where a plan changes them.

use scheduler::{GroupIdx, PageUpdate, SlotIdx};

use super::outbox::Outbox;
use crate::batch::{Batch, Span};
use crate::cache::PAGE_TOKENS;
use crate::device::cuda::CudaExec;
use crate::device::{DeviceArray, DeviceError, DevicePtr};
use crate::kernels::attention::DeviceRows;
use crate::kernels::attention::cuda::{DeviceRow, Workspace};
use crate::kernels::rope_kv::{DevicePlaces, DeviceTables};
use crate::loading::Carve;

/// Bytes of a word.
const WORD: usize = size_of::<i32>();

/// Rows begin at a multiple of their size.
const ROW_WORDS: usize = size_of::<DeviceRow>() / WORD;

/// What decides how large the inputs are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputSizes {
    pub(crate) n_tokens: usize,
    pub(crate) n_slots: usize,
    pub(crate) n_groups: usize,
    pub(crate) n_context: usize,
    /// Rows of one token are sent with those of several: the kernel that attends for them gives a
    /// token the same bits in every row.
    pub(crate) is_deterministic: bool,
}

/// How rows are sent.
#[derive(Clone, Copy)]
pub(crate) struct SentRows<'a> {
    /// The step is one of decoding, as if it had so many rows: those that are added go nowhere,
    /// and every token is taken to emit.
    pub(crate) n_padded: Option<usize>,
    /// Of every token that emits: whether the device draws what follows it.
    pub(crate) drawn: &'a [bool],
    /// Places of tokens that the host has not seen: each is what this slot drew last.
    pub(crate) late: &'a [(usize, SlotIdx)],
}

/// Where the inputs lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputPlaces {
    words: DevicePtr,
    /// i32 `[n_groups, n_slots, n_entries]`.
    tables: DevicePtr,
    /// i32 `[n_slots]`.
    pub(crate) last_tokens: DevicePtr,
}

/// The inputs of the step that runs.
pub(crate) struct DeviceInputs {
    sizes: InputSizes,
    places: InputPlaces,
    frequencies: DevicePtr,
    workspace: Workspace,
    words: Vec<i32>,
    /// Pages that travel together.
    pages: Vec<i32>,
    layout: Layout,
    /// Tokens of the rows that prefill's kernel attends for.
    prefill_lengths: Vec<usize>,
}

/// Where a step's parts begin, in words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    n_tokens: usize,
    positions: usize,
    slots: usize,
    decode: usize,
    n_decode: usize,
    prefill: usize,
    /// Tokens that emit; `None` where all do.
    emitting: Option<usize>,
    n_emitting: usize,
    /// Slots of the rows of logits that the device samples; -1 for others.
    sampled: usize,
}

impl InputSizes {
    /// Bytes that a step sends, as far as it need not wait.
    pub(crate) fn n_sent_bytes(self) -> usize {
        self.n_words() * WORD
    }

    fn n_words(self) -> usize {
        let InputSizes { n_tokens, n_slots, n_groups, .. } = self;
        // Tokens, positions, slots, what emits; rows of both kinds, each begun at a row's size.
        let n_batch = 5 * n_tokens + n_slots + (n_slots + 1) * ROW_WORDS * 2 + ROW_WORDS;
        // New pages of a step, as far as they are copied at once.
        n_batch + (n_tokens.div_ceil(PAGE_TOKENS) + 2 * n_slots) * n_groups
    }

    fn n_entries(self) -> usize {
        self.n_context.div_ceil(PAGE_TOKENS)
    }
}

impl InputPlaces {
    pub(crate) fn carve(sizes: InputSizes, carve: &mut Carve) -> InputPlaces {
        InputPlaces {
            words: carve.take(sizes.n_words() * WORD),
            tables: carve.take(sizes.n_groups * sizes.n_slots * sizes.n_entries() * WORD),
            last_tokens: carve.take(sizes.n_slots * WORD),
        }
    }
}

impl DeviceInputs {
    /// `frequencies` are f64 `[head_dim / 2]`.
    pub(crate) fn new(
        sizes: InputSizes,
        places: InputPlaces,
        frequencies: DevicePtr,
        workspace: Workspace,
    ) -> DeviceInputs {
        DeviceInputs {
            sizes,
            places,
            frequencies,
            workspace,
            words: Vec::with_capacity(sizes.n_words()),
            pages: Vec::with_capacity(sizes.n_entries()),
            layout: Layout::default(),
            prefill_lengths: Vec::with_capacity(sizes.n_slots),
        }
    }

    /// Lays `batch` out and sends it, with `pages`, the changes of the tables.
    pub(crate) fn send(
        &mut self,
        (exec, outbox): (&CudaExec, &mut Outbox),
        batch: &Batch,
        pages: &[PageUpdate],
        rows: SentRows<'_>,
    ) -> Result<(), DeviceError> {
        self.lay_out(batch, rows);
        for run in pages.chunk_by(follows) {
            self.pages.clear();
            self.pages.extend(run.iter().map(|update| update.page.idx() as i32));
            outbox.send(exec, self.entry(&run[0]), &self.pages)?;
        }
        outbox.send(exec, self.places.words, &self.words)
    }

    fn lay_out(&mut self, batch: &Batch, rows: SentRows<'_>) {
        let SentRows { n_padded, drawn, late } = rows;
        let n_tokens = n_padded.unwrap_or(batch.n_tokens());
        let n_padding = n_tokens - batch.n_tokens();
        let words = &mut self.words;
        words.clear();
        words.extend(batch.tokens.iter().map(|token| token.0 as i32));
        for &(token_idx, slot) in late {
            words[token_idx] = -1 - slot.idx() as i32;
        }
        words.extend(std::iter::repeat_n(0, n_padding));
        let positions = words.len();
        words.extend(batch.positions.iter().map(|&position| position as i32));
        words.extend(std::iter::repeat_n(0, n_padding));
        let slots = words.len();
        for span in &batch.spans {
            words.extend(std::iter::repeat_n(span.slot.idx() as i32, span.n_tokens));
        }
        words.extend(std::iter::repeat_n(-1, n_padding));
        words.resize(words.len().next_multiple_of(ROW_WORDS), 0);
        let [decode, prefill] = self.lay_out_rows(batch, n_padding);
        let words = &mut self.words;
        let n_decode = (prefill - decode) / ROW_WORDS;
        let emitting = n_padded.is_none().then_some(words.len());
        if emitting.is_some() {
            words.extend(batch.emitting.iter().map(|&token_idx| token_idx as i32));
        }
        let n_emitting = batch.emitting.len();
        let sampled = words.len();
        let n_rows = n_padded.unwrap_or(n_emitting);
        words.extend(std::iter::repeat_n(-1, n_rows));
        for (emit_idx, point) in batch.emits.iter().enumerate() {
            if drawn.get(emit_idx).is_some_and(|is_drawn| *is_drawn) {
                let row_idx = match n_padded {
                    Some(_) => batch.emitting[emit_idx] as usize,
                    None => emit_idx,
                };
                words[sampled + row_idx] = point.slot.idx() as i32;
            }
        }
        self.layout = Layout {
            n_tokens,
            positions,
            slots,
            decode,
            n_decode,
            prefill,
            emitting,
            n_emitting,
            sampled,
        };
    }

    /// Lays out the rows of attention, `n_padding` of them going nowhere. Where those of decode
    /// begin, and those of prefill, which follow them.
    fn lay_out_rows(&mut self, batch: &Batch, n_padding: usize) -> [usize; 2] {
        let is_deterministic = self.sizes.is_deterministic;
        let decodes = |span: &&Span| span.n_tokens == 1 && !is_deterministic;
        let prefills = || batch.spans.iter().filter(|span| !decodes(span));
        let row = |span: &Span| {
            [span.slot.idx(), span.token_idx, span.n_tokens, span.start].map(|n| n as i32)
        };
        let padding = std::iter::repeat_n([-1, 0, 0, 0], n_padding).flatten();
        let words = &mut self.words;
        let decode = words.len();
        words.extend(batch.spans.iter().filter(decodes).flat_map(row));
        if !is_deterministic {
            words.extend(padding.clone());
        }
        let prefill = words.len();
        words.extend(prefills().flat_map(row));
        self.prefill_lengths.clear();
        self.prefill_lengths.extend(prefills().map(|span| span.n_tokens));
        if is_deterministic {
            words.extend(padding);
            // So that a recorded step has blocks for every row that it may have.
            self.prefill_lengths.extend(std::iter::repeat_n(1, n_padding));
        }
        [decode, prefill]
    }

    fn entry(&self, update: &PageUpdate) -> DevicePtr {
        let (n_slots, n_entries) = (self.sizes.n_slots, self.sizes.n_entries());
        let page_idx = update.page_idx as usize;
        assert!(page_idx < n_entries, "page {page_idx} is beyond the context");
        let row_idx = update.group.idx() * n_slots + update.slot.idx();
        self.places.tables.offset((row_idx * n_entries + page_idx) * WORD)
    }

    /// i32: slots of the rows of logits from `first` on that the device samples.
    pub(crate) fn sampled(&self, first: usize) -> DevicePtr {
        self.word(self.layout.sampled + first)
    }

    fn word(&self, at: usize) -> DevicePtr {
        self.places.words.offset(at * WORD)
    }

    pub(crate) fn sizes(&self) -> InputSizes {
        self.sizes
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.layout.n_tokens
    }

    pub(crate) fn tokens(&self) -> DeviceArray {
        DeviceArray { first: self.word(0), n: self.layout.n_tokens }
    }

    pub(crate) fn last_tokens(&self) -> DevicePtr {
        self.places.last_tokens
    }

    pub(crate) fn emitting(&self) -> Option<DeviceArray> {
        let first = self.word(self.layout.emitting?);
        Some(DeviceArray { first, n: self.layout.n_emitting })
    }

    pub(crate) fn places(&self, group: GroupIdx) -> DevicePlaces {
        DevicePlaces {
            positions: self.word(self.layout.positions),
            slots: self.word(self.layout.slots),
            frequencies: self.frequencies,
            tables: self.tables(group),
        }
    }

    pub(crate) fn rows(&self, group: GroupIdx) -> DeviceRows<'_> {
        DeviceRows {
            decode: self.word(self.layout.decode),
            n_decode: self.layout.n_decode,
            prefill: self.word(self.layout.prefill),
            prefill_lengths: &self.prefill_lengths,
            tables: self.tables(group),
            frequencies: self.frequencies,
            n_context: self.sizes.n_context,
            workspace: self.workspace,
        }
    }

    fn tables(&self, group: GroupIdx) -> DeviceTables {
        let n_entries = self.sizes.n_entries();
        let offset = group.idx() * self.sizes.n_slots * n_entries * WORD;
        DeviceTables { first: self.places.tables.offset(offset), n_entries }
    }
}

/// Whether `next` is the table's entry behind `update`.
fn follows(update: &PageUpdate, next: &PageUpdate) -> bool {
    (next.group, next.slot) == (update.group, update.slot) && next.page_idx == update.page_idx + 1
}

#[cfg(test)]
mod tests;
