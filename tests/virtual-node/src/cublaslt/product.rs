//! Sums of products, fast enough on a processor that real layers can be tested: each output is the
//! sum over `k` of two rows' products.
//!
//! **Order.** Element `k` goes to partial sum `k mod 16`, in ascending order and single precision;
//! the sixteen are added in one fixed tree. So an output depends on its two rows alone, never on
//! the batch, the tile or the number of threads. Of a product that is split, each part of `k` is
//! summed so, and the parts are added in ascending order. Products of FP8 and of BF16 elements are
//! exact in single precision, so fusing the multiply and the add changes nothing for them.
//!
//! **What Hopper does instead.** Its FP8 tensor cores are reported to keep only about 14 bits while
//! they add up (DeepSeek-V3, arXiv 2412.19437, section 3.3.2); without `FAST_ACCUM` cuBLASLt moves
//! the sums to single precision every so often, with it it does not. Neither is modelled: results
//! here are more exact than those of a real node, and the same with `FAST_ACCUM` as without.

use std::sync::atomic::{AtomicU32, Ordering};

use super::element::Element;

const LANES: usize = 16;
/// Rows of A that share one pass over rows of B, and the other way round.
const TILE_ROWS: usize = 4;
const TILE_COLS: usize = 2;
/// Elements of `k` that are widened at a time.
const DEPTH: usize = 512;
/// Outputs whose partial sums are kept at a time: rows by columns.
const BLOCK_ROWS: usize = 64;
const BLOCK_COLS: usize = 16;
/// Multiplications below which threads cost more than they save.
const N_PRODUCTS_PER_THREAD: usize = 1 << 24;

/// A matrix as rows along `k`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub bytes: &'a [u8],
    pub element: Element,
    /// Elements from one row to the next, and from one `k` to the next.
    pub row_stride: usize,
    pub k_stride: usize,
}

/// All products of `n_rows` rows of `a` with `n_cols` rows of `b`.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    pub a: Rows<'a>,
    pub b: Rows<'a>,
    pub n_rows: usize,
    pub n_cols: usize,
    pub depth: usize,
}

type Sums = [f32; LANES];
/// One block of partial sums, by column, then by row.
type Block = [[Sums; BLOCK_ROWS]; BLOCK_COLS];

impl Rows<'_> {
    /// The same from the `k`-th element of each row on.
    fn from(self, k: usize) -> Self {
        Rows { bytes: &self.bytes[k * self.k_stride * self.element.n_bytes()..], ..self }
    }

    /// Widens elements `k..k + values.len()` of a row; what lies behind `depth` is zero.
    #[inline(always)]
    fn widen(&self, row: usize, k: usize, depth: usize, values: &mut [f32]) {
        let n_bytes = self.element.n_bytes();
        let n = values.len().min(depth - k);
        let begin = row * self.row_stride + k * self.k_stride;
        let (values, padding) = values.split_at_mut(n);
        padding.fill(0.0);
        if self.k_stride == 1 {
            self.element.widen(&self.bytes[begin * n_bytes..][..n * n_bytes], values);
        } else {
            for (idx, value) in values.iter_mut().enumerate() {
                let at = (begin + idx * self.k_stride) * n_bytes;
                *value = self.element.read(&self.bytes[at..]);
            }
        }
    }
}

impl Product<'_> {
    /// As [`Product::run`], but with `k` split into `n_parts`.
    pub fn run_split(
        &self,
        n_parts: usize,
        n_threads_max: usize,
        emit: &(impl Fn(usize, usize, f32) + Sync),
    ) {
        let depth = self.depth.div_ceil(n_parts.max(1));
        if depth == self.depth {
            return self.run(n_threads_max, emit);
        }
        // Bits of zero are those of 0.0.
        let sums: Vec<AtomicU32> =
            (0..self.n_rows * self.n_cols).map(|_| AtomicU32::new(0)).collect();
        for k in (0..self.depth).step_by(depth) {
            let (a, b) = (self.a.from(k), self.b.from(k));
            let part = Product { a, b, depth: depth.min(self.depth - k), ..*self };
            part.run(n_threads_max, &|row, col, sum| {
                let cell = &sums[row * self.n_cols + col];
                let before = f32::from_bits(cell.load(Ordering::Relaxed));
                cell.store((before + sum).to_bits(), Ordering::Relaxed);
            });
        }
        for (idx, sum) in sums.into_iter().enumerate() {
            emit(idx / self.n_cols, idx % self.n_cols, f32::from_bits(sum.into_inner()));
        }
    }

    /// Hands each sum with its row and column to `emit`, from several threads if that pays.
    pub fn run(&self, n_threads_max: usize, emit: &(impl Fn(usize, usize, f32) + Sync)) {
        let n_products = self.n_rows * self.n_cols * self.depth;
        let n_strips = self.n_rows.div_ceil(BLOCK_ROWS);
        let n_threads =
            (n_products / N_PRODUCTS_PER_THREAD).clamp(1, n_threads_max.max(1)).min(n_strips);
        if n_threads <= 1 {
            return self.run_strip(0..self.n_rows, emit);
        }
        let n_rows_each = n_strips.div_ceil(n_threads) * BLOCK_ROWS;
        std::thread::scope(|scope| {
            for begin in (0..self.n_rows).step_by(n_rows_each) {
                let rows = begin..(begin + n_rows_each).min(self.n_rows);
                scope.spawn(move || self.run_strip(rows, emit));
            }
        });
    }

    /// The rows of one thread, with the widest instructions that this processor has.
    fn run_strip(&self, rows: std::ops::Range<usize>, emit: &impl Fn(usize, usize, f32)) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                // SAFETY: the processor was just seen to have what the function is compiled for.
                return unsafe { run_strip_avx512(self, rows, emit) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: as above.
                return unsafe { run_strip_avx2(self, rows, emit) };
            }
        }
        run_strip::<false>(self, rows, emit);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn run_strip_avx512(
    product: &Product<'_>,
    rows: std::ops::Range<usize>,
    emit: &impl Fn(usize, usize, f32),
) {
    run_strip::<true>(product, rows, emit);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_strip_avx2(
    product: &Product<'_>,
    rows: std::ops::Range<usize>,
    emit: &impl Fn(usize, usize, f32),
) {
    run_strip::<true>(product, rows, emit);
}

/// Columns block by block; within a block the rows, within those `k` panel by panel.
#[inline(always)]
fn run_strip<const FUSED: bool>(
    product: &Product<'_>,
    rows: std::ops::Range<usize>,
    emit: &impl Fn(usize, usize, f32),
) {
    let depth = product.depth.next_multiple_of(LANES);
    let mut b = vec![0.0; BLOCK_COLS * depth];
    let mut sums: Box<Block> = Box::new([[[0.0; LANES]; BLOCK_ROWS]; BLOCK_COLS]);
    for begin_col in (0..product.n_cols).step_by(BLOCK_COLS) {
        let n_cols = BLOCK_COLS.min(product.n_cols - begin_col);
        for (col, values) in b.chunks_exact_mut(depth.max(1)).take(n_cols).enumerate() {
            product.b.widen(begin_col + col, 0, product.depth, values);
        }
        for begin_row in rows.clone().step_by(BLOCK_ROWS) {
            let n_rows = BLOCK_ROWS.min(rows.end - begin_row);
            for column in sums.iter_mut().take(n_cols) {
                column[..n_rows].fill([0.0; LANES]);
            }
            let block = BlockOf { product, begin_row, n_rows, b: &b, n_cols };
            block.add_all::<FUSED>(&mut sums);
            for (col, column) in sums.iter().take(n_cols).enumerate() {
                for (row, lanes) in column.iter().take(n_rows).enumerate() {
                    emit(begin_row + row, begin_col + col, tree_sum(*lanes));
                }
            }
        }
    }
}

/// Some rows of A against the widened columns of B, of `k` padded to whole vectors.
struct BlockOf<'a> {
    product: &'a Product<'a>,
    begin_row: usize,
    n_rows: usize,
    b: &'a [f32],
    n_cols: usize,
}

impl BlockOf<'_> {
    #[inline(always)]
    fn add_all<const FUSED: bool>(&self, sums: &mut Block) {
        let depth = self.product.depth.next_multiple_of(LANES);
        let mut a = [[[0.0; LANES]; DEPTH / LANES]; TILE_ROWS];
        for k in (0..depth).step_by(DEPTH) {
            let n_k = DEPTH.min(depth - k);
            for row in (0..self.n_rows).step_by(TILE_ROWS) {
                let n_tile_rows = TILE_ROWS.min(self.n_rows - row);
                for (idx, values) in a.iter_mut().enumerate().take(n_tile_rows) {
                    let row_idx = self.begin_row + row + idx;
                    let values = &mut values.as_flattened_mut()[..n_k];
                    self.product.a.widen(row_idx, k, self.product.depth, values);
                }
                let mut col = 0;
                while col < self.n_cols {
                    let column = |idx: usize| {
                        self.b[(col + idx) * depth + k..][..n_k].as_chunks::<LANES>().0
                    };
                    if col + TILE_COLS <= self.n_cols {
                        let tile = &mut sums[col..col + TILE_COLS];
                        add_tile::<TILE_COLS, FUSED>(&a, [column(0), column(1)], tile, row);
                        col += TILE_COLS;
                    } else {
                        add_tile::<1, FUSED>(&a, [column(0)], &mut sums[col..=col], row);
                        col += 1;
                    }
                }
            }
        }
    }
}

/// Adds the products of four rows of `a` with each of `b` to their partial sums. Everything is
/// copied into arrays of vectors first, so that the compiler keeps the tile in registers.
#[inline(always)]
fn add_tile<const COLS: usize, const FUSED: bool>(
    a: &[[Sums; DEPTH / LANES]; TILE_ROWS],
    b: [&[Sums]; COLS],
    sums: &mut [[Sums; BLOCK_ROWS]],
    row: usize,
) {
    let mut tile = [[[0.0f32; LANES]; TILE_ROWS]; COLS];
    for (tile, column) in tile.iter_mut().zip(sums.iter()) {
        tile.copy_from_slice(&column[row..row + TILE_ROWS]);
    }
    let n_vectors = b[0].len().min(DEPTH / LANES);
    for k in 0..n_vectors {
        let x: [Sums; TILE_ROWS] = [a[0][k], a[1][k], a[2][k], a[3][k]];
        for col in 0..COLS {
            let y = b[col][k];
            for row in 0..TILE_ROWS {
                tile[col][row] = multiply_add::<FUSED>(x[row], y, tile[col][row]);
            }
        }
    }
    for (tile, column) in tile.iter().zip(sums.iter_mut()) {
        column[row..row + TILE_ROWS].copy_from_slice(tile);
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(x: Sums, y: Sums, sums: Sums) -> Sums {
    std::array::from_fn(|lane| {
        if FUSED { x[lane].mul_add(y[lane], sums[lane]) } else { x[lane] * y[lane] + sums[lane] }
    })
}

/// Adds lane `i` to lane `i + 8`, then the eight in the same way, and so on.
fn tree_sum(mut lanes: Sums) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for lane in 0..n {
            lanes[lane] += lanes[lane + n];
        }
        n /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn random_bytes(seed: u64, n: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // No NaN of E4M3 or E5M2, and no huge exponents.
            (state >> 32) as u8 & 0xbf
        };
        (0..n).map(|_| next()).collect()
    }

    fn outputs(product: &Product<'_>, n_threads: usize) -> Vec<f32> {
        let out = Mutex::new(vec![f32::NAN; product.n_rows * product.n_cols]);
        product.run(n_threads, &|row, col, sum| {
            let cell = &mut out.lock().unwrap()[row * product.n_cols + col];
            assert!(cell.is_nan(), "{row} {col} twice");
            *cell = sum;
        });
        out.into_inner().unwrap()
    }

    fn rows(bytes: &[u8], element: Element, depth: usize) -> Rows<'_> {
        Rows { bytes, element, row_stride: depth, k_stride: 1 }
    }

    /// Against double precision, within the bound of a sum of `depth` terms in sixteen parts.
    fn check(product: &Product<'_>) {
        let out = outputs(product, 1);
        let at = |rows: &Rows<'_>, row: usize, k: usize| {
            let element_idx = row * rows.row_stride + k * rows.k_stride;
            f64::from(rows.element.read(&rows.bytes[element_idx * rows.element.n_bytes()..]))
        };
        for row in 0..product.n_rows {
            for col in 0..product.n_cols {
                let terms =
                    (0..product.depth).map(|k| at(&product.a, row, k) * at(&product.b, col, k));
                let (sum, size) = terms
                    .fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs()));
                let n_roundings = (product.depth / LANES + 6) as f64;
                let bound = size * n_roundings * f64::from(f32::EPSILON) / 2.0;
                let value = f64::from(out[row * product.n_cols + col]);
                let error = (value - sum).abs();
                assert!(error <= bound, "{row} {col}: {value} for {sum}, {error:e} > {bound:e}");
            }
        }
    }

    #[test]
    fn odd_shapes_agree_with_double_precision() {
        for (n_rows, n_cols, depth) in
            [(1, 1, 1), (5, 3, 17), (66, 18, 515), (4, 1, 2048), (130, 33, 1040), (3, 2, 0)]
        {
            for element in [Element::E4m3, Element::Bf16, Element::E5m2, Element::F16] {
                let n_bytes = element.n_bytes();
                let seed = (n_rows * 31 + n_cols * 7 + depth) as u64;
                let a = random_bytes(seed, n_rows * depth * n_bytes);
                let b = random_bytes(seed + 1, n_cols * depth * n_bytes);
                let (a, b) = (rows(&a, element, depth), rows(&b, element, depth));
                check(&Product { a, b, n_rows, n_cols, depth });
            }
        }
    }

    #[test]
    fn strides_may_lie_any_way() {
        let (n_rows, n_cols, depth) = (7, 9, 50);
        let bytes = random_bytes(5, 2 * 80 * 80);
        let across = Rows { bytes: &bytes, element: Element::Bf16, row_stride: 1, k_stride: 70 };
        let along =
            Rows { bytes: &bytes[64..], element: Element::Bf16, row_stride: 60, k_stride: 1 };
        check(&Product { a: across, b: along, n_rows, n_cols, depth });
        check(&Product { a: along, b: across, n_rows, n_cols, depth });
    }

    #[test]
    fn an_output_depends_on_its_rows_alone() {
        let (n_rows, n_cols, depth) = (300, 40, 3000);
        let a = random_bytes(1, n_rows * depth);
        let b = random_bytes(2, n_cols * depth);
        let (a, b) = (rows(&a, Element::E4m3, depth), rows(&b, Element::E4m3, depth));
        let product = Product { a, b, n_rows, n_cols, depth };
        let all = outputs(&product, 1);
        let threads = outputs(&product, 3);
        assert!(all.iter().zip(&threads).all(|(x, y)| x.to_bits() == y.to_bits()));
        let single = Rows { bytes: &b.bytes[17 * depth..], ..b };
        let alone = outputs(&Product { b: single, n_cols: 1, ..product }, 1);
        for (row, value) in alone.iter().enumerate() {
            assert_eq!(value.to_bits(), all[row * n_cols + 17].to_bits(), "row {row}");
        }
    }

    #[test]
    fn a_split_sum_is_the_sum_of_its_parts() {
        let (n_rows, n_cols, depth) = (70, 19, 1111);
        // Of two bytes: sums of small FP8 numbers are exact, whatever their order.
        let a = random_bytes(13, 2 * n_rows * depth);
        let b = random_bytes(14, 2 * n_cols * depth);
        let (a, b) = (rows(&a, Element::Bf16, depth), rows(&b, Element::Bf16, depth));
        let product = Product { a, b, n_rows, n_cols, depth };
        let out = Mutex::new(vec![f32::NAN; n_rows * n_cols]);
        product.run_split(3, 2, &|row, col, sum| out.lock().unwrap()[row * n_cols + col] = sum);
        let split = out.into_inner().unwrap();
        let [first, second, third] = [0, 371, 742].map(|k| {
            let (a, b) = (a.from(k), b.from(k));
            outputs(&Product { a, b, depth: 371.min(depth - k), ..product }, 1)
        });
        for (idx, sum) in split.iter().enumerate() {
            let expected = 0.0 + first[idx] + second[idx] + third[idx];
            assert_eq!(sum.to_bits(), expected.to_bits(), "{idx}");
        }
        assert!(split != outputs(&product, 1), "it shows in the bits");
    }

    #[test]
    fn all_instruction_levels_agree_bit_for_bit() {
        let (n_rows, n_cols, depth) = (70, 19, 1111);
        let a = random_bytes(3, n_rows * depth);
        let b = random_bytes(4, n_cols * depth);
        let (a, b) = (rows(&a, Element::E4m3, depth), rows(&b, Element::E4m3, depth));
        let product = Product { a, b, n_rows, n_cols, depth };
        let out = Mutex::new(vec![0.0; n_rows * n_cols]);
        run_strip::<false>(&product, 0..n_rows, &|row, col, sum| {
            out.lock().unwrap()[row * n_cols + col] = sum;
        });
        assert_eq!(out.into_inner().unwrap(), outputs(&product, 1));
    }

    #[test]
    fn nan_is_not_lost() {
        let mut a = random_bytes(9, 32);
        a[20] = 0x7f;
        let b = random_bytes(10, 16);
        let (a, b) = (rows(&a, Element::E4m3, 16), rows(&b, Element::E4m3, 16));
        let out = outputs(&Product { a, b, n_rows: 2, n_cols: 1, depth: 16 }, 1);
        assert!(out[0].is_finite() && out[1].is_nan());
    }

    #[test]
    fn it_is_fast_enough_for_real_layers() {
        // No assertion on time, which depends on the machine: run with --nocapture to see.
        for (n_rows, n_cols, depth) in [(2304, 1, 16_384), (512, 64, 16_384)] {
            let a = random_bytes(1, n_rows * depth);
            let b = random_bytes(2, n_cols * depth);
            let (a, b) = (rows(&a, Element::E4m3, depth), rows(&b, Element::E4m3, depth));
            let product = Product { a, b, n_rows, n_cols, depth };
            let began = std::time::Instant::now();
            let total = Mutex::new(0.0f64);
            product.run(1, &|_, _, sum| *total.lock().unwrap() += f64::from(sum));
            let seconds = began.elapsed().as_secs_f64();
            let gflops = 2.0 * (n_rows * n_cols * depth) as f64 / seconds / 1e9;
            eprintln!("{n_rows} x {n_cols} x {depth}: {gflops:.1} GFLOP/s on one core");
            assert!(total.into_inner().unwrap().is_finite());
        }
    }
}
