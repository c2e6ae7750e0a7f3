//! Small runs of the product's kernels, each at the sizes that make its parts matter: more than one
//! warp, more than one block of a cluster, a tail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtual_node::ptx::Module;

use crate::node::{Call, Node, Param, STANDS_STILL, bf16_of, bf16s, f32s};

/// What was computed, or the fault.
pub(crate) type Outcome = Result<Vec<u8>, String>;

use Param::{Address, F32, U32, Words};

/// Three tokens: held, another rank's, and the last of a slot.
pub(crate) fn embed(module: &Module) -> Outcome {
    const HIDDEN: usize = 40;
    let node = Node::new(1);
    let out = node.allocate(0, 3 * HIDDEN * 2);
    let params = [
        Address(node.upload(0, &[11i32, 5, -2])),
        Address(node.upload(0, &[3i32, 12])),
        Address(node.upload(0, &bf16s(1, 3 * HIDDEN))),
        Address(out),
        U32(10),
        U32(3),
        U32(HIDDEN as u32),
        U32(1),
    ];
    let call = Call {
        kernel: "embed_bf16",
        grid: [1, 3, 1],
        n_threads: 128,
        cluster: 1,
        shared_bytes: 0,
        params: &params,
    };
    node.launch(module, 0, &call)?;
    Ok(node.download(0, out, 3 * HIDDEN * 2))
}

/// Rows that end within a block.
pub(crate) fn quantize(module: &Module) -> Outcome {
    const WIDTH: usize = 1096;
    let node = Node::new(1);
    let (out, scales) = (node.allocate(0, 2 * WIDTH), node.allocate(0, 8));
    let params = [
        Address(node.upload(0, &bf16s(2, 2 * WIDTH))),
        Address(out),
        U32(WIDTH as u32),
        U32(WIDTH as u32),
        U32(WIDTH as u32),
        U32(1),
        Address(node.upload(0, &[2.0f32, 1.5])),
        Address(scales),
    ];
    let call = Call {
        kernel: "quantize_known",
        grid: [2, 2, 1],
        n_threads: 128,
        cluster: 1,
        shared_bytes: 0,
        params: &params,
    };
    node.launch(module, 0, &call)?;
    Ok([node.download(0, out, 2 * WIDTH), node.download(0, scales, 8)].concat())
}

/// Greatest magnitudes of two rows, far apart in each.
pub(crate) fn magnitudes(module: &Module) -> Outcome {
    const WIDTH: usize = 2048;
    let node = Node::new(1);
    let mut x = bf16s(3, 2 * WIDTH);
    // -8 at a chunk's begin, 16 in a block's last lane.
    (x[256], x[2 * WIDTH - 1]) = (0xC100, 0x4180);
    let out = node.allocate(0, 8);
    let params =
        [Address(node.upload(0, &x)), Address(out), U32(WIDTH as u32), U32(WIDTH as u32), U32(1)];
    let call = Call {
        kernel: "magnitudes_bf16",
        grid: [2, 1, 1],
        n_threads: 256,
        cluster: 1,
        shared_bytes: 0,
        params: &params,
    };
    node.launch(module, 0, &call)?;
    Ok(node.download(0, out, 8))
}

/// A row that two blocks share.
pub(crate) fn swiglu(module: &Module) -> Outcome {
    const WIDTH: usize = 4096;
    let node = Node::new(1);
    let (out, magnitudes) = (node.allocate(0, 2 * WIDTH), node.allocate(0, 4));
    let mut gate_up = bf16s(4, 2 * WIDTH);
    // The greatest magnitude is the second block's.
    (gate_up[3000], gate_up[WIDTH + 3000]) = (0x4120, 0x4120);
    let params = [
        Address(node.upload(0, &gate_up)),
        Address(0),
        Address(0),
        U32(WIDTH as u32),
        U32(2 * WIDTH as u32),
        U32(WIDTH as u32),
        U32(1),
        F32(0.7),
        F32(1.3),
        Address(out),
        Address(magnitudes),
    ];
    let call = Call {
        kernel: "swiglu_bf16_magnitudes",
        grid: [2, 1, 1],
        n_threads: 256,
        cluster: 2,
        shared_bytes: 0,
        params: &params,
    };
    node.launch(module, 0, &call)?;
    Ok([node.download(0, out, 2 * WIDTH), node.download(0, magnitudes, 4)].concat())
}

/// Three tokens, one of them padding; the second stands in its slot's second page.
pub(crate) fn rope_kv(module: &Module) -> Outcome {
    const N_Q_HEADS: usize = 16;
    const HEAD_DIM: usize = 64;
    const WIDTH: usize = (N_Q_HEADS + 2) * HEAD_DIM;
    const CACHE_BYTES: usize = 3 * 16 * HEAD_DIM;
    let node = Node::new(1);
    let q = node.upload(0, &[0u16; 3 * N_Q_HEADS * HEAD_DIM]);
    let caches = [0; 2].map(|_| node.upload(0, &[0u8; CACHE_BYTES]));
    let frequencies: Vec<f64> = (0..HEAD_DIM / 2).map(|i| 0.8f64.powi(i as i32)).collect();
    let params = [
        Address(node.upload(0, &bf16s(5, 3 * WIDTH))),
        Address(0),
        Address(0),
        Address(node.upload(0, &frequencies)),
        Address(node.upload(0, &[3i32, 29, 7])),
        Address(node.upload(0, &[0i32, 1, -1])),
        Address(node.upload(0, &[2i32, i32::MAX, i32::MAX, 1])),
        Address(q),
        U32(WIDTH as u32),
        U32(2),
        U32(N_Q_HEADS as u32),
        U32(1),
        U32(HEAD_DIM as u32),
        U32(1),
        F32(1.1),
        F32(0.9),
        F32(0.8),
        F32(0.01),
        F32(0.02),
        Address(caches[0]),
        Address(caches[1]),
    ];
    let call = Call {
        kernel: "rope_kv_e4m3",
        grid: [3, 1, 1],
        n_threads: 96,
        cluster: 1,
        shared_bytes: 0,
        params: &params,
    };
    node.launch(module, 0, &call)?;
    let q = node.download(0, q, 3 * N_Q_HEADS * HEAD_DIM * 2);
    let [keys, values] = caches.map(|cache| node.download(0, cache, CACHE_BYTES));
    Ok([q, keys, values].concat())
}

const HIDDEN: usize = 4096;
const N_RANKS: u8 = 3;

/// A cluster has the row, another fetches pieces that lie apart, to the last byte.
const ROW_BLOCKS: u64 = 2;
const N_PIECES: u64 = 5;
const PIECE_BYTES: u64 = 32;
const STRIDE_BYTES: u64 = 48;
const AHEAD_BYTES: usize = ((N_PIECES - 1) * STRIDE_BYTES + PIECE_BYTES) as usize;

/// Three ranks that meet twice, in whatever order they come.
pub(crate) fn reduce_norm(module: &Module) -> Outcome {
    let node = Node::new(N_RANKS);
    let of_ranks =
        |bytes: &[u8]| -> Vec<u64> { (0..N_RANKS).map(|rank| node.upload(rank, bytes)).collect() };
    let (flags, states) = (of_ranks(&[0; 32]), of_ranks(&[0; 24]));
    // Each exchange has partial results of its own, which are poison until their rank comes.
    let partials = [of_ranks(&[0xFF; HIDDEN * 2]), of_ranks(&[0xFF; HIDDEN * 2])];
    let has_failed = AtomicBool::new(false);
    let on_rank = |rank: u8| -> Outcome {
        let own = usize::from(rank);
        let residual = node.upload(rank, &f32s(9, HIDDEN));
        let (out, scales) = (node.allocate(rank, HIDDEN), node.allocate(rank, 4));
        let weight = node.upload(rank, &f32s(8, HIDDEN));
        for (round, partials) in partials.iter().enumerate() {
            if has_failed.load(Ordering::Relaxed) {
                return Err("another rank has failed".to_owned());
            }
            let seed = 10 + 3 * round as u32 + u32::from(rank);
            // So far apart that their sum depends on its order.
            let factor = [1e6, 1.0, -3e5][own];
            let partial = f32s(seed, HIDDEN).into_iter().map(|x| bf16_of(x * factor));
            node.write(rank, partials[own], &partial.collect::<Vec<_>>());
            let meeting = Meeting { flags: &flags, state: states[own], rank };
            let ahead = node.upload(rank, &[0u8; AHEAD_BYTES]);
            let places = [residual, weight, out, scales, ahead];
            let params = norm_params(&meeting, partials, places);
            if let Err(error) = node.launch(module, rank, &norm_call(&params)) {
                has_failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        let parts = [(residual, HIDDEN * 4), (out, HIDDEN), (scales, 4)];
        Ok(parts.map(|(address, n_bytes)| node.download(rank, address, n_bytes)).concat())
    };
    let on_rank = &on_rank;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..N_RANKS).map(|rank| scope.spawn(move || on_rank(rank))).collect();
        // All of them are waited for before the first fault is told.
        let outcomes: Vec<Outcome> =
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect();
        Ok(outcomes.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    })
}

/// One rank of two, where both have announced themselves already. `is_connected`: it may reach the
/// other's memory.
pub(crate) fn reduce_norm_of_two(module: &Module, is_connected: bool) -> Outcome {
    let node = Node::new(2);
    if !is_connected {
        node.disconnect(0, 1);
    }
    let flags = node.upload(0, &[1u32; 8]);
    let partials: Vec<u64> = (0..2).map(|rank| node.upload(rank, &bf16s(20, HIDDEN))).collect();
    let (out, scales) = (node.allocate(0, HIDDEN), node.allocate(0, 4));
    let meeting = Meeting { flags: &[flags, flags], state: node.upload(0, &[0u32; 6]), rank: 0 };
    let (residual, weight) = (node.upload(0, &f32s(9, HIDDEN)), node.upload(0, &f32s(8, HIDDEN)));
    let ahead = node.upload(0, &[0u8; AHEAD_BYTES]);
    let params = norm_params(&meeting, &partials, [residual, weight, out, scales, ahead]);
    node.launch(module, 0, &norm_call(&params))?;
    Ok(node.download(0, out, HIDDEN))
}

/// One rank of two, whose peer comes to their first meeting and never to the second: what the rank
/// made of the first, whether it says what that took, and whether it waits in the second.
pub(crate) fn reduce_norm_left_alone(module: &Module) -> Outcome {
    let node = Node::new(2);
    let flags = node.upload(0, &[1u32; 8]);
    let meeting = Meeting { flags: &[flags, flags], state: node.upload(0, &[0u32; 6]), rank: 0 };
    let (residual, weight) = (node.upload(0, &f32s(9, HIDDEN)), node.upload(0, &f32s(8, HIDDEN)));
    let (out, scales) = (node.allocate(0, HIDDEN), node.allocate(0, 4));
    let meet = |seed: u32| {
        let partials = [0, 1].map(|rank| node.upload(rank, &bf16s(seed, HIDDEN)));
        let ahead = node.upload(0, &[0u8; AHEAD_BYTES]);
        let params = norm_params(&meeting, &partials, [residual, weight, out, scales, ahead]);
        node.launch_alone(module, 0, &norm_call(&params))
    };
    let began = Instant::now();
    meet(20)?;
    let first = node.download(0, out, HIDDEN);
    // Nanoseconds that the meeting took, and of them those that it waited.
    let spent = node.download(0, meeting.state + 8, 16);
    let [taken, waited] =
        [0, 8].map(|at| u64::from_le_bytes(spent[at..at + 8].try_into().expect("eight bytes")));
    let tells_time = waited <= taken && Duration::from_nanos(taken) <= began.elapsed();
    let waits = match meet(21) {
        Ok(()) => false,
        Err(fault) if fault.contains(STANDS_STILL) => true,
        Err(fault) => return Err(fault),
    };
    Ok([first, vec![u8::from(tells_time), u8::from(waits)]].concat())
}

/// How a rank meets the others.
struct Meeting<'a> {
    /// Of every rank.
    flags: &'a [u64],
    state: u64,
    rank: u8,
}

/// Parameters of the norm, at these places: residual, weights, output, scales, and what is fetched
/// ahead.
fn norm_params(meeting: &Meeting<'_>, partials: &[u64], places: [u64; 5]) -> Vec<Param> {
    let Meeting { flags, state, rank } = *meeting;
    let of_ranks = |addresses: &[u64]| -> Vec<u64> {
        (0..8).map(|rank| addresses.get(rank).copied().unwrap_or(0)).collect()
    };
    let mut exchange = of_ranks(flags);
    exchange.extend([flags[usize::from(rank)], state]);
    exchange.push(flags.len() as u64 | u64::from(rank) << 32);
    let [residual, weight, out, scales, ahead] = places;
    vec![
        Words(of_ranks(partials)),
        Address(0),
        Address(0),
        Address(residual),
        Address(residual),
        Address(0),
        U32(1),
        U32(HIDDEN as u32),
        Words(exchange),
        Words(vec![ahead, N_PIECES | STRIDE_BYTES << 32, PIECE_BYTES | ROW_BLOCKS << 32]),
        Address(weight),
        F32(1e-5),
        Address(out),
        Address(scales),
    ]
}

fn norm_call(params: &[Param]) -> Call<'_> {
    let grid = [2 * ROW_BLOCKS as u32, 1, 1];
    Call {
        kernel: "reduce_norm_e4m3_token",
        grid,
        n_threads: 256,
        cluster: 2,
        shared_bytes: 0,
        params,
    }
}
