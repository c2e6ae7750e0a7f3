//! The block list as a map of bytes: where weights lie, and what each block caches.

use std::fmt::Write;

use weights::{CacheSpec, Checkpoint};

use crate::config::ByteSize;

/// Blocks of a line, as in `inspect`.
const N_BLOCKS_PER_LINE: usize = 64;

/// Least to most bytes, each four times the one before.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same as colours of a terminal's 256: from blue to red.
const COLOURS: [u8; 8] = [27, 33, 39, 48, 118, 190, 214, 196];
const ABSENT: char = '·';

/// Bytes of one block over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockBytes {
    pub(super) mixer: u64,
    pub(super) ffn: u64,
    pub(super) kv: u64,
}

/// Of every block: stored weights with their norms and scales, and `n_kv_tokens` of its cache.
pub(super) fn block_bytes(
    checkpoint: &Checkpoint,
    n_ranks: usize,
    (kv_element_bytes, n_kv_tokens): (usize, usize),
) -> Vec<BlockBytes> {
    let spec = checkpoint.spec();
    let mut blocks = vec![BlockBytes::default(); spec.blocks.len()];
    for tensor in checkpoint.tensors() {
        let Some((block_idx, rest)) = block_of(&tensor.name) else { continue };
        let Some(block) = blocks.get_mut(block_idx) else { continue };
        match rest.starts_with("mlp.") || rest.starts_with("post_attention_layernorm.") {
            true => block.ffn += tensor.n_bytes,
            false => block.mixer += tensor.n_bytes,
        }
    }
    for (bytes, block) in blocks.iter_mut().zip(&spec.blocks) {
        let (n_elements, n_tokens) = match block.cache(n_ranks) {
            CacheSpec::None => continue,
            CacheSpec::Full { n_elements_per_token } => (n_elements_per_token, n_kv_tokens),
            CacheSpec::Window { n_elements_per_token, window } => (n_elements_per_token, window),
        };
        bytes.kv = (n_ranks * n_elements * kv_element_bytes) as u64 * n_tokens as u64;
    }
    blocks
}

/// `model.layers.7.mlp.up_proj.weight` is 7 and `mlp.up_proj.weight`.
fn block_of(name: &str) -> Option<(usize, &str)> {
    let (block_idx, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((block_idx.parse().ok()?, rest))
}

/// The map and what its cells stand for.
pub(super) fn draw(blocks: &[BlockBytes], has_colour: bool) -> String {
    let most = blocks.iter().flat_map(|b| [b.mixer, b.ffn, b.kv]).max().unwrap_or(0);
    let mut text = String::new();
    for (line_idx, line) in blocks.chunks(N_BLOCKS_PER_LINE).enumerate() {
        let first_idx = line_idx * N_BLOCKS_PER_LINE;
        writeln!(text, "  blocks {first_idx} to {}", first_idx + line.len() - 1)
            .expect("a string takes everything");
        let mut row = |name: &str, of: fn(&BlockBytes) -> u64| {
            let cells: String = line.iter().map(|b| cell(of(b), most, has_colour)).collect();
            writeln!(text, "  {name:6} {cells}").expect("a string takes everything");
        };
        row("mixer", |block| block.mixer);
        row("ffn", |block| block.ffn);
        row("KV", |block| block.kv);
    }
    let legend = (0..HEIGHTS.len()).rev().map(|level| {
        let from = most >> (2 * (HEIGHTS.len() - 1 - level));
        format!("{} {}", painted(level, has_colour), ByteSize(from.max(1)))
    });
    let legend: Vec<String> = legend.collect();
    writeln!(text, "  up to {}, {ABSENT} none", legend.join(", ")).expect("a string takes all");
    text
}

/// A level for each factor of four below the most.
fn level(n_bytes: u64, most: u64) -> usize {
    let below = (0..HEIGHTS.len()).take_while(|n| n_bytes <= most >> (2 * (n + 1))).count();
    (HEIGHTS.len() - 1).saturating_sub(below)
}

fn cell(n_bytes: u64, most: u64, has_colour: bool) -> String {
    match n_bytes {
        0 => ABSENT.to_string(),
        _ => painted(level(n_bytes, most), has_colour),
    }
}

fn painted(level: usize, has_colour: bool) -> String {
    match has_colour {
        true => format!("\x1b[38;5;{}m{}\x1b[0m", COLOURS[level], HEIGHTS[level]),
        false => HEIGHTS[level].to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_high_as_their_bytes() {
        let heights = |values: &[u64]| -> String {
            values.iter().map(|&n_bytes| cell(n_bytes, 1 << 20, false)).collect()
        };
        assert_eq!(heights(&[0, 1, 1 << 6, 1 << 8, 1 << 16, 1 << 18, 1 << 20]), "·▁▁▂▆▇█");
        assert_eq!(heights(&[(1 << 18) + 1]), "█");
    }

    #[test]
    fn names_tell_the_block() {
        assert_eq!(block_of("model.layers.7.mlp.up_proj.weight"), Some((7, "mlp.up_proj.weight")));
        for name in ["model.norm.weight", "lm_head.weight", "model.layers.x.y"] {
            assert_eq!(block_of(name), None, "{name}");
        }
    }
}
