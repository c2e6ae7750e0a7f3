//! The product of two tiles: what tensor cores are for, on a core that has none.
//!
//! A product of two elements of up to 11 bits of mantissa is exact in single precision, so it
//! makes no difference that products are not fused into sums. Real tensor cores sum in another
//! order and, on FP8, keep fewer bits; see `README` for what is known of that.

/// Columns that are summed at a time: they stay in vector registers over all of K.
const N_BLOCK: usize = 16;

/// `sums[row][col] += Σ_k a[row][k] × b[k][col]`, all row-major, over K in order. The rows are as
/// many as `a` has.
pub(super) fn multiply(a: &[f32], b: &[f32], sums: &mut [f32], k: usize, n_cols: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked whether it has AVX2.
        return unsafe { multiply_avx2(a, b, sums, k, n_cols) };
    }
    multiply_rows(a, b, sums, k, n_cols);
}

/// # Safety
///
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_avx2(a: &[f32], b: &[f32], sums: &mut [f32], k: usize, n_cols: usize) {
    multiply_rows(a, b, sums, k, n_cols);
}

#[inline(always)]
fn multiply_rows(a: &[f32], b: &[f32], sums: &mut [f32], k: usize, n_cols: usize) {
    for (a_row, sums_row) in a.chunks_exact(k).zip(sums.chunks_exact_mut(n_cols)) {
        let mut first = 0;
        while first + N_BLOCK <= n_cols {
            multiply_block::<N_BLOCK>(a_row, &b[first..], &mut sums_row[first..], n_cols);
            first += N_BLOCK;
        }
        if first < n_cols {
            multiply_block::<8>(a_row, &b[first..], &mut sums_row[first..], n_cols);
        }
    }
}

#[inline(always)]
fn multiply_block<const N: usize>(a_row: &[f32], b: &[f32], sums: &mut [f32], n_cols: usize) {
    let mut block = [0f32; N];
    block.copy_from_slice(&sums[..N]);
    for (&left, b_row) in a_row.iter().zip(b.chunks(n_cols)) {
        for (sum, &right) in block.iter_mut().zip(&b_row[..N]) {
            *sum += left * right;
        }
    }
    sums[..N].copy_from_slice(&block);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_a_dot_product() {
        for (n_rows, k, n_cols) in [(16, 8, 8), (16, 32, 24), (64, 16, 256), (1, 4, 40)] {
            let a: Vec<f32> = (0..n_rows * k).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
            let b: Vec<f32> = (0..k * n_cols).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
            let mut sums: Vec<f32> = (0..n_rows * n_cols).map(|i| i as f32).collect();
            multiply(&a, &b, &mut sums, k, n_cols);
            for row in 0..n_rows {
                for col in 0..n_cols {
                    let start = (row * n_cols + col) as f32;
                    let dot: f32 = (0..k).map(|i| a[row * k + i] * b[i * n_cols + col]).sum();
                    assert_eq!(sums[row * n_cols + col], start + dot, "{row} {col}");
                }
            }
        }
    }
}
