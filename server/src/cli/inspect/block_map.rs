//! The block list as a picture: two cells a block, the first sub-block above the second.

use std::collections::BTreeMap;
use std::fmt::Write;

use weights::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec};

use crate::cli::table::grouped;

/// Blocks of a line: fits 80 columns with the label.
const N_BLOCKS_PER_LINE: usize = 64;

/// FFN widths, narrow to wide.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Full attention by KV heads, most to fewest.
const SHADES: [char; 4] = ['█', '▓', '▒', '░'];
const WINDOW: char = 'w';
const LINEAR: char = '/';
const ABSENT: char = '·';

/// The kind of a cell, for its colour.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    Attention,
    Ffn,
    Linear,
    Absent,
}

type Cell = (char, Paint);

/// The map and its legend.
pub(super) fn draw(blocks: &[BlockSpec], has_colour: bool) -> String {
    let mut text = String::new();
    let shades = shades(blocks);
    let heights = Heights::new(blocks);
    for (line_idx, line) in blocks.chunks(N_BLOCKS_PER_LINE).enumerate() {
        let first_idx = line_idx * N_BLOCKS_PER_LINE;
        let mixers = line.iter().map(|block| mixer_cell(block, &shades));
        let ffns = line.iter().map(|block| ffn_cell(block, &heights));
        text.push_str(ruler(first_idx, line.len()).trim_end());
        text.push_str("\n  mixer  ");
        paint(&mut text, mixers, has_colour);
        text.push_str("\n  ffn    ");
        paint(&mut text, ffns, has_colour);
        text.push_str("\n\n");
    }
    legend(&mut text, blocks, (&shades, &heights));
    text
}

/// Every tenth block's index above its cell.
fn ruler(first_idx: usize, n_blocks: usize) -> String {
    let mut line = String::new();
    for idx in (first_idx..first_idx + n_blocks).filter(|idx| idx.is_multiple_of(10)) {
        let column = idx - first_idx;
        line.extend(std::iter::repeat_n(' ', column.saturating_sub(line.len())));
        line.push_str(&idx.to_string());
    }
    format!("         {line}")
}

fn paint(text: &mut String, cells: impl Iterator<Item = Cell>, has_colour: bool) {
    let mut last = None;
    for (character, paint) in cells {
        if has_colour && last != Some(paint) {
            text.push_str(match paint {
                Paint::Attention => "\x1b[0;36m",
                Paint::Ffn => "\x1b[0;32m",
                Paint::Linear => "\x1b[0;35m",
                Paint::Absent => "\x1b[0;2m",
            });
            last = Some(paint);
        }
        text.push(character);
    }
    if last.is_some() {
        text.push_str("\x1b[0m");
    }
}

/// A shade for each number of KV heads; the lightest for all that are left.
fn shades(blocks: &[BlockSpec]) -> BTreeMap<usize, char> {
    let full = blocks.iter().filter_map(BlockSpec::attention).filter(|a| a.window.is_none());
    let mut n_kv_heads: Vec<usize> = full.map(|attention| attention.n_kv_heads).collect();
    n_kv_heads.sort_unstable_by(|one, other| other.cmp(one));
    n_kv_heads.dedup();
    let shade = |rank: usize| SHADES[rank.min(SHADES.len() - 1)];
    n_kv_heads.into_iter().enumerate().map(|(rank, n)| (n, shade(rank))).collect()
}

/// Heights of FFN widths, on a logarithmic scale between the narrowest and the widest.
struct Heights {
    narrowest: f64,
    widest: f64,
}

impl Heights {
    fn new(blocks: &[BlockSpec]) -> Heights {
        let widths = || blocks.iter().filter_map(swiglu_width);
        let narrowest = widths().min().unwrap_or(1) as f64;
        Heights { narrowest, widest: widths().max().unwrap_or(1) as f64 }
    }

    fn level(&self, width: usize) -> usize {
        let span = (self.widest / self.narrowest).ln();
        if span == 0.0 {
            return HEIGHTS.len() - 1;
        }
        let position = (width as f64 / self.narrowest).ln() / span;
        (position * (HEIGHTS.len() - 1) as f64).round() as usize
    }
}

fn swiglu_width(block: &BlockSpec) -> Option<usize> {
    match block.ffn {
        Some(FfnSpec::SwiGlu { width }) => Some(width),
        _ => None,
    }
}

fn mixer_cell(block: &BlockSpec, shades: &BTreeMap<usize, char>) -> Cell {
    match &block.mixer {
        Some(MixerSpec::Attention(AttentionSpec { window: Some(_), .. })) => {
            (WINDOW, Paint::Attention)
        }
        Some(MixerSpec::Attention(attention)) => (shades[&attention.n_kv_heads], Paint::Attention),
        Some(MixerSpec::Linear) => (LINEAR, Paint::Linear),
        None => (ABSENT, Paint::Absent),
    }
}

fn ffn_cell(block: &BlockSpec, heights: &Heights) -> Cell {
    match block.ffn {
        Some(FfnSpec::SwiGlu { width }) => (HEIGHTS[heights.level(width)], Paint::Ffn),
        Some(FfnSpec::Linear) => (LINEAR, Paint::Linear),
        None => (ABSENT, Paint::Absent),
    }
}

/// What each kind of cell stands for, and how many blocks have it.
fn legend(
    text: &mut String,
    blocks: &[BlockSpec],
    (shades, heights): (&BTreeMap<usize, char>, &Heights),
) {
    let mut mixers: BTreeMap<(usize, String), (char, usize)> = BTreeMap::new();
    for block in blocks {
        let (order, words) = mixer_words(block);
        let (cell, _) = mixer_cell(block, shades);
        mixers.entry((order, words)).or_insert((cell, 0)).1 += 1;
    }
    // Wide first, as attention comes with most KV heads first.
    let mut ffns: BTreeMap<usize, (usize, usize, usize)> = BTreeMap::new();
    for width in blocks.iter().filter_map(swiglu_width) {
        let entry = ffns.entry(heights.level(width)).or_insert((width, width, 0));
        *entry = (entry.0.min(width), entry.1.max(width), entry.2 + 1);
    }
    let mut line = |cell: char, count: usize, words: &str| {
        let plural = if count == 1 { "block " } else { "blocks" };
        writeln!(text, "  {cell} {count:>3} {plural}  {words}").expect("a string takes everything");
    };
    for ((_, words), (cell, count)) in &mixers {
        line(*cell, *count, words);
    }
    for (level, (narrowest, widest, count)) in ffns.into_iter().rev() {
        let words = match narrowest == widest {
            true => format!("ffn of width {}", grouped(widest)),
            false => format!("ffn of width {} to {}", grouped(narrowest), grouped(widest)),
        };
        line(HEIGHTS[level], count, &words);
    }
    let n_linear = blocks.iter().filter(|block| block.ffn == Some(FfnSpec::Linear)).count();
    if n_linear > 0 {
        line(LINEAR, n_linear, "linear in place of ffn");
    }
    let n_absent = blocks.iter().filter(|block| block.ffn.is_none()).count();
    if n_absent > 0 {
        line(ABSENT, n_absent, "no ffn");
    }
}

/// A mixer in words, and its place in the legend.
fn mixer_words(block: &BlockSpec) -> (usize, String) {
    match &block.mixer {
        Some(MixerSpec::Attention(attention)) => {
            let AttentionSpec { n_q_heads, n_kv_heads, head_dim, window } = attention;
            let heads = format!("{n_q_heads} query and {n_kv_heads} KV heads of {head_dim}");
            // Most KV heads first; no model has a million.
            let order = 1_000_000 - n_kv_heads.min(&1_000_000);
            match window {
                None => (order, format!("attention, {heads}")),
                Some(window) => {
                    let window = grouped(*window);
                    (1_000_001 + order, format!("attention, {heads}, window {window}"))
                }
            }
        }
        Some(MixerSpec::Linear) => (3_000_000, "linear in place of attention".to_owned()),
        None => (3_000_001, "no attention".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use weights::presets::preset;

    use super::*;

    #[test]
    fn the_tiny_model_s_map_shows_every_kind_of_block() {
        let spec = preset("tiny").expect("a preset");
        let expected = "         0
  mixer  █··▓/w·▓
  ffn    ▄█··▁/·▆
";
        let map = draw(&spec.blocks, false);
        assert!(map.starts_with(expected), "{map}");
    }

    #[test]
    fn colours_come_in_runs_and_end() {
        let spec = preset("tiny").expect("a preset");
        let map = draw(&spec.blocks, true);
        let plain: String = map
            .split("\x1b[")
            .enumerate()
            .map(
                |(idx, part)| {
                    if idx == 0 { part } else { part.split_once('m').expect("a code").1 }
                },
            )
            .collect();
        assert_eq!(plain, draw(&spec.blocks, false));
        for line in map.lines().filter(|line| line.contains('\x1b')) {
            assert!(line.ends_with("\x1b[0m"), "{line:?}");
        }
    }

    #[test]
    fn a_long_model_takes_several_lines_with_their_indices() {
        let spec = preset("ultra-253b").expect("a preset");
        let map = draw(&spec.blocks, false);
        let lines: Vec<&str> = map.lines().collect();
        assert!(lines[0].starts_with("         0         10        20"), "{map}");
        assert_eq!(
            lines[4],
            "               70        80        90        100       110       120"
        );
        let cells = |line: &str| line.chars().count() - "  mixer  ".len();
        assert_eq!([1, 5, 9].map(|idx| cells(lines[idx])), [64, 64, 34]);
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{map}");
        assert!(
            map.contains("  █  64 blocks  attention, 128 query and 8 KV heads of 128"),
            "{map}"
        );
        assert!(map.contains("  █   3 blocks  ffn of width 343,040 to 425,984"), "{map}");
        assert!(map.contains("  ·  81 blocks  no ffn"), "{map}");
    }
}
