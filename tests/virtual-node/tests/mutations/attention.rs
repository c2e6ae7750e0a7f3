//! Attention over a paged cache: contexts that end within a page, tables that turn the pages'
//! order, and pages and entries behind the context that nobody may look at.

use virtual_node::ptx::Module;

use crate::node::{Call, Node, Param, bf16s};
use crate::scenarios::Outcome;

use Param::Words;

const HEAD_DIM: usize = 32;
const PAGE_TOKENS: usize = 16;
/// Of two slots; one more page is nobody's.
const N_TABLE_ENTRIES: usize = 24;
const N_PAGES: usize = 2 * N_TABLE_ENTRIES + 1;
const CACHE_BYTES: usize = N_PAGES * PAGE_TOKENS * HEAD_DIM * 2;

/// A row as the kernels read it: slot, first token, tokens, position of the first.
type Row = [i32; 4];

/// Rows of one token: one whose context has two parts and begins outside of its window, padding,
/// and one with less than two pages. A layer of blocks fetches weights, to the last byte.
pub(crate) fn decode(module: &Module) -> Outcome {
    attend(module, &DECODE)
}

/// The same from columns of a projection, whose keys and values are not in the cache yet.
pub(crate) fn decode_projected(module: &Module) -> Outcome {
    attend(module, &Shape { is_projected: true, ..DECODE })
}

const DECODE: Shape<'static> = Shape {
    kernel: "attention_decode_d32_bf16",
    rows: &[[0, 0, 1, 299], [-1, 0, 0, 0], [1, 1, 1, 21]],
    n_tokens: 2,
    window: 290,
    n_blocks: 2,
    n_heads: 16,
    is_projected: false,
};

/// Of decode: three pages for each of four warps, their softmax, queries, angles, and a flag.
const SHARED_BYTES: usize = 4 * 3 * 2 * PAGE_TOKENS * HEAD_DIM * 2
    + 4 * 16 * 8
    + 16 * (HEAD_DIM + 8) * 2
    + 4 * HEAD_DIM
    + 16;

/// Pieces that lie apart.
const N_PIECES: u64 = 5;
const PIECE_BYTES: u64 = 32;
const STRIDE_BYTES: u64 = 48;
const AHEAD_BYTES: usize = ((N_PIECES - 1) * STRIDE_BYTES + PIECE_BYTES) as usize;

/// A row whose tokens are two tiles and whose keys are two, behind a prefix, and a short one.
pub(crate) fn prefill(module: &Module) -> Outcome {
    let shape = Shape {
        kernel: "attention_prefill_d32_bf16",
        rows: &[[0, 0, 70, 40], [1, 70, 3, 0]],
        n_tokens: 73,
        window: 90,
        n_blocks: 3,
        n_heads: 2,
        is_projected: false,
    };
    attend(module, &shape)
}

struct Shape<'a> {
    kernel: &'a str,
    rows: &'a [Row],
    n_tokens: usize,
    window: u32,
    /// Parts of a context, or tiles of all rows.
    n_blocks: u32,
    /// Query heads, all of one key/value head.
    n_heads: usize,
    is_projected: bool,
}

fn attend(module: &Module, shape: &Shape<'_>) -> Outcome {
    let node = Node::new(1);
    let n_rows = shape.rows.len();
    let n_out_bytes = shape.n_tokens * shape.n_heads * HEAD_DIM * 2;
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
    let q = match shape.is_projected {
        true => 0,
        false => node.upload(0, &bf16s(32, shape.n_tokens * shape.n_heads * HEAD_DIM)),
    };
    let mut args = vec![
        q,
        keys,
        values,
        node.upload(0, &tables(shape.rows)),
        node.upload(0, shape.rows),
        out,
        node.allocate(0, n_parts * 16 * HEAD_DIM * 4),
        node.allocate(0, n_parts * 16 * 2 * 4),
        node.upload(0, &vec![0u32; n_rows]),
    ];
    let width = (shape.n_heads * HEAD_DIM) as u32;
    let score_factor = std::f32::consts::LOG2_E / (HEAD_DIM as f32).sqrt();
    let numbers = [
        width,
        width,
        N_TABLE_ENTRIES as u32,
        n_rows as u32,
        1,
        shape.n_heads as u32,
        shape.window,
        0,
        score_factor.to_bits(),
        1f32.to_bits(),
        1f32.to_bits(),
        0,
    ];
    let pairs = numbers.as_chunks::<2>().0.iter();
    args.extend(pairs.map(|[low, high]| u64::from(*low) | u64::from(*high) << 32));
    let mut params = vec![Words(args)];
    if is_decode {
        params.push(Words(projected(&node, shape)));
        let ahead = node.upload(0, &[0u8; AHEAD_BYTES]);
        let pieces = [N_PIECES | STRIDE_BYTES << 32, PIECE_BYTES | (n_rows as u64) << 32];
        params.push(Words([[ahead].as_slice(), &pieces].concat()));
    }
    let n_layers = n_rows as u32 + 1;
    let call = Call {
        kernel: shape.kernel,
        grid: if is_decode { [shape.n_blocks, 1, n_layers] } else { [shape.n_blocks, 1, 1] },
        n_threads: if is_decode { 128 } else { 256 },
        cluster: 1,
        shared_bytes: if is_decode { SHARED_BYTES } else { 0 },
        params: &params,
    };
    node.launch(module, 0, &call)?;
    let parts = [(out, n_out_bytes), (keys, CACHE_BYTES), (values, CACHE_BYTES)];
    Ok(parts.map(|(address, n_bytes)| node.download(0, address, n_bytes)).concat())
}

/// `Projected` of `rope.cuh`: columns, frequencies, and factors of each part.
fn projected(node: &Node, shape: &Shape<'_>) -> Vec<u64> {
    let width = (shape.n_heads + 2) * HEAD_DIM;
    let frequencies: Vec<f64> = (0..HEAD_DIM / 2).map(|i| 0.8f64.powi(i as i32)).collect();
    let wide = node.upload(0, &bf16s(33, shape.n_tokens * width));
    let numbers = [width as u32, 1.1f32.to_bits(), 0.9f32.to_bits(), 0.8f32.to_bits(), 0, 0];
    let pairs = numbers.as_chunks::<2>().0.iter();
    let numbers = pairs.map(|[low, high]| u64::from(*low) | u64::from(*high) << 32);
    [wide, 0, 0, node.upload(0, &frequencies)].into_iter().chain(numbers).collect()
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
