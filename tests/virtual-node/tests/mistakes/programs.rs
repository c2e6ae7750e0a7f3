//! The table: programs, what they compute, and what may go wrong with them.

use virtual_node::exec::Checks;

/// A program that is right, and ways to make it wrong.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) ptx: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) n_threads: u32,
    pub(crate) input: fn() -> Vec<u8>,
    pub(crate) expected: fn() -> Vec<u8>,
    pub(crate) mistakes: &'static [Mistake],
}

/// A change of a program's text, and how it shows.
pub(crate) struct Mistake {
    pub(crate) name: &'static str,
    pub(crate) find: &'static str,
    pub(crate) replace: &'static str,
    pub(crate) checks: Checks,
    pub(crate) notice: Notice,
}

/// How a mistake shows.
pub(crate) enum Notice {
    /// As a fault that says this.
    Fault(&'static str),
    /// As another result than expected.
    Wrong,
}

use Notice::{Fault, Wrong};

const NONE: Checks = Checks { races: false, init: false, sectors: false, banks: false };
const RACES: Checks = Checks { races: true, ..NONE };
const INIT: Checks = Checks { init: true, ..NONE };

const fn mistake(
    name: &'static str,
    find: &'static str,
    replace: &'static str,
    checks: Checks,
    notice: Notice,
) -> Mistake {
    Mistake { name, find, replace, checks, notice }
}

const COPY: &str = include_str!("../isa/copy.ptx");
const BULK: &str = include_str!("../isa/bulk.ptx");
const WGMMA: &str = include_str!("../isa/wgmma.ptx");
const OWN: &str = include_str!("programs.ptx");

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "exchange between warps",
        ptx: OWN,
        kernel: "exchange",
        n_threads: 64,
        input: || numbers(64),
        expected: || words((0..64).map(|i| 63 - i)),
        mistakes: &[
            mistake("no barrier", "bar.sync 0;", "", RACES, Fault("race: warps")),
            mistake("no barrier, no checks", "bar.sync 0;", "", NONE, Wrong),
            mistake(
                "a barrier that one warp misses",
                "bar.sync 0;",
                "@%first bar.sync 0;",
                RACES,
                Fault("race: warps"),
            ),
        ],
    },
    Program {
        name: "a named barrier between producer and consumer",
        ptx: OWN,
        kernel: "produce_consume",
        n_threads: 64,
        input: || numbers(32),
        expected: || words((0..32).map(|i| 31 - i)),
        mistakes: &[
            mistake(
                "another barrier",
                "bar.arrive 1, 64;",
                "bar.arrive 2, 64;",
                NONE,
                Fault("dead-lock"),
            ),
            mistake(
                "no waiting",
                "bar.sync 1, 64;",
                "bar.arrive 1, 64;",
                RACES,
                Fault("race: warps"),
            ),
        ],
    },
    Program {
        name: "neighbours",
        ptx: OWN,
        kernel: "neighbours",
        n_threads: 32,
        input: || numbers(1024),
        expected: || words(0..32),
        mistakes: &[
            mistake("memory of nobody", "[%in]", "[%fresh]", INIT, Fault("nothing wrote")),
            mistake(
                "shared memory of nobody",
                "ld.shared.u32 %r, [%at];",
                "ld.shared.u32 %r, [%at+2048];",
                INIT,
                Fault("nothing wrote"),
            ),
        ],
    },
    Program {
        name: "strides",
        ptx: OWN,
        kernel: "strides",
        n_threads: 32,
        input: || numbers(1024),
        expected: || words((0..32).map(|i| 32 * i)),
        mistakes: &[],
    },
    Program {
        name: "two groups of cp.async",
        ptx: COPY,
        kernel: "copy_groups",
        n_threads: 32,
        input: || numbers(256),
        expected: || numbers(256),
        mistakes: &[
            mistake("wait off by one", "wait_group 1;", "wait_group 2;", NONE, Wrong),
            mistake("the last wait forgotten", "cp.async.wait_group 0;", "", NONE, Wrong),
            mistake("a commit forgotten", "cp.async.commit_group;", "", NONE, Wrong),
        ],
    },
    Program {
        name: "cp.async and an mbarrier",
        ptx: COPY,
        kernel: "copy_to_mbarrier",
        n_threads: 32,
        input: || numbers(128),
        expected: || numbers(128),
        mistakes: &[
            mistake("no wait", "@!%p bra wait;", "", NONE, Wrong),
            mistake(
                "too many arrivals expected",
                "[barrier], 32;",
                "[barrier], 33;",
                NONE,
                Fault("dead-lock"),
            ),
            mistake("too few", "[barrier], 32;", "[barrier], 31;", NONE, Wrong),
        ],
    },
    Program {
        name: "bulk copies there and back",
        ptx: BULK,
        kernel: "stretch",
        n_threads: 1,
        input: bulk_input,
        expected: || numbers(64),
        mistakes: &[
            mistake(
                "no barrier made",
                "mbarrier.init.shared.b64 [barrier], 1;",
                "",
                NONE,
                Fault("no mbarrier here"),
            ),
            mistake("no wait for the load", "@!%p bra wait;", "", NONE, Fault("in flight")),
            mistake(
                "the same, seen as a race",
                "@!%p bra wait;",
                "",
                RACES,
                Fault("asynchronous work"),
            ),
            mistake(
                "too few bytes expected",
                "[barrier], %bytes;",
                "[barrier], 240;",
                NONE,
                Fault("dead-lock"),
            ),
            mistake(
                "too many bytes expected",
                "[barrier], %bytes;",
                "[barrier], 272;",
                NONE,
                Fault("dead-lock"),
            ),
            mistake(
                "the store is not committed",
                "cp.async.bulk.commit_group;",
                "",
                NONE,
                Fault("bulk stores in flight"),
            ),
            mistake(
                "no wait for the store",
                "cp.async.bulk.wait_group 0;",
                "",
                NONE,
                Fault("bulk stores in flight"),
            ),
            mistake(
                "an odd size",
                "[%tile], [%data], %bytes,",
                "[%tile], [%data], 24,",
                NONE,
                Fault("multiple of 16"),
            ),
        ],
    },
    Program {
        name: "wgmma",
        ptx: WGMMA,
        kernel: "n8_bf16",
        n_threads: 128,
        input: wgmma_input,
        expected: || words((0..128 * 4).map(|_| 32f32.to_bits())),
        mistakes: &[
            mistake(
                "no wait",
                "wgmma.wait_group.sync.aligned 0;",
                "",
                NONE,
                Fault("wgmma in flight"),
            ),
            mistake(
                "wait off by one",
                "wait_group.sync.aligned 0;",
                "wait_group.sync.aligned 1;",
                NONE,
                Fault("wgmma in flight"),
            ),
            mistake(
                "no commit",
                "wgmma.commit_group.sync.aligned;",
                "",
                NONE,
                Fault("wgmma in flight"),
            ),
            mistake(
                "no wgmma.fence",
                "wgmma.fence.sync.aligned;",
                "",
                NONE,
                Fault("without a wgmma.fence"),
            ),
            mistake(
                "no proxy fence",
                "fence.proxy.async;",
                "",
                RACES,
                Fault("no fence.proxy.async"),
            ),
            mistake("no barrier", "bar.sync 0;", "", RACES, Fault("asynchronous work")),
            mistake(
                "an accumulator written in flight",
                "wgmma.commit_group.sync.aligned;",
                "wgmma.commit_group.sync.aligned; mov.f32 %d1, 0f00000000;",
                NONE,
                Fault("matrix D were written"),
            ),
            mistake(
                "wrong swizzle",
                "add.u64 %desc1, %desc1, %start;",
                "add.u64 %desc1, %desc1, %start; and.b64 %desc1, %desc1, 0x3fffffffffffffff;",
                NONE,
                Wrong,
            ),
            mistake(
                "the first product is added to what was there",
                "%no, 1, 1, 0, 0;",
                "%yes, 1, 1, 0, 0;",
                NONE,
                Wrong,
            ),
        ],
    },
];

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn numbers(n: u32) -> Vec<u8> {
    words(0..n)
}

/// 256 bytes to move, from byte 256 on.
fn bulk_input() -> Vec<u8> {
    let mut input = words([256]);
    input.resize(256, 0);
    input.extend(numbers(64));
    input
}

/// A of ones and B of ones, K-major in spans of 128 bytes, the rest of the tile NaN.
fn wgmma_input() -> Vec<u8> {
    const ONE: [u8; 2] = [0x80, 0x3f];
    let descriptor = |start: u64| start >> 4 | 1 << 16 | 64 << 32 | 1 << 62;
    let starts = [0, 8192, 32, 8192 + 32];
    let mut input: Vec<u8> = starts.iter().flat_map(|at| descriptor(*at).to_le_bytes()).collect();
    input.resize(1024, 0);
    let mut tile = vec![0xff; 49152];
    for (start, n_rows) in [(0, 64), (8192, 8)] {
        for row in 0..n_rows {
            for chunk in 0..4 {
                let at = start + row * 128 + (chunk ^ (row % 8)) * 16;
                tile[at..at + 16].copy_from_slice(&[ONE; 8].concat());
            }
        }
    }
    input.extend(tile);
    input
}
