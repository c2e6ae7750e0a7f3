//! `embed.cu` copies: every bit is compared.

use half::bf16;

use super::{Launch, config, launch};
use crate::device::DevicePtr;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::testing::Rng;
use crate::kernels::testing::device::bf16s;
use crate::kernels::testing::traffic::assert_frugal;

const N_ENTRIES: usize = 67;
const VOCAB_BEGIN: usize = 1000;

/// Bits of `[tokens, hidden]`.
fn run(
    device: &TestDevice,
    table: &[bf16],
    hidden: usize,
    tokens: &[i32],
    last: &[i32],
) -> Vec<u16> {
    let out = device.poisoned::<bf16>(tokens.len() * hidden);
    let args = Launch {
        tokens: device.upload(tokens),
        last_tokens: if last.is_empty() { DevicePtr::NULL } else { device.upload(last) },
        table: device.upload(table),
        vocab_begin: VOCAB_BEGIN,
        n_entries: N_ENTRIES,
        n_tokens: tokens.len(),
        hidden,
        out,
    };
    launch(&device.exec, &args).expect("it is launched");
    device.download(out, tokens.len() * hidden)
}

fn check(device: &TestDevice, rng: &mut Rng, hidden: usize, n_tokens: usize) {
    let mut table = bf16s(rng, N_ENTRIES * hidden, 1.0);
    // Copies keep what is no number, too.
    (table[0], table[hidden]) = (bf16::NAN, bf16::INFINITY);
    let last: Vec<i32> =
        (0..5).map(|_| (VOCAB_BEGIN - 3 + rng.below(N_ENTRIES + 6)) as i32).collect();
    let ends = [VOCAB_BEGIN - 1, VOCAB_BEGIN, VOCAB_BEGIN + 1, VOCAB_BEGIN + N_ENTRIES - 1];
    let mut tokens: Vec<i32> = ends.map(|token| token as i32).to_vec();
    tokens.extend([(VOCAB_BEGIN + N_ENTRIES) as i32, 0, 128_255]);
    while tokens.len() < n_tokens {
        let token = (VOCAB_BEGIN + rng.below(N_ENTRIES)) as i32;
        tokens.push(if rng.below(3) == 0 { -1 - rng.below(5) as i32 } else { token });
    }
    tokens.truncate(n_tokens);
    let got = run(device, &table, hidden, &tokens, &last);
    for (t, &token) in tokens.iter().enumerate() {
        let token = if token < 0 { last[(-1 - token) as usize] } else { token };
        let entry = token - VOCAB_BEGIN as i32;
        let expected: Vec<u16> = match usize::try_from(entry).ok().filter(|&e| e < N_ENTRIES) {
            Some(entry) => table[entry * hidden..][..hidden].iter().map(|x| x.to_bits()).collect(),
            None => vec![0; hidden],
        };
        assert!(got[t * hidden..][..hidden] == expected, "token {t} is {token}, hidden {hidden}");
    }
}

#[test]
fn rows_are_copied_or_zero() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(111);
    for (hidden, n_tokens) in [(16_384, 1), (16_384, 40), (128, 256), (2056, 9), (12, 8), (1, 5)] {
        check(&device, &mut rng, hidden, n_tokens);
    }
}

#[test]
fn no_tokens_launch_nothing() {
    let device = TestDevice::open(0);
    assert!(run(&device, &[bf16::ONE; N_ENTRIES * 8], 8, &[], &[]).is_empty());
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    let hidden = 16_384;
    let table = bf16s(&mut Rng::new(112), N_ENTRIES * hidden, 1.0);
    let tokens = [VOCAB_BEGIN as i32, 5, VOCAB_BEGIN as i32 + 7];
    // Two rows are read and written, one is only written.
    assert_frugal("embed_bf16", 5 * 2 * hidden, |device| {
        run(device, &table, hidden, &tokens, &[]);
    });
}

#[test]
fn a_launch_covers_every_column() {
    for hidden in [1, 2048, 2049, 16_384] {
        let config = config(7, hidden);
        let n_cols = config.grid[0] as usize * 2048;
        assert!(n_cols >= hidden && n_cols - 2048 < hidden && config.grid[1] == 7, "{config:?}");
    }
}
