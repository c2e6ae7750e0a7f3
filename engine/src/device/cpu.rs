//! The processor as a device: a rank's threads, their scratch memory, and how work is cut.
//!
//! Work is an output matrix, halved until a piece is one tile; each piece belongs to one thread.
//! Which thread takes which tile changes from run to run: kernels must not let it reach a result.

use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::simd::{AttentionScratch, ProductScratch};
use super::{DeviceError, HostViewMut, Simd, SimdLevel};

/// Work under this is done by the calling thread: waking others takes longer than doing it. The
/// unit is a multiply-add or a byte read, whichever are more.
const SERIAL_WORK_MAX: usize = 1 << 17;

/// The same for work row by row: an element costs a read, some arithmetic and a write.
const SERIAL_ELEMENTS_MAX: usize = 1 << 15;

/// A rank's compute threads and their scratch. Made on the rank's own thread, which computes too.
pub struct CpuExec {
    /// `None` with one thread.
    pool: Option<ThreadPool>,
    /// By thread of the pool. Nothing ever waits on these locks: a tile does not start another.
    scratch: Vec<Mutex<Scratch>>,
    simd: Simd,
}

/// Memory that a thread works in, so that a step allocates nothing.
pub(crate) struct Scratch {
    pub(crate) product: ProductScratch,
    pub(crate) attention: AttentionScratch,
}

/// How an output is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Most rows of a tile.
    pub(crate) tile_rows: usize,
    /// Most columns of a tile.
    pub(crate) tile_cols: usize,
    /// Of the whole output: multiply-adds or bytes read, whichever are more.
    pub(crate) work: usize,
}

/// One thread's piece of an output.
pub(crate) struct Tile<'a> {
    /// First row in the whole output.
    pub(crate) row_idx: usize,
    /// First column in the whole output.
    pub(crate) col_idx: usize,
    /// The piece.
    pub(crate) out: HostViewMut<'a>,
}

impl CpuExec {
    /// Starts `n_threads - 1` threads beside the calling one, with the processor's best
    /// instructions. A thread can hold one executor of several threads in its life.
    pub fn new(n_threads: usize) -> Result<CpuExec, DeviceError> {
        CpuExec::build(n_threads, Simd::detect())
    }

    /// The same with chosen instructions.
    ///
    /// # Errors
    /// [`DeviceError::NoSimd`] where the processor lacks them.
    pub fn with_simd(n_threads: usize, level: SimdLevel) -> Result<CpuExec, DeviceError> {
        CpuExec::build(n_threads, Simd::new(level).ok_or(DeviceError::NoSimd { level })?)
    }

    fn build(n_threads: usize, simd: Simd) -> Result<CpuExec, DeviceError> {
        assert!(n_threads > 0, "a rank has at least its own thread");
        let builder = ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|thread_idx| format!("compute-{thread_idx}"))
            .use_current_thread();
        let pool = match n_threads {
            1 => None,
            _ => {
                Some(builder.build().map_err(|source| DeviceError::Threads { n_threads, source })?)
            }
        };
        let scratch = (0..n_threads).map(|_| Mutex::new(Scratch::new())).collect();
        Ok(CpuExec { pool, scratch, simd })
    }

    /// Compute threads, the rank's own among them.
    pub fn n_threads(&self) -> usize {
        self.scratch.len()
    }

    /// The instructions in use.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Runs `body` once for every tile of `out`. Tiles are cut by columns first, so that a thread
    /// stays in the same columns (the same weights, the same head) over all rows.
    pub(crate) fn for_each_tile(
        &self,
        out: HostViewMut<'_>,
        grid: Grid,
        body: impl Fn(Tile<'_>, &mut Scratch) + Sync,
    ) {
        if out.n_rows() == 0 || out.n_cols() == 0 {
            return;
        }
        let whole = Tile { row_idx: 0, col_idx: 0, out };
        let body = |tile: Tile<'_>| body(tile, &mut self.scratch[self.thread_idx()].lock());
        match &self.pool {
            Some(pool) if grid.work > SERIAL_WORK_MAX => {
                pool.install(|| tiles_in_parallel(whole, grid, &body));
            }
            _ => tiles_in_turn(whole, grid, &body),
        }
    }

    /// Runs `body(row_idx, row, scale)` once for every row of `out` and its scale.
    pub(crate) fn for_each_row(
        &self,
        mut out: HostViewMut<'_>,
        scales: &mut [f32],
        body: impl Fn(usize, &mut [f32], &mut f32) + Sync,
    ) {
        assert_eq!(out.n_rows(), scales.len(), "a scale for every row");
        match &self.pool {
            Some(pool) if out.n_rows() * out.n_cols() > SERIAL_ELEMENTS_MAX => {
                pool.install(|| rows_in_parallel(0, out, scales, &body));
            }
            _ => {
                for (row_idx, scale) in scales.iter_mut().enumerate() {
                    body(row_idx, out.row_mut(row_idx), scale);
                }
            }
        }
    }

    fn thread_idx(&self) -> usize {
        self.pool.as_ref().and_then(ThreadPool::current_thread_index).unwrap_or(0)
    }
}

impl Scratch {
    fn new() -> Scratch {
        Scratch { product: ProductScratch::new(), attention: AttentionScratch::new() }
    }
}

impl<'a> Tile<'a> {
    /// Two parts of whole tiles of `grid`, or the tile itself if it is one.
    fn halves(self, grid: Grid) -> Result<(Tile<'a>, Tile<'a>), Tile<'a>> {
        let Tile { row_idx, col_idx, out } = self;
        if out.n_cols() > grid.tile_cols {
            let n_left = out.n_cols().div_ceil(grid.tile_cols) / 2 * grid.tile_cols;
            let (left, right) = out.split_columns(n_left);
            let right = Tile { row_idx, col_idx: col_idx + n_left, out: right };
            Ok((Tile { row_idx, col_idx, out: left }, right))
        } else if out.n_rows() > grid.tile_rows {
            let n_upper = out.n_rows().div_ceil(grid.tile_rows) / 2 * grid.tile_rows;
            let (upper, lower) = out.split_rows(n_upper);
            let lower = Tile { row_idx: row_idx + n_upper, col_idx, out: lower };
            Ok((Tile { row_idx, col_idx, out: upper }, lower))
        } else {
            Err(Tile { row_idx, col_idx, out })
        }
    }
}

fn tiles_in_parallel(tile: Tile<'_>, grid: Grid, body: &(impl Fn(Tile<'_>) + Sync)) {
    match tile.halves(grid) {
        Ok((one, other)) => {
            rayon::join(
                || tiles_in_parallel(one, grid, body),
                || tiles_in_parallel(other, grid, body),
            );
        }
        Err(tile) => body(tile),
    }
}

fn tiles_in_turn(tile: Tile<'_>, grid: Grid, body: &impl Fn(Tile<'_>)) {
    match tile.halves(grid) {
        Ok((one, other)) => {
            tiles_in_turn(one, grid, body);
            tiles_in_turn(other, grid, body);
        }
        Err(tile) => body(tile),
    }
}

fn rows_in_parallel(
    row_idx: usize,
    mut out: HostViewMut<'_>,
    scales: &mut [f32],
    body: &(impl Fn(usize, &mut [f32], &mut f32) + Sync),
) {
    if let [scale] = scales {
        return body(row_idx, out.row_mut(0), scale);
    }
    let half = scales.len() / 2;
    let (upper, lower) = out.split_rows(half);
    let (upper_scales, lower_scales) = scales.split_at_mut(half);
    rayon::join(
        || rows_in_parallel(row_idx, upper, upper_scales, body),
        || rows_in_parallel(row_idx + half, lower, lower_scales, body),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool takes the thread that makes it for good: each test makes its own.
    fn on_a_thread(n_threads: usize, test: impl FnOnce(&CpuExec) + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| test(&CpuExec::new(n_threads).expect("threads start")));
        });
    }

    #[test]
    fn every_tile_runs_once_at_its_place() {
        for n_threads in [1, 2, 3] {
            for work in [0, usize::MAX] {
                on_a_thread(n_threads, |exec| {
                    let (n_rows, n_cols) = (11, 37);
                    let mut data = vec![0.0; n_rows * n_cols];
                    let grid = Grid { tile_rows: 4, tile_cols: 5, work };
                    exec.for_each_tile(
                        HostViewMut::new(&mut data, n_rows, n_cols),
                        grid,
                        |tile, _| {
                            let Tile { row_idx, col_idx, mut out } = tile;
                            assert_eq!((row_idx % 4, col_idx % 5), (0, 0), "tiles lie on the grid");
                            assert!(out.n_rows() <= 4 && out.n_cols() <= 5);
                            for i in 0..out.n_rows() {
                                for (j, x) in out.row_mut(i).iter_mut().enumerate() {
                                    *x += ((row_idx + i) * n_cols + col_idx + j) as f32 + 1.0;
                                }
                            }
                        },
                    );
                    assert!(data.iter().enumerate().all(|(i, &x)| x == i as f32 + 1.0), "{data:?}");
                });
            }
        }
    }

    #[test]
    fn every_row_runs_once_with_its_scale() {
        for n_threads in [1, 2] {
            on_a_thread(n_threads, |exec| {
                let (n_rows, n_cols) = (7, SERIAL_ELEMENTS_MAX / 7 + 1);
                let mut data = vec![0.0; n_rows * n_cols];
                let mut scales = vec![0.0; n_rows];
                let out = HostViewMut::new(&mut data, n_rows, n_cols);
                exec.for_each_row(out, &mut scales, |row_idx, row, scale| {
                    row[0] += row_idx as f32;
                    *scale += 2.0 * row_idx as f32;
                });
                for i in 0..n_rows {
                    assert_eq!((data[i * n_cols], scales[i]), (i as f32, 2.0 * i as f32));
                }
            });
        }
    }

    #[test]
    fn nothing_runs_for_an_empty_output() {
        on_a_thread(2, |exec| {
            let grid = Grid { tile_rows: 4, tile_cols: 5, work: 0 };
            exec.for_each_tile(HostViewMut::new(&mut [], 0, 5), grid, |_, _| panic!("no tile"));
            exec.for_each_row(HostViewMut::new(&mut [], 0, 5), &mut [], |_, _, _| panic!("no row"));
        });
    }
}
