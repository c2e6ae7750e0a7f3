//! Who reads what of the files, and in which order, so that every byte is read once and nobody
//! seeks: decided when all ranks have said what they take.
//!
//! What one rank takes as it lies in the file is *its own*: it reads long runs of rows straight
//! into the memory that the device copies from. What several ranks take parts of, because it is cut
//! by columns or because there are more ranks than heads, is *shared*: it is cut into windows of
//! whole rows, whose readers take turns, and from which each rank takes its columns. Here are no
//! threads and no devices.

use std::ops::Range;

use weights::Bytes;

/// Threads of all ranks that read at once, where there are as many processor cores.
const N_READERS_MAX: usize = 16;

/// Bytes of a run of rows that a rank reads for itself on one thread: they should still be in the
/// processor's nearer caches when they leave. One thread fills them more slowly than a link of 50
/// GB/s empties them.
const PIECE_BYTES: usize = 256 << 10;

/// The same where several threads share a piece, at most and at least.
const SHARED_PIECE_BYTES_MAX: usize = 8 << 20;
const SHARED_PIECE_BYTES_MIN: usize = 2 << 20;

/// What such pieces of all ranks come to.
const SHARED_PIECES_BYTES: usize = 16 << 20;

/// Bytes of a window that ranks share: what one has read, the others find in the processor's
/// caches.
pub(super) const WINDOW_BYTES: usize = 256 << 10;

/// Bytes that a rank has the system fetch at a time, before they are read.
const FETCHED_BYTES: usize = 4 << 20;

/// Something that a rank takes out of a file.
#[derive(Clone, Debug)]
pub(super) struct Want {
    /// Which of the rank's copies it is.
    pub(super) copy_idx: usize,
    pub(super) bytes: Bytes,
    /// From its first byte to its last.
    pub(super) span: Range<usize>,
    /// Bytes from one row to the next.
    pub(super) row_stride: usize,
    /// The device takes the bytes as they lie in the file.
    pub(super) is_plain: bool,
}

/// Who takes a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taker {
    pub(super) rank_idx: usize,
    pub(super) copy_idx: usize,
}

/// Bytes of a file that belong together.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) bytes: Bytes,
    pub(super) span: Range<usize>,
    pub(super) row_stride: usize,
    pub(super) takers: Vec<Taker>,
    pub(super) source: Source,
}

/// How a region gets to its takers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It is zeroes that no disk holds.
    Hole,
    /// Its only taker reads it into the memory that is sent.
    Own,
    /// Its takers read windows of it in turn.
    Shared,
}

/// Rows that are read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) region_idx: usize,
    /// Bytes of the file.
    pub(super) span: Range<usize>,
    /// Who reads them.
    pub(super) reader_idx: usize,
    /// Which window it is, if it is one.
    pub(super) window_idx: Option<usize>,
}

/// The regions and their pieces, in the order in which every rank goes through them.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) regions: Vec<Region>,
    pub(super) pieces: Vec<Piece>,
    /// Of the longest window.
    pub(super) window_bytes: usize,
}

/// Threads on which each of `n_ranks` reads.
pub(super) fn n_readers(n_ranks: usize) -> usize {
    let n_cores = std::thread::available_parallelism().map_or(1, |n_cores| n_cores.get());
    (n_cores.min(N_READERS_MAX) / n_ranks).max(1)
}

/// Bytes of a run of rows that each of `n_ranks` reads for itself.
pub(super) fn piece_bytes(n_ranks: usize) -> usize {
    if n_readers(n_ranks) == 1 {
        return PIECE_BYTES;
    }
    (SHARED_PIECES_BYTES / n_ranks).clamp(SHARED_PIECE_BYTES_MIN, SHARED_PIECE_BYTES_MAX)
}

impl Region {
    /// Whether the rank takes something of it.
    pub(super) fn is_for(&self, rank_idx: usize) -> bool {
        self.takers.iter().any(|taker| taker.rank_idx == rank_idx)
    }

    /// What the rank takes of it.
    pub(super) fn copies_of(&self, rank_idx: usize) -> impl Iterator<Item = usize> {
        let takers = self.takers.iter().filter(move |taker| taker.rank_idx == rank_idx);
        takers.map(|taker| taker.copy_idx)
    }

    /// Ranks that take something of it, ascending.
    pub(super) fn ranks(&self) -> Vec<usize> {
        let mut ranks: Vec<usize> = self.takers.iter().map(|taker| taker.rank_idx).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// What the rank has the system fetch when it comes to a piece at `at`, having had all up to
    /// `fetched_end` fetched by itself and the others, which is set forward: its share of the next
    /// strides, each of which has a part for every rank. So the disk has something to do for all
    /// ranks at once, and is a stride ahead of them.
    pub(super) fn fetches(
        &self,
        rank_idx: usize,
        at: usize,
        fetched_end: &mut usize,
    ) -> Vec<Range<usize>> {
        let ranks = self.ranks();
        let part_idx = ranks.iter().position(|&idx| idx == rank_idx).expect("it takes some of it");
        let stride = ranks.len() * FETCHED_BYTES;
        let mut parts = Vec::new();
        while *fetched_end < self.span.end && *fetched_end < at + stride {
            let begin = (*fetched_end + part_idx * FETCHED_BYTES).min(self.span.end);
            let end = (begin + FETCHED_BYTES).min(self.span.end);
            parts.push(begin..end);
            *fetched_end += stride;
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

impl Schedule {
    /// Of what each rank wants.
    pub(super) fn new(wants: Vec<Vec<Want>>) -> Schedule {
        let piece_bytes = piece_bytes(wants.len());
        let regions = regions(wants);
        let mut schedule = Schedule { regions, pieces: Vec::new(), window_bytes: 0 };
        let mut n_windows = 0;
        for (region_idx, region) in schedule.regions.iter().enumerate() {
            let ranks = region.ranks();
            let is_shared = match region.source {
                Source::Hole => continue,
                Source::Own => false,
                Source::Shared => true,
            };
            let n_bytes = if is_shared { WINDOW_BYTES } else { piece_bytes };
            let step = (n_bytes / region.row_stride).max(1) * region.row_stride;
            for begin in region.span.clone().step_by(step) {
                let span = begin..(begin + step).min(region.span.end);
                let window_idx = is_shared.then_some(n_windows);
                let reader_idx = ranks[window_idx.unwrap_or(0) % ranks.len()];
                if is_shared {
                    schedule.window_bytes = schedule.window_bytes.max(span.len());
                    n_windows += 1;
                }
                schedule.pieces.push(Piece { region_idx, span, reader_idx, window_idx });
            }
        }
        schedule
    }

    /// What the rank reads, in its order.
    pub(super) fn reads_of(&self, rank_idx: usize) -> impl Iterator<Item = &Piece> + Clone {
        self.pieces.iter().filter(move |piece| piece.reader_idx == rank_idx)
    }
}

/// Joins what overlaps, file by file.
fn regions(wants: Vec<Vec<Want>>) -> Vec<Region> {
    let of_rank =
        |(rank_idx, wants): (usize, Vec<Want>)| wants.into_iter().map(move |want| (rank_idx, want));
    let mut wants: Vec<(usize, Want)> = wants.into_iter().enumerate().flat_map(of_rank).collect();
    wants.retain(|(_, want)| !want.span.is_empty());
    wants.sort_by_key(|(rank_idx, want)| (want.bytes.id(), want.span.start, *rank_idx));
    let mut regions: Vec<Region> = Vec::new();
    for (rank_idx, want) in wants {
        let taker = Taker { rank_idx, copy_idx: want.copy_idx };
        let last = regions.last_mut();
        match last
            .filter(|last| last.bytes.id() == want.bytes.id() && want.span.start < last.span.end)
        {
            Some(last) => {
                assert_eq!(last.row_stride, want.row_stride, "slices of one tensor");
                last.span.end = last.span.end.max(want.span.end);
                last.takers.push(taker);
                last.source = Source::Shared;
            }
            None => regions.push(Region {
                bytes: want.bytes,
                span: want.span,
                row_stride: want.row_stride,
                takers: vec![taker],
                source: if want.is_plain { Source::Own } else { Source::Shared },
            }),
        }
    }
    for region in &mut regions {
        if region.bytes.is_hole(region.span.clone()) {
            region.source = Source::Hole;
        }
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    static FILE: [u8; 1 << 16] = [0; 1 << 16];

    fn want(copy_idx: usize, span: Range<usize>, row_stride: usize, is_plain: bool) -> Want {
        Want { copy_idx, bytes: Bytes::Static(&FILE), span, row_stride, is_plain }
    }

    /// Ranks that cut a tensor of `n_rows` rows of `row_bytes` at `begin` by columns.
    fn by_columns(begin: usize, n_rows: usize, row_bytes: usize, n_ranks: usize) -> Vec<Want> {
        let share = row_bytes / n_ranks;
        let of = |rank_idx: usize| {
            let first = begin + rank_idx * share;
            want(7, first..first + (n_rows - 1) * row_bytes + share, row_bytes, false)
        };
        (0..n_ranks).map(of).collect()
    }

    fn shapes(schedule: &Schedule) -> Vec<(Range<usize>, Source, Vec<usize>)> {
        let of = |region: &Region| (region.span.clone(), region.source, region.ranks());
        schedule.regions.iter().map(of).collect()
    }

    #[test]
    fn rows_are_their_ranks_and_columns_are_everybodys() {
        let columns = by_columns(1000, 5, 40, 2);
        let wants = vec![
            vec![columns[0].clone(), want(0, 200..300, 10, true)],
            vec![want(0, 300..400, 10, true), columns[1].clone(), want(1, 9..9, 10, true)],
        ];
        let schedule = Schedule::new(wants);
        let expected = [
            (200..300, Source::Own, vec![0]),
            (300..400, Source::Own, vec![1]),
            (1000..1200, Source::Shared, vec![0, 1]),
        ];
        assert_eq!(shapes(&schedule), expected);
        // What must be converted goes through a window, too, and what two copies of a rank take.
        let wants = vec![
            want(0, 0..64, 16, false),
            want(1, 64..128, 16, true),
            want(2, 64..128, 16, false),
        ];
        let expected = [(0..64, Source::Shared, vec![0]), (64..128, Source::Shared, vec![0])];
        assert_eq!(shapes(&Schedule::new(vec![wants])), expected);
    }

    #[test]
    fn all_that_is_read_is_fetched_once_before_it_is_and_not_far_ahead() {
        const N_RANKS: usize = 3;
        const BEGIN: usize = 1000;
        let n_rows = 8 * FETCHED_BYTES / 3000;
        let bytes: &'static [u8] = vec![1; BEGIN + n_rows * 3000].leak();
        let wants = by_columns(BEGIN, n_rows, 3000, N_RANKS).into_iter();
        let wants = wants.map(|want| vec![Want { bytes: Bytes::Static(bytes), ..want }]).collect();
        let schedule = Schedule::new(wants);
        let region = &schedule.regions[0];
        let mut fetched_ends = [BEGIN; N_RANKS];
        let mut fetched: Vec<Range<usize>> = Vec::new();
        for piece in &schedule.pieces {
            for (rank_idx, end) in fetched_ends.iter_mut().enumerate() {
                fetched.extend(region.fetches(rank_idx, piece.span.start, end));
            }
            fetched.sort_by_key(|part| part.start);
            let follow = fetched.windows(2).all(|parts| parts[0].end == parts[1].start);
            assert!(follow && fetched[0].start == BEGIN, "no byte twice, none left out");
            let ahead = fetched.last().expect("something was fetched").end - piece.span.start;
            let left = region.span.end - piece.span.start;
            let stride = N_RANKS * FETCHED_BYTES;
            assert!((left.min(stride)..=2 * stride).contains(&ahead), "{ahead} of {left}");
        }
    }

    #[test]
    fn pieces_are_whole_rows_that_cover_every_byte_once_and_readers_take_turns() {
        let bytes: &'static [u8] = vec![1; 6 * WINDOW_BYTES].leak();
        let row_bytes = 3000;
        let n_rows = 5 * WINDOW_BYTES / row_bytes;
        let columns = by_columns(64, n_rows, row_bytes, 3);
        let wants: Vec<Vec<Want>> = columns
            .into_iter()
            .map(|want| vec![Want { bytes: Bytes::Static(bytes), ..want }])
            .collect();
        let schedule = Schedule::new(wants);
        let mut end = 64;
        for (window_idx, piece) in schedule.pieces.iter().enumerate() {
            assert_eq!(piece.span.start, end, "no byte twice, none left out");
            assert!((end - 64).is_multiple_of(row_bytes) && piece.span.len() <= WINDOW_BYTES);
            assert_eq!(piece.window_idx, Some(window_idx));
            assert_eq!(piece.reader_idx, window_idx % 3);
            end = piece.span.end;
        }
        assert_eq!(end, 64 + n_rows * row_bytes);
        assert!(schedule.pieces.len() == 6 && schedule.window_bytes <= WINDOW_BYTES);
        assert_eq!(schedule.reads_of(1).count(), 2);
        // A row that is longer than a window is read whole.
        let long = 2 * WINDOW_BYTES;
        let wants = by_columns(0, 3, long, 1).into_iter();
        let wants = wants.map(|want| Want { bytes: Bytes::Static(bytes), ..want }).collect();
        let schedule = Schedule::new(vec![wants]);
        assert_eq!(schedule.window_bytes, long);
        assert_eq!(schedule.pieces.len(), 3);
    }
}
