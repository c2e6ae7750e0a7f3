//! The whole body of an infer request, JSON and tensors behind it, against whatever a client may
//! send.

use super::super::check;
use super::super::hostile::{below, in_proportion, next};
use super::*;

/// Sound bodies, one a line, but for the bytes behind them.
const SOUND: &str = include_str!("sound.txt");

/// What is put in, or in the place of something.
const SNIPPETS: [&str; 14] = [
    "-1",
    "1e999",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "null",
    "[[[[[[[[",
    "{\"a\":{\"a\":",
    "\"\\ud800\"",
    "\"inputs\"",
    "\"binary_data_size\"",
    "[1,1000000,1000000]",
    ",",
    "\u{feff}",
];

/// A sound body's JSON with up to three changes, and bytes behind it.
fn hostile(state: &mut u64, sound: &[&str]) -> (Vec<u8>, usize) {
    let line = sound[below(state, sound.len())];
    let mut bytes = line.as_bytes().to_vec();
    for _ in 0..below(state, 4) {
        let at = below(state, bytes.len());
        let end = (at + 1 + below(state, 24)).min(bytes.len());
        let snippet = SNIPPETS[below(state, SNIPPETS.len())].bytes();
        match below(state, 5) {
            0 => bytes[at] ^= 1 << below(state, 8),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, snippet)),
            3 => drop(bytes.splice(at..end, snippet)),
            _ => bytes.truncate(at + 1),
        }
        if bytes.is_empty() {
            break;
        }
    }
    let n_head = bytes.len();
    // As many as it speaks of, or not.
    let n_told_of = if line.contains("binary_data_size") { 9 } else { 0 };
    let n_behind = if below(state, 4) > 0 { n_told_of } else { below(state, 12) };
    for value in [1, 0, 0, 0, b'a', 7, 0, 0, 0, 0, 0, 0].into_iter().take(n_behind) {
        bytes.push(if below(state, 9) == 0 { next(state) as u8 } else { value });
    }
    let n_told = match below(state, 8) {
        0 => below(state, bytes.len() + 2),
        _ => n_head,
    };
    (bytes, n_told)
}

/// Bytes that what was read holds.
fn n_held(given: &[Given]) -> usize {
    let of = |given: &Given| match &given.values {
        Values::Binary(bytes) => bytes.len(),
        Values::Json(value) => value.to_string().len(),
        Values::Typed(data) => data.len(),
    };
    given.iter().map(|one| one.name.len() + 8 * one.shape.len() + of(one)).sum()
}

#[test]
fn a_million_hostile_bodies_are_read_or_refused() {
    let sound: Vec<&str> = SOUND.lines().collect();
    let mut state = 20_261_122;
    let (mut n_read, mut n_checked, mut n_refused) = (0, 0, 0);
    for case in 0..1_000_000_u64 {
        let (bytes, n_head) = hostile(&mut state, &sound);
        let mut headers = HeaderMap::new();
        if case % 5 > 0 {
            headers.insert(HEADER_LENGTH, n_head.into());
        }
        let read = in_proportion(bytes.len(), case, || {
            let Asked { caller, given, .. } = read(&bytes, &headers, "demo").ok()?;
            // A number of one digit is written with five: `1e999`, `null`.
            assert!(n_held(&given) <= 8 * bytes.len(), "case {case}: {given:?}");
            Some(check::batch(&caller, given, 16))
        });
        let Some(checked) = read else {
            n_refused += 1;
            continue;
        };
        n_read += 1;
        if let Ok(batch) = checked {
            n_checked += 1;
            assert!((1..=16).contains(&batch.n_rows), "case {case}");
        }
    }
    let told = format!("{n_read} read, {n_checked} of them sound, {n_refused} refused");
    assert!(n_read > 50_000 && n_checked > 10_000 && n_refused > 100_000, "{told}");
}
