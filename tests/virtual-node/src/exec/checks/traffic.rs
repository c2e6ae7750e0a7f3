//! How well a warp's access uses the memory system: sectors moved, passes through shared memory.

/// Bytes of a sector, the least that device memory moves.
const SECTOR_BYTES: u64 = 32;

/// Banks of shared memory, each four bytes wide.
const N_BANKS: usize = 32;

/// Sectors that `n_bytes` from `address` on touch.
pub fn n_sectors(address: u64, n_bytes: usize) -> u64 {
    match n_bytes as u64 {
        0 => 0,
        n_bytes => (address + n_bytes - 1) / SECTOR_BYTES - address / SECTOR_BYTES + 1,
    }
}

/// Sectors that the lanes of a warp touch together.
pub(super) fn n_sectors_of_warp(addresses: &[u64; 32], mask: u32, n_bytes: usize) -> u64 {
    let mut sectors: Vec<u64> = lanes(mask)
        .flat_map(|lane| {
            let first = addresses[lane] / SECTOR_BYTES;
            first..first + n_sectors(addresses[lane], n_bytes)
        })
        .collect();
    sectors.sort_unstable();
    sectors.dedup();
    sectors.len() as u64
}

/// Passes through shared memory beyond those that the bytes alone ask for. Lanes are served 128
/// bytes at a time: all of them, halves for 8 bytes each, quarters for 16. Lanes that read the
/// same word share it.
pub(super) fn n_bank_conflicts(addresses: &[u64; 32], mask: u32, n_bytes: usize) -> u64 {
    let n_lanes = 32 / (n_bytes / 4).max(1);
    (0..32)
        .step_by(n_lanes)
        .map(|first| {
            let lanes_served = mask & (u32::MAX >> (32 - n_lanes)) << first;
            n_passes(addresses, lanes_served, n_bytes).saturating_sub(1)
        })
        .sum()
}

fn n_passes(addresses: &[u64; 32], mask: u32, n_bytes: usize) -> u64 {
    let mut words: Vec<u64> = lanes(mask)
        .flat_map(|lane| {
            let first = addresses[lane] / 4;
            first..(addresses[lane] + n_bytes as u64).div_ceil(4)
        })
        .collect();
    words.sort_unstable();
    words.dedup();
    let mut n_words = [0; N_BANKS];
    for word in words {
        n_words[word as usize % N_BANKS] += 1;
    }
    n_words.into_iter().max().unwrap_or(0)
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(stride: u64) -> [u64; 32] {
        std::array::from_fn(|lane| 0x1000 + lane as u64 * stride)
    }

    #[test]
    fn sectors() {
        let cases = [(4, 4, 4), (8, 4, 8), (16, 16, 16), (32, 4, 32), (0, 4, 1), (2, 2, 2)];
        for (stride, n_bytes, expected) in cases {
            let found = n_sectors_of_warp(&strided(stride), !0, n_bytes);
            assert_eq!(found, expected, "stride {stride}, {n_bytes} bytes");
        }
        assert_eq!(n_sectors_of_warp(&strided(4), 0xff, 4), 1);
        assert_eq!((n_sectors(31, 2), n_sectors(0, 0), n_sectors(64, 64)), (2, 0, 2));
    }

    #[test]
    fn bank_conflicts() {
        let cases = [
            // Neighbours, broadcast, every second word, the same bank.
            (4, 4, 0),
            (0, 4, 0),
            (8, 4, 1),
            (128, 4, 31),
            // 33 words apart: the padding that avoids it.
            (132, 4, 0),
            // Vectors in order, and rows of 128 bytes read 16 bytes at a time.
            (8, 8, 0),
            (16, 16, 0),
            (128, 16, 28),
            (2, 2, 0),
        ];
        for (stride, n_bytes, expected) in cases {
            let found = n_bank_conflicts(&strided(stride), !0, n_bytes);
            assert_eq!(found, expected, "stride {stride}, {n_bytes} bytes");
        }
    }
}
