//! Algorithms, and which of them suit a product: the same product always gets the same list, and
//! the list depends on how many columns D has, so that choosing once per bucket matters.
//!
//! An algorithm changes nothing about the result here unless `splits` is asked for. On a real node
//! one that splits `k` rounds differently from one that does not.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::descriptors::Preference;
use super::rules::{F8_ALIGNMENT_BYTES, Problem};
use super::status::{Refusal, invalid, unsupported};

/// Streaming multiprocessors of an H100 SXM.
const N_MULTIPROCESSORS: usize = 132;
/// Marks the bytes of an algorithm as ours.
const MAGIC: u64 = 0x6c74_616c_676f_0001;

/// `cublasLtMatmulAlgo_t`.
pub type AlgoBytes = [u64; 8];

/// One way to compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algo {
    pub id: u32,
    /// Rows and columns of D that a block computes.
    pub tile: (u16, u16),
    /// Parts of `k` that are computed apart and added up.
    pub n_splits: u16,
    /// What the pointers to A, B, C and D must be aligned to.
    pub alignment_bytes: u64,
    /// Of types, transpositions and epilogue.
    kind: u64,
}

/// Most rows that any tile list offers for a number of columns.
const TILES: &[(usize, &[(u16, u16)])] = &[
    (16, &[(64, 16), (128, 16), (64, 32)]),
    (32, &[(64, 32), (128, 32), (64, 16)]),
    (64, &[(64, 64), (128, 64), (64, 32)]),
    (128, &[(128, 128), (64, 128), (128, 64)]),
    (usize::MAX, &[(128, 256), (128, 128), (256, 128)]),
];
const SPLITS: &[u16] = &[1, 2, 4];

impl Algo {
    /// As the caller keeps it.
    pub fn to_bytes(self) -> AlgoBytes {
        let tile = u64::from(self.tile.0) << 16 | u64::from(self.tile.1);
        let shape = tile << 32 | u64::from(self.n_splits);
        [MAGIC, self.id.into(), shape, self.alignment_bytes, self.kind, 0, 0, 0]
    }

    /// Reads what a heuristic once handed out.
    pub fn from_bytes(bytes: &AlgoBytes) -> Result<Algo, Refusal> {
        let [magic, id, shape, alignment_bytes, kind, ..] = *bytes;
        if magic != MAGIC {
            return Err(invalid("these bytes are no algorithm"));
        }
        Ok(Algo {
            id: id as u32,
            tile: ((shape >> 48) as u16, (shape >> 32) as u16),
            n_splits: shape as u16,
            alignment_bytes,
            kind,
        })
    }

    /// Whether it can compute the product. One found for another number of columns can.
    pub fn check(&self, problem: &Problem) -> Result<(), Refusal> {
        if self.kind != kind_of(problem) {
            let reason = "the algorithm was found for other types, transpositions or epilogue";
            return Err(unsupported(reason));
        }
        Ok(())
    }

    /// Workspace for this product: partial sums in single precision.
    pub fn workspace_bytes(&self, problem: &Problem) -> u64 {
        let n_partial = if self.n_splits > 1 { usize::from(self.n_splits) } else { 0 };
        (n_partial * problem.m * problem.n * problem.n_batches * 4) as u64
    }

    /// How often the product's tiles fill the device.
    pub fn n_waves(&self, problem: &Problem) -> f32 {
        let n_tiles = problem.m.div_ceil(self.tile.0.into())
            * problem.n.div_ceil(self.tile.1.into())
            * problem.n_batches
            * usize::from(self.n_splits);
        n_tiles as f32 / N_MULTIPROCESSORS as f32
    }
}

/// At most `n_max` algorithms within the preference, best first.
pub fn candidates(
    problem: &Problem,
    preference: &Preference,
    n_max: usize,
) -> Result<Vec<Algo>, Refusal> {
    let alignments = preference.alignments();
    let needed = if problem.layouts.a.element.is_f8() { F8_ALIGNMENT_BYTES } else { 1 };
    if let Some(alignment) = alignments.iter().find(|alignment| **alignment < needed) {
        return Err(unsupported(format!(
            "FP8 needs pointers aligned to {needed} bytes, the preference allows {alignment}"
        )));
    }
    let alignment_bytes = alignments.into_iter().min().unwrap_or(1).min(16);
    let tiles = TILES.iter().find(|(n_columns, _)| problem.n <= *n_columns);
    let tiles = tiles.map_or(&[][..], |(_, tiles)| tiles);
    let kind = kind_of(problem);
    let mut algos = Vec::new();
    for &n_splits in SPLITS {
        for (idx, &tile) in tiles.iter().enumerate() {
            let id = 60 + idx as u32;
            let algo = Algo { id, tile, n_splits, alignment_bytes, kind };
            let fits = algo.workspace_bytes(problem) <= preference.workspace_bytes_max();
            if fits && (n_splits == 1 || preference.allows_split_k()) {
                algos.push(algo);
            }
        }
    }
    // Nearest to a whole number of waves first; a device that is half empty comes last.
    algos.sort_by(|x, y| waste(x, problem).total_cmp(&waste(y, problem)));
    algos.truncate(n_max);
    Ok(algos)
}

fn waste(algo: &Algo, problem: &Problem) -> f32 {
    let n_waves = algo.n_waves(problem);
    n_waves.ceil() / n_waves + 0.01 * f32::from(algo.n_splits)
}

fn kind_of(problem: &Problem) -> u64 {
    let mut hasher = DefaultHasher::new();
    let layouts = problem.layouts;
    for layout in [layouts.a, layouts.b, layouts.c, layouts.d] {
        (layout.element, layout.by_rows).hash(&mut hasher);
    }
    let operation = problem.operation;
    (operation.transposes_a, operation.transposes_b, operation.epilogue).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::descriptors::{
        Descriptor, MAX_WORKSPACE_BYTES, MIN_ALIGNMENT_BYTES, REDUCTION_SCHEME_MASK,
    };
    use super::super::rules::tests::f8_problem;
    use super::*;

    fn preference(workspace_bytes: u64) -> Preference {
        let mut preference = Preference::default();
        preference.set(MAX_WORKSPACE_BYTES, &workspace_bytes.to_le_bytes()).unwrap();
        preference
    }

    #[test]
    fn the_list_is_the_same_every_time_and_differs_between_buckets() {
        let list = |n| candidates(&f8_problem(2304, n, 16_384), &preference(32 << 20), 8).unwrap();
        assert_eq!(list(8), list(8));
        assert!(list(8).len() >= 3);
        assert_ne!(list(8)[0].tile, list(100)[0].tile);
        assert_eq!(list(8)[0].tile, list(9)[0].tile);
        let first = candidates(&f8_problem(2304, 8, 16_384), &preference(32 << 20), 1).unwrap();
        assert_eq!(first, list(8)[..1]);
    }

    #[test]
    fn algorithms_survive_as_bytes() {
        let problem = f8_problem(2304, 8, 16_384);
        for algo in candidates(&problem, &preference(32 << 20), 8).unwrap() {
            assert_eq!(Algo::from_bytes(&algo.to_bytes()).unwrap(), algo);
            assert!(algo.check(&problem).is_ok());
        }
        assert!(Algo::from_bytes(&[0; 8]).unwrap_err().reason.contains("no algorithm"));
    }

    #[test]
    fn the_preference_is_kept_to() {
        let problem = f8_problem(2304, 8, 16_384);
        let none = candidates(&problem, &preference(0), 8).unwrap();
        assert!(!none.is_empty() && none.iter().all(|algo| algo.n_splits == 1));
        let mut no_splits = preference(32 << 20);
        no_splits.set(REDUCTION_SCHEME_MASK, &0u32.to_le_bytes()).unwrap();
        let algos = candidates(&problem, &no_splits, 8).unwrap();
        assert!(algos.iter().all(|algo| algo.n_splits == 1));
        let mut unaligned = preference(32 << 20);
        unaligned.set(MIN_ALIGNMENT_BYTES[1], &8u32.to_le_bytes()).unwrap();
        let refusal = candidates(&problem, &unaligned, 8).unwrap_err();
        assert!(refusal.reason.contains("aligned to 16 bytes"), "{refusal}");
    }

    #[test]
    fn an_algorithm_is_for_its_kind() {
        let problem = f8_problem(2304, 8, 16_384);
        let algos = candidates(&problem, &preference(32 << 20), 8).unwrap();
        let split = algos.iter().find(|algo| algo.n_splits > 1).unwrap();
        let larger = f8_problem(2304, 64, 16_384);
        assert!(split.check(&larger).is_ok());
        assert_eq!(split.workspace_bytes(&larger), 8 * split.workspace_bytes(&problem));
        let mut other = f8_problem(2304, 8, 16_384);
        other.operation.epilogue.has_bias = true;
        assert!(split.check(&other).unwrap_err().reason.contains("other types"));
    }
}
