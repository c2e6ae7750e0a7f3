//! What a rank really launched in a step, as a virtual node counted it, held against the work that
//! was worked out from the model's shapes. It does not know where the counts come from.

use std::collections::BTreeMap;

use engine::peers::Carrier;

use super::work::{Kind, Launch};

/// A rank's kernels and exchanges, by the names under which they are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Launches, alone and in graphs.
    pub kernels: BTreeMap<String, Count>,
}

/// All launches of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub n_launches: u64,
    /// What they move; of an exchange, this rank's messages. Unknown, and 0, for kernels of ours
    /// that were not executed.
    pub bytes: u64,
    /// What they compute.
    pub flops: u64,
}

/// How kernels' names begin that do the work of one name: the kernels', and NVIDIA's libraries'.
const FAMILIES: [(&str, &[&str]); 11] = [
    ("cublasLt e4m3", &["qkv", "o", "gate_up", "down", "linear"]),
    ("cublasLt bf16", &["head"]),
    ("nccl all_gather", &["all_gather"]),
    ("nccl all_reduce", &["all_reduce"]),
    ("attention_", &["attention"]),
    ("embed_", &["embed"]),
    ("reduce_", &["reduce_norm"]),
    ("rope_kv_", &["rope_kv"]),
    ("sample", &["sample"]),
    ("swiglu_", &["swiglu"]),
    // What a checkpoint with scales for every token would need.
    ("quantize_", &[]),
];

/// Counts by family.
type Families = BTreeMap<&'static str, Count>;

impl Counted {
    /// All launches.
    pub fn n_launches(&self) -> u64 {
        self.kernels.values().map(|count| count.n_launches).sum()
    }

    /// How the counts differ from `work`; nothing, if a prediction from it is about this step.
    /// Bytes and flops are compared where they are known.
    pub fn differences(&self, work: &[Launch], n_ranks: u64) -> Vec<String> {
        let mut differences = Vec::new();
        let expected = expected(work, n_ranks);
        let counted = self.families(&mut differences);
        for (family, _) in FAMILIES {
            let of = |families: &Families| families.get(family).copied().unwrap_or_default();
            let (counted, expected) = (of(&counted), of(&expected));
            let knows_bytes = counted.bytes > 0;
            for (what, counted, expected, is_known) in [
                ("launches", counted.n_launches, expected.n_launches, true),
                ("bytes", counted.bytes, expected.bytes, knows_bytes),
                ("flops", counted.flops, expected.flops, counted.flops > 0),
            ] {
                if is_known && counted != expected {
                    differences.push(format!("{family}: {counted} {what}, not {expected}"));
                }
            }
            let is_of_library = family.starts_with("cublasLt") || family.starts_with("nccl");
            if is_of_library && !knows_bytes && expected.n_launches > 0 {
                differences.push(format!("{family}: its bytes were not counted"));
            }
        }
        differences
    }

    /// Of each family of our kernels: bytes that were counted, for each byte of `work`.
    pub fn excess(&self, work: &[Launch], n_ranks: u64) -> BTreeMap<&'static str, f64> {
        let expected = expected(work, n_ranks);
        let counted = self.families(&mut Vec::new());
        let excess = |(family, count): (&&'static str, &Count)| {
            let bytes = counted.get(family)?.bytes as f64;
            (count.bytes > 0).then_some((*family, bytes / count.bytes as f64))
        };
        expected.iter().filter_map(excess).collect()
    }

    fn families(&self, unknown: &mut Vec<String>) -> Families {
        let mut families = Families::new();
        for (name, count) in &self.kernels {
            match FAMILIES.iter().find(|(begin, _)| name.starts_with(begin)) {
                Some((family, _)) => families.entry(family).or_default().add(*count),
                None => unknown.push(format!("{name}: nothing was expected of that name")),
            }
        }
        families
    }
}

impl Count {
    fn add(&mut self, other: Count) {
        self.n_launches += other.n_launches;
        self.bytes += other.bytes;
        self.flops += other.flops;
    }
}

fn expected(work: &[Launch], n_ranks: u64) -> Families {
    let mut families = Families::new();
    for launch in work {
        let Launch { name, kind, bytes, flops, .. } = *launch;
        let family = FAMILIES.iter().find(|(_, names)| names.contains(&name));
        let (family, _) = family.expect("every kind of work has a family");
        let (family, count) = match kind {
            // The next kernel reads every other rank's message; in two shots, of its own rows.
            Kind::AllReduce(Carrier::OneShot) => {
                ("reduce_", Count { n_launches: 0, bytes: (n_ranks - 1) * bytes, flops })
            }
            Kind::AllReduce(Carrier::TwoShot) => {
                let bytes = (n_ranks - 1) * bytes / n_ranks;
                ("reduce_", Count { n_launches: 0, bytes, flops })
            }
            _ => (*family, Count { n_launches: 1, bytes, flops }),
        };
        families.entry(family).or_default().add(count);
    }
    families
}

#[cfg(test)]
mod tests {
    use super::super::work::{Step, launches};
    use super::*;

    fn work() -> Vec<Launch> {
        let spec = weights::presets::preset("ultra-253b").expect("a preset");
        launches(&spec, Step { n_sequences: 1024, n_tokens_each: 1, context: 100 }, 8)
    }

    /// What a node would count for exactly that work, without executing it.
    fn counted(work: &[Launch]) -> Counted {
        let mut counted = Counted::default();
        for (family, count) in expected(work, 8) {
            let is_of_library = family.starts_with("cublasLt") || family.starts_with("nccl");
            let count = if is_of_library { count } else { Count { bytes: 0, flops: 0, ..count } };
            counted.kernels.insert(format!("{family}x"), count);
        }
        counted
    }

    #[test]
    fn counts_of_the_same_work_agree() {
        let counted = counted(&work());
        assert_eq!(counted.differences(&work(), 8), [""; 0]);
        // Sums of 32 MiB are NCCL's: 146 launches beside the others.
        assert_eq!(counted.n_launches(), 585 + 146);
    }

    #[test]
    fn what_differs_is_named() {
        let differences = |change: &dyn Fn(&mut Counted)| {
            let mut counted = counted(&work());
            change(&mut counted);
            counted.differences(&work(), 8).join("; ")
        };
        let change = |name: &'static str, change: fn(&mut Count)| {
            differences(&move |counted| {
                change(counted.kernels.get_mut(name).expect("it was counted"));
            })
        };
        assert!(
            change("reduce_x", |count| count.n_launches += 1).contains("reduce_: 147 launches")
        );
        assert!(change("cublasLt e4m3x", |count| count.bytes += 1).contains("bytes"));
        assert!(change("cublasLt bf16x", |count| count.flops -= 1).contains("flops"));
        assert!(change("nccl all_reducex", |count| count.bytes = 0).contains("not counted"));
        let unknown = |counted: &mut Counted| {
            counted.kernels.insert("memcpy".to_owned(), Count::default());
        };
        assert!(differences(&unknown).contains("memcpy"));
    }

    #[test]
    fn an_exchange_inside_a_kernel_is_read_by_it() {
        let spec = weights::presets::preset("ultra-253b").expect("a preset");
        let work = launches(&spec, Step { n_sequences: 1, n_tokens_each: 1, context: 100 }, 8);
        let bytes = expected(&work, 8)["reduce_"].bytes;
        // Of every rank, the residual twice but at first, weights, and e4m3 or at the end bf16.
        assert_eq!(bytes, 16_384 * (146 * (8 * 2 + 2 * 4 + 4) - 4 + 145 + 2));
    }
}
