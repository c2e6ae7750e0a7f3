//! Amounts as bars, in eighths of a character.

use engine::TermKind;

/// Parts of a character, from none to nearly all.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// A bar of `n_bytes`, of which `n_bytes_full` fill `width` characters; what is more is cut off.
/// Something is never nothing: the least amount has a mark.
pub(super) fn bar(n_bytes: u64, n_bytes_full: u64, width: usize) -> String {
    let full = n_bytes_full.max(1) as f64;
    let eighths = (n_bytes as f64 / full * 8.0 * width as f64).round() as usize;
    let eighths = eighths.clamp(usize::from(n_bytes > 0), 8 * width);
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// `text` in the colour of what it is about.
pub(super) fn painted(text: &str, kind: TermKind, has_colour: bool) -> String {
    if !has_colour {
        return text.to_owned();
    }
    let colour = match kind {
        TermKind::Weights => 32,
        TermKind::Kv => 36,
        TermKind::Step => 33,
        TermKind::Reserve => 35,
    };
    format!("\x1b[{colour}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        let cases = [
            (0, ""),
            (1, "▏"),
            (50, "█████"),
            (55, "█████▌"),
            (100, "██████████"),
            (300, "██████████"),
        ];
        for (n_bytes, expected) in cases {
            assert_eq!(bar(n_bytes, 100, 10), expected, "{n_bytes}");
        }
        assert_eq!(bar(1, 1_000_000, 10), "▏", "never nothing");
        assert_eq!(bar(7, 0, 2), "██");
    }
}
