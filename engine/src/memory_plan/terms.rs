//! What a rank's memory is for, term by term. No term is a share of another: what is counted is
//! counted to the byte, and what is not ours to count names its source.

use super::reserve::Reserve;

/// What one rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// All its parameters and their scales: slices of the mapped files, or a device's copy.
    pub weights_bytes: u64,
    /// KV pages.
    pub kv_bytes: u64,
    /// Step-local buffers, logits and sampling.
    pub workspace_bytes: u64,
    /// Staging for collectives in the host's memory.
    pub collective_bytes: u64,
    /// `weights_bytes` by kind, on a device.
    pub weights: WeightParts,
    /// `workspace_bytes` by kind, on a device.
    pub workspace: WorkspaceParts,
    /// What else is taken of a device; `None` on the processor.
    pub reserve: Option<Reserve>,
}

/// A rank's weights on a device, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightParts {
    /// The embedding's vocabulary entries.
    pub embedding_bytes: u64,
    /// Projections of first sub-blocks.
    pub attention_bytes: u64,
    /// Projections of second sub-blocks.
    pub ffn_bytes: u64,
    /// All norms.
    pub norms_bytes: u64,
    /// The head's vocabulary entries.
    pub head_bytes: u64,
    /// Scales, rotary frequencies, and the gaps by which all of it is aligned.
    pub scales_bytes: u64,
}

/// What a step writes on a device, by what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceParts {
    /// Residual stream and what sub-blocks write.
    pub activations_bytes: u64,
    /// Partial results that other ranks read while the next one is written.
    pub exchange_bytes: u64,
    /// Sums of the parts that a long context is attended in.
    pub attention_bytes: u64,
    /// A step's inputs and all page tables.
    pub inputs_bytes: u64,
    /// Logits of this rank's vocabulary entries.
    pub logits_bytes: u64,
    /// All ranks' logits, what slots have seen, and what was drawn.
    pub sampling_bytes: u64,
}

impl WorkspaceParts {
    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.terms().map(|term| term.n_bytes).iter().sum()
    }

    fn terms(&self) -> [Term; 6] {
        [
            ("activations_bytes", "activations", self.activations_bytes),
            ("exchange_bytes", "sums over ranks", self.exchange_bytes),
            ("attention_bytes", "attention in parts", self.attention_bytes),
            ("inputs_bytes", "inputs, page tables", self.inputs_bytes),
            ("logits_bytes", "logits", self.logits_bytes),
            ("sampling_bytes", "sampling", self.sampling_bytes),
        ]
        .map(|(name, label, n_bytes)| Term::counted(name, label, TermKind::Step, n_bytes))
    }
}

/// What a term belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermKind {
    /// The model.
    Weights,
    /// The cache.
    Kv,
    /// What steps write.
    Step,
    /// What libraries and the driver take.
    Reserve,
}

/// One thing that a rank's memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Its name for machines, with its unit.
    pub name: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// What it belongs to.
    pub kind: TermKind,
    /// How much.
    pub n_bytes: u64,
    /// How it is known: counted, or by whom it was published.
    pub source: &'static str,
}

/// For terms that the engine allocates itself.
const COUNTED: &str = "counted: the engine allocates exactly this";

impl Term {
    /// One that the engine allocates itself.
    fn counted(name: &'static str, label: &'static str, kind: TermKind, n_bytes: u64) -> Term {
        Term { name, label, kind, n_bytes, source: COUNTED }
    }
}

impl RankMemory {
    /// Every term, largest concerns first; they add up to [`total_bytes`](RankMemory::total_bytes).
    pub fn terms(&self) -> Vec<Term> {
        let mut terms = vec![
            Term::counted("weights_bytes", "weights", TermKind::Weights, self.weights_bytes),
            Term::counted("kv_bytes", "KV cache", TermKind::Kv, self.kv_bytes),
        ];
        let Some(reserve) = self.reserve else {
            let step = |name, label, n_bytes| Term::counted(name, label, TermKind::Step, n_bytes);
            terms.push(step("workspace_bytes", "workspace", self.workspace_bytes));
            terms.push(step("collective_bytes", "collectives", self.collective_bytes));
            return terms;
        };
        terms.extend(self.workspace.terms());
        terms.extend(reserve.terms(COUNTED));
        terms
    }

    /// All terms.
    pub fn total_bytes(&self) -> u64 {
        self.terms().iter().map(|term| term.n_bytes).sum()
    }
}
