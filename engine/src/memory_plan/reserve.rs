//! What is taken of a device beside weights, cache and a step's buffers. Each term says where it
//! is from; nothing is hidden in a share of the device that is left alone.
//!
//! The terms of the driver and of NVIDIA's libraries have been measured by others, not by us.

use super::terms::{Term, TermKind};
use crate::device::cuda::{CHUNK_BYTES, Shelf, WORKSPACE_BYTES};
use crate::kernels::launching::{FLAG_BYTES, STATE_BYTES};

/// Of the 81,559 MiB that `nvidia-smi` counts on an H100 of 80 GB, what no context finds.
const DRIVER_BYTES: u64 = 551 << 20;
const DRIVER_SOURCE: &str = "nvidia-smi counts 81,559 MiB, contexts find 81,008 \
                             (79.11 GiB in PyTorch's words: vllm-project/vllm#27508)";

/// What the first context takes.
const CONTEXT_BYTES: u64 = 520 << 20;
const CONTEXT_SOURCE: &str = "555 MiB on 188 multiprocessors, of which it needs \
                              memory for each (ggml-org/llama.cpp#23604); an H100 has 132";

/// Code of kernels that libraries load when they are first used.
const LIBRARIES_BYTES: u64 = 256 << 20;
const LIBRARIES_SOURCE: &str = "cuBLASLt's, loaded as it is used, and of our kernels: some \
                                300 MB with all of PyTorch's context (pytorch/pytorch#107667)";

/// A kernel in a recorded step.
const GRAPH_NODE_BYTES: u64 = 16 << 10;
const GRAPHS_SOURCE: &str = "steps of decoding: 16 KiB a kernel, where others count 10 \
                             (NVIDIA/cccl#3768)";

/// NCCL between several ranks of one node. With 24 channels and buffers of 10 MiB for what comes
/// and 2 MiB for what goes, in both directions around the ring and along the tree, 576 MiB; in the
/// switches 16 channels, 2 directions, 8 ranks and 8 steps of 128 KiB, 256 MiB (as of NCCL 2.20;
/// 2.18 takes 768 MiB more, and is told so at boot, when memory is short). The rest is for code
/// and small things.
const NCCL_BYTES: u64 = 1 << 30;
const NCCL_SOURCE: &str = "24 channels of 24 MiB (NVIDIA/nccl#1259, NVIDIA/nccl#1685), 256 \
                           MiB for NVLink's switches (its src/transport/nvls.cc), 192 MiB for \
                           code and the rest; 1.06 GB were seen (NVIDIA/nccl#1685)";

/// What the driver hands out whole.
pub(super) const PAGE_BYTES: u64 = 2 << 20;
const PAGING_SOURCE: &str = "the driver hands out pages of 2 MiB (CUDA driver API, \
                             cuMemGetAllocationGranularity)";

/// What a device has, as it says itself or as somebody wrote it down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// In all.
    pub(super) device_bytes: u64,
    /// That no context finds.
    driver_bytes: u64,
    /// That this process's context and others have taken.
    context_bytes: u64,
}

impl Room {
    /// A device whose context is open.
    pub(super) fn asked((free_bytes, total_bytes): (usize, usize)) -> Room {
        let (free_bytes, device_bytes) = (free_bytes as u64, total_bytes as u64);
        Room { device_bytes, driver_bytes: 0, context_bytes: device_bytes - free_bytes }
    }

    /// A device that has `device_bytes`, as `nvidia-smi` counts them.
    pub(super) fn on_paper(device_bytes: u64) -> Room {
        Room { device_bytes, driver_bytes: DRIVER_BYTES, context_bytes: CONTEXT_BYTES }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.device_bytes.saturating_sub(self.driver_bytes + self.context_bytes)
    }
}

/// What is taken of a device beside what the model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// What the device has.
    pub device_bytes: u64,
    /// cuBLASLt's workspace.
    pub products_bytes: u64,
    /// What is claimed and not used: the rest of the last chunk, and gaps.
    pub arena_bytes: u64,
    /// What the driver rounds allocations up by.
    pub paging_bytes: u64,
    /// Recorded steps.
    pub graphs_bytes: u64,
    /// Code of libraries.
    pub libraries_bytes: u64,
    /// NCCL's own buffers.
    pub nccl_bytes: u64,
    /// The context, and what other processes hold.
    pub context_bytes: u64,
    /// What no context finds.
    pub driver_bytes: u64,
}

/// What decides the reserve of a rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReserveSizes {
    pub(super) n_ranks: usize,
    pub(super) n_graphs: usize,
    pub(super) n_graph_nodes: usize,
}

impl Reserve {
    /// Beside allocations of `weights_bytes`, `kv_bytes` and `step_bytes`.
    pub(super) fn new(room: Room, sizes: ReserveSizes, [weights, kv, step]: [u64; 3]) -> Reserve {
        let mut asked: Vec<u64> = vec![WORKSPACE_BYTES as u64, weights, kv, step];
        if sizes.n_ranks > 1 {
            asked.extend([FLAG_BYTES as u64, STATE_BYTES as u64]);
        }
        let mut shelf = Shelf::new(CHUNK_BYTES);
        let claims = asked.iter().filter(|&&n_bytes| n_bytes > 0);
        let claims = claims.filter_map(|&n_bytes| shelf.take(n_bytes as usize).claimed_bytes());
        let claims: Vec<u64> = claims.map(|n_bytes| n_bytes as u64).collect();
        let n_claimed: u64 = claims.iter().sum();
        let paged = claims.iter().map(|n_bytes| n_bytes.next_multiple_of(PAGE_BYTES) - n_bytes);
        let n_graph_nodes = (sizes.n_graphs * sizes.n_graph_nodes) as u64;
        Reserve {
            device_bytes: room.device_bytes,
            products_bytes: WORKSPACE_BYTES as u64,
            arena_bytes: n_claimed - asked[..4].iter().sum::<u64>(),
            paging_bytes: paged.sum(),
            graphs_bytes: n_graph_nodes * GRAPH_NODE_BYTES,
            libraries_bytes: LIBRARIES_BYTES,
            nccl_bytes: if sizes.n_ranks > 1 { NCCL_BYTES } else { 0 },
            context_bytes: room.context_bytes,
            driver_bytes: room.driver_bytes,
        }
    }

    /// What is not taken yet where a context is open.
    pub fn beside_bytes(&self) -> u64 {
        self.products_bytes
            + self.arena_bytes
            + self.paging_bytes
            + self.graphs_bytes
            + self.libraries_bytes
            + self.nccl_bytes
    }

    pub(super) fn terms(&self, counted: &'static str) -> Vec<Term> {
        let term = |(name, label, n_bytes, source)| Term {
            name,
            label,
            kind: TermKind::Reserve,
            n_bytes,
            source,
        };
        [
            ("products_bytes", "cuBLASLt's workspace", self.products_bytes, counted),
            ("arena_bytes", "rest of a chunk", self.arena_bytes, counted),
            ("paging_bytes", "rounding to pages", self.paging_bytes, PAGING_SOURCE),
            ("graphs_bytes", "recorded steps", self.graphs_bytes, GRAPHS_SOURCE),
            ("libraries_bytes", "libraries' code", self.libraries_bytes, LIBRARIES_SOURCE),
            ("nccl_bytes", "NCCL", self.nccl_bytes, NCCL_SOURCE),
            ("context_bytes", "CUDA context", self.context_bytes, CONTEXT_SOURCE),
            ("driver_bytes", "the card's own", self.driver_bytes, DRIVER_SOURCE),
        ]
        .map(term)
        .to_vec()
    }
}
