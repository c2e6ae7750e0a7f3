//! Collectives: what each rank brings, what must agree, and how the messages move.

use super::reduce::reduce;
use super::types::{Element, NcclError, NcclResult, Reduction, invalid_usage};
use super::world::Request;
use crate::memory::{DeviceIdx, Fault, Memory};

/// What a collective does with the ranks' messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AllReduce(Reduction),
    /// Only `root` gets the result.
    Reduce {
        reduction: Reduction,
        root: usize,
    },
    /// Every rank sends `count` elements and gets those of all.
    AllGather,
    /// Every rank sends `count` elements for each rank and gets `count`.
    ReduceScatter(Reduction),
    Broadcast {
        root: usize,
    },
}

/// One rank's part in a collective.
#[derive(Debug, Clone, Copy)]
pub struct Collective {
    pub kind: Kind,
    pub element: Element,
    pub count: usize,
    pub device: DeviceIdx,
    /// Device addresses.
    pub send: u64,
    pub receive: u64,
}

impl Kind {
    /// As it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Kind::AllReduce(_) => "all_reduce",
            Kind::Reduce { .. } => "reduce",
            Kind::AllGather => "all_gather",
            Kind::ReduceScatter(_) => "reduce_scatter",
            Kind::Broadcast { .. } => "broadcast",
        }
    }
}

impl Request for Collective {
    fn conflict(&self, other: &Collective) -> Option<String> {
        let differ =
            self.kind != other.kind || self.element != other.element || self.count != other.count;
        differ.then(|| format!("{} and {}", self.name(), other.name()))
    }

    fn name(&self) -> String {
        let (element, count) = (self.element.name(), self.count);
        match self.kind {
            Kind::AllReduce(reduction) | Kind::ReduceScatter(reduction) => {
                format!("{} ({reduction:?}) of {count} {element}", self.kind.name())
            }
            Kind::Reduce { reduction, root } => {
                format!("reduce ({reduction:?}) of {count} {element} to {root}")
            }
            Kind::Broadcast { root } => format!("broadcast of {count} {element} from {root}"),
            Kind::AllGather => format!("all_gather of {count} {element}"),
        }
    }
}

impl Collective {
    /// Bytes of `count` elements: the size of the message as NCCL's own tools count it.
    pub fn message_bytes(&self) -> u64 {
        // So many that they overflow are in no allocation either.
        (self.count as u64).saturating_mul(self.element.n_bytes() as u64)
    }

    /// Bytes that a rank sends and receives.
    pub fn extents(&self, rank: usize, n_ranks: usize) -> (u64, u64) {
        let one = self.message_bytes();
        let all = one.saturating_mul(n_ranks as u64);
        match self.kind {
            Kind::AllReduce(_) => (one, one),
            Kind::AllGather => (one, all),
            Kind::ReduceScatter(_) => (all, one),
            Kind::Reduce { root, .. } => (one, if rank == root { one } else { 0 }),
            Kind::Broadcast { root } => (if rank == root { one } else { 0 }, one),
        }
    }
}

/// Checks that every rank can reach its buffers, and moves the messages unless it is dry.
/// `collectives` are of the same kind, in the order of ranks.
pub fn perform(collectives: &[Collective], memory: &Memory, is_dry: bool) -> Result<(), NcclError> {
    let n_ranks = collectives.len();
    for (rank, collective) in collectives.iter().enumerate() {
        let (sent, received) = collective.extents(rank, n_ranks);
        for (address, n_bytes) in [(collective.send, sent), (collective.receive, received)] {
            if n_bytes > 0 {
                let check = memory.check(collective.device, address, n_bytes);
                check.map_err(|fault| unreachable_memory(rank, collective, fault))?;
            }
        }
        check_overlap(rank, n_ranks, collective)?;
    }
    if is_dry {
        return Ok(());
    }
    exchange(collectives, memory).map_err(|fault| unreachable_memory(0, &collectives[0], fault))
}

fn unreachable_memory(rank: usize, collective: &Collective, fault: Fault) -> NcclError {
    let reason = format!("rank {rank}, {}: {fault}", collective.name());
    NcclError { result: NcclResult::UnhandledCudaError, reason }
}

/// Buffers may be the same memory only as the documentation of in-place operation has it.
fn check_overlap(rank: usize, n_ranks: usize, collective: &Collective) -> Result<(), NcclError> {
    let (sent, received) = collective.extents(rank, n_ranks);
    let Collective { send, receive, .. } = *collective;
    let overlaps = sent > 0 && received > 0 && send < receive + received && receive < send + sent;
    let offset = rank as u64 * collective.message_bytes();
    let is_in_place = match collective.kind {
        Kind::AllReduce(_) | Kind::Reduce { .. } | Kind::Broadcast { .. } => send == receive,
        Kind::AllGather => send == receive + offset,
        Kind::ReduceScatter(_) => receive == send + offset,
    };
    if overlaps && !is_in_place {
        let name = collective.name();
        return Err(invalid_usage(format!("rank {rank}, {name}: its buffers overlap")));
    }
    Ok(())
}

/// Results are made before any is written, since a rank may receive where it sent from.
fn exchange(collectives: &[Collective], memory: &Memory) -> Result<(), Fault> {
    let n_ranks = collectives.len();
    let first = &collectives[0];
    let n_bytes = first.message_bytes() as usize;
    let messages = collectives.iter().enumerate().map(|(rank, collective)| {
        let n_sent = collective.extents(rank, n_ranks).0;
        bytes(memory, collective.device, collective.send, n_sent).map(|bytes| &*bytes)
    });
    let messages: Vec<&[u8]> = messages.collect::<Result<_, _>>()?;
    let result = match first.kind {
        Kind::AllReduce(reduction) | Kind::Reduce { reduction, .. } => {
            reduced(first.element, reduction, &messages, n_bytes)
        }
        Kind::ReduceScatter(reduction) => {
            reduced(first.element, reduction, &messages, n_bytes * n_ranks)
        }
        Kind::AllGather => messages.concat(),
        Kind::Broadcast { root } => messages[root].to_vec(),
    };
    for (rank, collective) in collectives.iter().enumerate() {
        let n_received = collective.extents(rank, n_ranks).1;
        let part = match first.kind {
            Kind::ReduceScatter(_) => &result[rank * n_bytes..][..n_bytes],
            _ => &result[..n_received as usize],
        };
        bytes(memory, collective.device, collective.receive, n_received)?.copy_from_slice(part);
    }
    Ok(())
}

fn reduced(element: Element, reduction: Reduction, messages: &[&[u8]], n_bytes: usize) -> Vec<u8> {
    let mut result = vec![0; n_bytes];
    reduce(element, reduction, messages, &mut result);
    result
}

fn bytes<'a>(
    memory: &Memory,
    device: DeviceIdx,
    address: u64,
    n_bytes: u64,
) -> Result<&'a mut [u8], Fault> {
    if n_bytes == 0 {
        return Ok(&mut []);
    }
    let pointer = memory.resolve(device, address, n_bytes)?;
    // SAFETY: one live allocation holds the range, and all ranks wait until the exchange is over;
    // what else streams do to it meanwhile is the program's fault, and yields garbage.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), n_bytes as usize) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cublaslt::element::Element as Float;

    const F32: Element = Element::Float(Float::F32);

    /// A buffer on every device, with these values.
    fn buffers(memory: &Memory, values: &[&[f32]]) -> Vec<u64> {
        let put = |(device, values): (usize, &&[f32])| {
            let device = DeviceIdx(device as u8);
            let n_bytes = 4 * values.len() as u64;
            let address = memory.allocate(device, n_bytes).unwrap();
            let out = bytes(memory, device, address, n_bytes).unwrap();
            for (value, out) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                *out = value.to_le_bytes();
            }
            address
        };
        values.iter().enumerate().map(put).collect()
    }

    fn read(memory: &Memory, device: usize, address: u64, n: usize) -> Vec<f32> {
        let bytes = bytes(memory, DeviceIdx(device as u8), address, 4 * n as u64).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn collectives(kind: Kind, count: usize, send: &[u64], receive: &[u64]) -> Vec<Collective> {
        let ranks = send.iter().zip(receive).enumerate();
        let one = |(rank, (send, receive)): (usize, (&u64, &u64))| Collective {
            kind,
            element: F32,
            count,
            device: DeviceIdx(rank as u8),
            send: *send,
            receive: *receive,
        };
        ranks.map(one).collect()
    }

    #[test]
    fn every_kind_moves_the_right_parts() {
        let memory = Memory::new(3, true);
        let send = buffers(&memory, &[&[1., 2., 3.], &[10., 20., 30.], &[100., 200., 300.]]);
        let sum = [111., 222., 333.];
        let cases: [(Kind, usize, [&[f32]; 3]); 4] = [
            (Kind::AllReduce(Reduction::Sum), 3, [&sum; 3]),
            (Kind::AllGather, 1, [&[1., 10., 100.]; 3]),
            (Kind::ReduceScatter(Reduction::Sum), 1, [&[111.], &[222.], &[333.]]),
            (Kind::Broadcast { root: 1 }, 2, [&[10., 20.]; 3]),
        ];
        for (kind, count, expected) in cases {
            let receive = buffers(&memory, &[&[0.; 3][..]; 3]);
            perform(&collectives(kind, count, &send, &receive), &memory, false).unwrap();
            for (rank, expected) in expected.iter().enumerate() {
                let received = read(&memory, rank, receive[rank], expected.len());
                assert_eq!(received, *expected, "{kind:?} on {rank}");
            }
        }
        let receive = buffers(&memory, &[&[7.; 3][..]; 3]);
        let to_two = Kind::Reduce { reduction: Reduction::Max, root: 2 };
        perform(&collectives(to_two, 3, &send, &receive), &memory, false).unwrap();
        assert_eq!(read(&memory, 2, receive[2], 3), [100., 200., 300.]);
        assert_eq!(read(&memory, 0, receive[0], 3), [7.; 3], "not the root");
    }

    #[test]
    fn in_place_is_fine_and_half_over_each_other_is_not() {
        let memory = Memory::new(2, true);
        let send = buffers(&memory, &[&[1., 2., 0., 0.], &[3., 4., 0., 0.]]);
        let sum = Kind::AllReduce(Reduction::Sum);
        perform(&collectives(sum, 2, &send, &send), &memory, false).unwrap();
        assert_eq!(read(&memory, 1, send[1], 2), [4., 6.]);
        let shifted: Vec<u64> = send.iter().map(|address| address + 4).collect();
        let problem = perform(&collectives(sum, 2, &send, &shifted), &memory, false).unwrap_err();
        assert_eq!(problem.result, NcclResult::InvalidUsage);
        assert!(problem.reason.contains("overlap"), "{problem}");
    }

    #[test]
    fn buffers_must_be_there_in_dry_mode_too() {
        for is_dry in [false, true] {
            let memory = Memory::new(2, !is_dry);
            let allocate = |device| memory.allocate(DeviceIdx(device), 16).unwrap();
            let send = [allocate(0), allocate(1)];
            let gather = collectives(Kind::AllGather, 4, &send, &[allocate(0), allocate(1)]);
            let problem = perform(&gather, &memory, is_dry).unwrap_err();
            assert_eq!(problem.result, NcclResult::UnhandledCudaError);
            assert!(problem.reason.contains("rank 0, all_gather of 4 f32"), "{problem}");
            let huge = collectives(Kind::AllGather, usize::MAX / 4 + 2, &send, &send);
            let problem = perform(&huge, &memory, is_dry).unwrap_err();
            assert_eq!(problem.result, NcclResult::UnhandledCudaError, "{problem}");
            let sum = Kind::AllReduce(Reduction::Sum);
            perform(&collectives(sum, 4, &send, &send), &memory, is_dry).unwrap();
        }
    }

    #[test]
    fn what_must_agree_is_compared() {
        let sum = Kind::AllReduce(Reduction::Sum);
        let one = collectives(sum, 4, &[0], &[0])[0];
        assert_eq!(one.conflict(&Collective { send: 512, receive: 1024, ..one }), None);
        for other in [
            Collective { count: 5, ..one },
            Collective { element: Element::I32, ..one },
            Collective { kind: Kind::AllReduce(Reduction::Max), ..one },
            Collective { kind: Kind::AllGather, ..one },
        ] {
            assert!(one.conflict(&other).is_some(), "{other:?}");
        }
    }
}
