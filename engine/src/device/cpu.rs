//! The processor as a device: a rank's threads, their scratch memory, and how work is cut.
//!
//! Work is an output matrix, cut into tiles; each belongs to one thread. Which thread takes which
//! tile changes from run to run: kernels must not let it reach a result.

use std::sync::Arc;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use weights::LinearWeights;

#[cfg(target_arch = "x86_64")]
use super::simd::attention_tiles::TiledScratch;
use super::simd::{
    AttentionScratch, ProductScratch, Stored, TileScratch, TileWeights, pack_pair, packs,
};
use super::team::Team;
use super::{Aligned, DeviceError, HostViewMut, Simd, SimdLevel, Tiles};

/// Work under this is done by the calling thread: waking others takes longer than doing it. The
/// unit is a multiply-add or a byte read, whichever are more.
const SERIAL_WORK_MAX: usize = 1 << 17;

/// The same for work row by row: an element costs a read, some arithmetic and a write.
const SERIAL_ELEMENTS_MAX: usize = 1 << 15;

/// Pieces that rows are cut into for each thread: one that comes late finds some of them done.
const N_PIECES_PER_THREAD: usize = 4;

/// A rank's compute threads and their scratch. The thread that calls computes too.
pub struct CpuExec {
    team: Team,
    /// By thread of the team. Nothing ever waits on these locks: a tile does not start another.
    scratch: Vec<Mutex<Scratch>>,
    /// A product's input as its kernels want it. Only the rank's own thread takes the lock.
    packed: Mutex<Aligned>,
    simd: Simd,
    rounds_inputs: bool,
    packs_weights: bool,
}

/// Memory that a thread works in, so that a step allocates nothing.
pub(crate) struct Scratch {
    pub(crate) product: ProductScratch,
    pub(crate) tiles: TileScratch,
    pub(crate) attention: AttentionScratch,
    #[cfg(target_arch = "x86_64")]
    pub(crate) tiled: TiledScratch,
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
    /// instructions.
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
        let team =
            Team::new(n_threads).map_err(|source| DeviceError::Threads { n_threads, source })?;
        let scratch = (0..n_threads).map(|_| Mutex::new(Scratch::new())).collect();
        Ok(CpuExec {
            team,
            scratch,
            packed: Mutex::new(Aligned::new(0)),
            simd,
            rounds_inputs: false,
            packs_weights: true,
        })
    }

    /// Whether what meets weights of BF16 shall be rounded to BF16, and what meets keys and values
    /// where tiles multiply those. It is not, unless this says so.
    pub fn round_inputs(&mut self, rounds_inputs: bool) {
        self.rounds_inputs = rounds_inputs;
    }

    /// Whether what meets weights of BF16 is rounded to BF16.
    pub fn rounds_inputs(&self) -> bool {
        self.rounds_inputs
    }

    /// Takes memory for packed inputs of up to `n_floats`, so that no step has to.
    pub(crate) fn reserve_packed(&self, n_floats: usize) {
        drop(self.packed(n_floats));
    }

    /// `n_floats` of memory for a packed input, allocated if nobody reserved as much.
    pub(crate) fn packed(&self, n_floats: usize) -> MappedMutexGuard<'_, [f32]> {
        let mut memory = self.packed.lock();
        if memory.len() < n_floats {
            *memory = Aligned::new(n_floats);
        }
        MutexGuard::map(memory, |memory| &mut memory[..n_floats])
    }

    /// Leaves weights where they are mapped, even if tiles could multiply them packed.
    pub(crate) fn keep_weights_mapped(&mut self) {
        self.packs_weights = false;
    }

    /// Packs a projection's parts, if tiles multiply [such](packs). What was mapped of them may go.
    pub(crate) fn pack(&self, parts: &[LinearWeights]) -> Option<Arc<[TileWeights]>> {
        let packed = |part: &LinearWeights| self.packed_of(Stored::Plain(&part.matrix));
        self.packs(parts).then(|| parts.iter().map(packed).collect())
    }

    /// The same of a gate and what it gates, side by side.
    pub(crate) fn pack_gated(&self, [gate, up]: &[LinearWeights; 2]) -> Option<Arc<[TileWeights]>> {
        let packed = || self.packed_of(Stored::Gated([&gate.matrix, &up.matrix]));
        self.packs([gate, up]).then(|| Arc::from([packed()]))
    }

    fn packs<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a LinearWeights, IntoIter: Clone>,
    ) -> bool {
        self.packs_weights && packs(self.simd, parts, self.rounds_inputs)
    }

    fn packed_of(&self, stored: Stored<'_>) -> TileWeights {
        for matrix in stored.matrices() {
            matrix.bytes.fetch(matrix.span());
        }
        let mut packed = TileWeights::room_for(stored);
        let work = packed.n_bytes();
        let out = packed.pairs_mut();
        let grid = Grid { tile_rows: 1, tile_cols: out.n_cols().max(1), work };
        self.for_each_tile(out, grid, |mut tile, _| {
            pack_pair(stored, tile.row_idx, tile.out.row_mut(0));
        });
        for matrix in stored.matrices() {
            matrix.bytes.forget(matrix.span());
        }
        packed
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
        let tiles = Tiles::new(out, grid.tile_rows, grid.tile_cols);
        self.for_each_piece(tiles.n_tiles(), grid.work > SERIAL_WORK_MAX, &|thread_idx, idx| {
            // SAFETY: every piece runs once.
            let (row_idx, col_idx, out) = unsafe { tiles.tile(idx) };
            body(Tile { row_idx, col_idx, out }, &mut self.scratch[thread_idx].lock());
        });
    }

    /// Runs `body(row_idx, row, scale)` once for every row of `out` and its scale.
    pub(crate) fn for_each_row(
        &self,
        out: HostViewMut<'_>,
        scales: &mut [f32],
        body: impl Fn(usize, &mut [f32], &mut f32) + Sync,
    ) {
        let (n_rows, n_cols) = (out.n_rows(), out.n_cols());
        assert_eq!(n_rows, scales.len(), "a scale for every row");
        if n_rows == 0 {
            return;
        }
        let n_piece_rows = n_rows.div_ceil(N_PIECES_PER_THREAD * self.n_threads());
        let rows = Tiles::new(out, n_piece_rows, n_cols.max(1));
        let scales = Tiles::new(HostViewMut::new(scales, n_rows, 1), n_piece_rows, 1);
        let is_large = n_rows * n_cols > SERIAL_ELEMENTS_MAX;
        self.for_each_piece(scales.n_tiles(), is_large, &|_, idx| {
            // SAFETY: every piece runs once; the rows are one tile wide.
            let ((row_idx, _, mut rows), (_, _, mut scales)) =
                unsafe { (rows.tile(idx), scales.tile(idx)) };
            for i in 0..rows.n_rows() {
                body(row_idx + i, rows.row_mut(i), &mut scales.row_mut(i)[0]);
            }
        });
    }

    /// Runs `piece(thread_idx, piece_idx)` once for each of `n_pieces`: on all threads where that
    /// is worth waking them.
    fn for_each_piece(
        &self,
        n_pieces: usize,
        is_large: bool,
        piece: &(dyn Fn(usize, usize) + Sync),
    ) {
        if is_large && n_pieces > 1 && self.n_threads() > 1 {
            return self.team.run(n_pieces, piece);
        }
        (0..n_pieces).for_each(|piece_idx| piece(0, piece_idx));
    }
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            product: ProductScratch::new(),
            tiles: TileScratch::new(),
            attention: AttentionScratch::new(),
            #[cfg(target_arch = "x86_64")]
            tiled: TiledScratch::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_threads(n_threads: usize, test: impl FnOnce(&CpuExec)) {
        test(&CpuExec::new(n_threads).expect("threads start"));
    }

    #[test]
    fn every_tile_runs_once_at_its_place() {
        for n_threads in [1, 2, 3] {
            for work in [0, usize::MAX] {
                with_threads(n_threads, |exec| {
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
            with_threads(n_threads, |exec| {
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
        with_threads(2, |exec| {
            let grid = Grid { tile_rows: 4, tile_cols: 5, work: 0 };
            exec.for_each_tile(HostViewMut::new(&mut [], 0, 5), grid, |_, _| panic!("no tile"));
            exec.for_each_row(HostViewMut::new(&mut [], 0, 5), &mut [], |_, _, _| panic!("no row"));
        });
    }
}
