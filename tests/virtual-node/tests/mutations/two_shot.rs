//! A norm in two shots: three ranks, of which one runs, and the scenario does what the others do.

use virtual_node::ptx::Module;

use crate::node::{Call, Node, Param, STANDS_STILL, bf16_of, f32s};
use crate::scenarios::Outcome;

use Param::{Address, F32, U32, Words};

const HIDDEN: usize = 4096;
const N_TOKENS: usize = 5;
const N_BLOCKS: u32 = 4;
const N_RANKS: u8 = 3;
/// The rank that runs. It owns two of the tokens.
const RANK: u8 = 1;

/// Once when the others have not come; once when they have, but have not finished their rows; once
/// when they have done that, too.
pub(crate) fn reduce_norm(module: &Module) -> Outcome {
    let mut outcome = Vec::new();
    for n_times in 0..=2 {
        let norm = Norm::new(n_times);
        let mut params = norm.params(N_BLOCKS, None);
        params.push(Words(of_eight(&norm.scales)));
        let call = call("reduce_norm_two_shot_e4m3_token", N_BLOCKS, &params);
        outcome.push(match norm.node.launch_alone(module, RANK, &call) {
            Ok(()) => 0,
            Err(fault) if fault.contains(STANDS_STILL) => 1,
            Err(fault) => return Err(fault),
        });
        outcome.extend(norm.written());
    }
    Ok(outcome)
}

/// Rows that are picked at the end of the stream: the one cluster finishes two, with padding
/// between them.
pub(crate) fn picked(module: &Module) -> Outcome {
    let norm = Norm::new(2);
    let mut params = norm.params(2, Some(&[4, -1, 1, 0, 2]));
    params.push(F32(0.02));
    norm.node.launch_alone(module, RANK, &call("reduce_norm_two_shot_e4m3", 2, &params))?;
    Ok(norm.written())
}

fn call<'a>(kernel: &'a str, n_blocks: u32, params: &'a [Param]) -> Call<'a> {
    Call { kernel, grid: [n_blocks, 1, 1], n_threads: 256, cluster: 2, shared_bytes: 0, params }
}

/// What the norm reads and writes.
struct Norm {
    node: Node,
    /// Of every rank.
    partials: Vec<u64>,
    flags: Vec<u64>,
    outs: Vec<u64>,
    scales: Vec<u64>,
    /// Of the rank that runs.
    state: u64,
    residual: u64,
    weight: u64,
}

impl Norm {
    /// Where the others have come `n_times`. What they have not written is poison.
    fn new(n_times: u32) -> Norm {
        let node = Node::new(N_RANKS);
        let of_ranks = |n_bytes: usize, byte: u8| -> Vec<u64> {
            (0..N_RANKS).map(|rank| node.upload(rank, &vec![byte; n_bytes])).collect()
        };
        let norm = Norm {
            node,
            partials: of_ranks(N_TOKENS * HIDDEN * 2, 0xFF),
            flags: of_ranks(32, 0),
            outs: of_ranks(N_TOKENS * HIDDEN, 0xFF),
            scales: of_ranks(N_TOKENS * 4, 0xFF),
            state: node.upload(RANK, &[0u32; 6]),
            residual: node.upload(RANK, &f32s(9, N_TOKENS * HIDDEN)),
            weight: node.upload(RANK, &f32s(8, HIDDEN)),
        };
        for rank in 0..N_RANKS {
            if rank == RANK || n_times > 0 {
                norm.come(rank, n_times);
            }
        }
        norm
    }

    /// A rank has its partial result, so far from the others' that their sum depends on its order,
    /// and any but the one that runs has said so.
    fn come(&self, rank: u8, n_times: u32) {
        let own = usize::from(rank);
        let factor = [1e6, 1.0, -3e5][own];
        let numbers = f32s(10 + u32::from(rank), N_TOKENS * HIDDEN).into_iter();
        let partial: Vec<u16> = numbers.map(|x| bf16_of(x * factor)).collect();
        self.node.write(rank, self.partials[own], &partial);
        if rank != RANK {
            let flag = self.flags[usize::from(RANK)] + 4 * u64::from(rank);
            self.node.write(RANK, flag, &[n_times]);
        }
    }

    /// All but the scales of what is written. The stream goes on where no rows are picked.
    fn params(&self, n_blocks: u32, picked: Option<&[i32; N_TOKENS]>) -> Vec<Param> {
        let mut exchange = of_eight(&self.flags);
        exchange.extend([self.flags[usize::from(RANK)], self.state]);
        exchange.push(u64::from(N_RANKS) | u64::from(RANK) << 32);
        vec![
            Words(of_eight(&self.partials)),
            Address(0),
            Address(0),
            Address(self.residual),
            Address(if picked.is_some() { 0 } else { self.residual }),
            Address(picked.map_or(0, |rows| self.node.upload(RANK, rows))),
            U32(N_TOKENS as u32),
            U32(HIDDEN as u32),
            Words(exchange),
            // All blocks have rows.
            Words(vec![0, 0, u64::from(n_blocks) << 32]),
            Address(self.weight),
            F32(1e-5),
            Words(of_eight(&self.outs)),
        ]
    }

    /// All that the kernel may have written, on every rank.
    fn written(&self) -> Vec<u8> {
        let mut bytes = self.node.download(RANK, self.residual, N_TOKENS * HIDDEN * 4);
        bytes.extend(self.node.download(RANK, self.state, 8));
        for rank in 0..N_RANKS {
            let own = usize::from(rank);
            bytes.extend(self.node.download(rank, self.outs[own], N_TOKENS * HIDDEN));
            bytes.extend(self.node.download(rank, self.scales[own], N_TOKENS * 4));
            bytes.extend(self.node.download(rank, self.flags[own], 32));
        }
        bytes
    }
}

fn of_eight(addresses: &[u64]) -> Vec<u64> {
    (0..8).map(|rank| addresses.get(rank).copied().unwrap_or(0)).collect()
}
