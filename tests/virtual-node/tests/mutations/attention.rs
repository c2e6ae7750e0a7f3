//! Attention over a paged cache: contexts that end within a page, tables that turn the pages'
//! order, and pages and entries behind the context that nobody may look at.

use virtual_node::ptx::Module;

use crate::node::{Call, Node, Param, bf16s};
use crate::scenarios::Outcome;

use Param::Words;

const HEAD_DIM: usize = 32;
/// Query heads, all of one key/value head.
const N_HEADS: usize = 2;
const PAGE_TOKENS: usize = 16;
/// Of two slots; one more page is nobody's.
const N_TABLE_ENTRIES: usize = 24;
const N_PAGES: usize = 2 * N_TABLE_ENTRIES + 1;

/// A row as the kernels read it: slot, first token, tokens, position of the first.
type Row = [i32; 4];

/// Rows of one token: one whose context has two parts and begins outside of its window, padding,
/// and one with less than two pages.
pub(crate) fn decode(module: &Module) -> Outcome {
    let rows = [[0, 0, 1, 299], [-1, 0, 0, 0], [1, 1, 1, 21]];
    let kernel = "attention_decode_d32_bf16";
    attend(module, &Shape { kernel, rows: &rows, n_tokens: 2, window: 290, n_blocks: 2 })
}

/// A row whose tokens are two tiles and whose keys are two, behind a prefix, and a short one.
pub(crate) fn prefill(module: &Module) -> Outcome {
    let rows = [[0, 0, 70, 40], [1, 70, 3, 0]];
    let kernel = "attention_prefill_d32_bf16";
    attend(module, &Shape { kernel, rows: &rows, n_tokens: 73, window: 90, n_blocks: 3 })
}

struct Shape<'a> {
    kernel: &'a str,
    rows: &'a [Row],
    n_tokens: usize,
    window: u32,
    /// Parts of a context, or tiles of all rows.
    n_blocks: u32,
}

fn attend(module: &Module, shape: &Shape<'_>) -> Outcome {
    let node = Node::new(1);
    let n_rows = shape.rows.len();
    let n_out_bytes = shape.n_tokens * N_HEADS * HEAD_DIM * 2;
    let [keys, values] = [30, 31].map(|seed| {
        let mut cache = bf16s(seed, N_PAGES * PAGE_TOKENS * HEAD_DIM);
        // Nobody's page is full of eights.
        cache[(N_PAGES - 1) * PAGE_TOKENS * HEAD_DIM..].fill(0x4100);
        node.upload(0, &cache)
    });
    let out = node.allocate(0, n_out_bytes);
    let is_decode = shape.kernel.contains("decode");
    // Sums and their scales of 16 mma rows for each part of each row, which the parts write.
    let n_parts = n_rows * shape.n_blocks as usize;
    let mut args = vec![
        node.upload(0, &bf16s(32, shape.n_tokens * N_HEADS * HEAD_DIM)),
        keys,
        values,
        node.upload(0, &tables(shape.rows)),
        node.upload(0, shape.rows),
        out,
        node.allocate(0, n_parts * 16 * HEAD_DIM * 4),
        node.allocate(0, n_parts * 16 * 2 * 4),
        node.upload(0, &vec![0u32; n_rows]),
    ];
    let width = (N_HEADS * HEAD_DIM) as u32;
    let score_factor = std::f32::consts::LOG2_E / (HEAD_DIM as f32).sqrt();
    let numbers = [
        width,
        width,
        N_TABLE_ENTRIES as u32,
        n_rows as u32,
        1,
        N_HEADS as u32,
        shape.window,
        0,
        score_factor.to_bits(),
        1f32.to_bits(),
        1f32.to_bits(),
        0,
    ];
    let pairs = numbers.as_chunks::<2>().0.iter();
    args.extend(pairs.map(|[low, high]| u64::from(*low) | u64::from(*high) << 32));
    let call = Call {
        kernel: shape.kernel,
        grid: if is_decode { [shape.n_blocks, 1, n_rows as u32] } else { [shape.n_blocks, 1, 1] },
        n_threads: if is_decode { 128 } else { 256 },
        cluster: 1,
        params: &[Words(args)],
    };
    node.launch(module, 0, &call)?;
    Ok(node.download(0, out, n_out_bytes))
}

/// The pages of each slot, last ones first; behind a context stands nobody's page.
fn tables(rows: &[Row]) -> Vec<i32> {
    let mut tables = vec![N_PAGES as i32 - 1; 2 * N_TABLE_ENTRIES];
    for [slot, _, n_tokens, start] in rows.iter().filter(|[slot, ..]| *slot >= 0) {
        let n_pages = ((start + n_tokens) as usize).div_ceil(PAGE_TOKENS);
        let first = *slot as usize * N_TABLE_ENTRIES;
        for (entry, page) in tables[first..][..n_pages].iter_mut().enumerate() {
            *page = (first + N_TABLE_ENTRIES - 1 - entry) as i32;
        }
    }
    tables
}
