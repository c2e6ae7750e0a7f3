//! Sound files made unsound: what parsers of strangers' files are fed.

use super::random::Random;

/// What is put in, or in the place of a number.
const SNIPPETS: [&str; 24] = [
    "0",
    "-1",
    "1e999",
    "0.5",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "4294967296",
    "16777217",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "{\"a\":{\"a\":",
    ",",
    ":",
    "\"",
    "\\u0000",
    "\\ud800",
    "../../x",
    "re:(((((a*)*)*)*)*",
    "\u{feff}",
];

/// Bytes that mean something to JSON, and some that mean nothing.
const BYTES: &[u8] = b"0123456789-+.,:{}[]\"\\eE \n\0\x7f\xc3\xff";

/// Longest piece that is taken out or doubled.
const N_PIECE_MAX: usize = 64;

/// `sound` with one to four changes.
pub fn mutated(random: &mut Random, sound: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(N_PIECE_MAX)).min(bytes.len());
        let snippet = SNIPPETS[random.below(SNIPPETS.len())].bytes();
        match random.below(8) {
            0 | 1 => bytes[at] = BYTES[random.below(BYTES.len())],
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            4 => drop(bytes.splice(at..at, snippet)),
            5 | 6 => {
                // The number at or behind that place.
                let begin = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()).unwrap_or(at);
                let is_digit = |i: &usize| bytes[*i].is_ascii_digit();
                let n_digits = (begin..bytes.len()).take_while(is_digit).count();
                drop(bytes.splice(begin..begin + n_digits, snippet));
            }
            _ if random.below(4) == 0 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << random.below(8),
        }
    }
    bytes
}
