//! AMX: tiles of bf16, multiplied sixteen rows by sixteen tokens at a time.
//!
//! One element of a product of tiles is, as Intel's manual has it (*Intel 64 and IA-32
//! Architectures Software Developer's Manual*, TDPBF16PS) and processors compute it, bit for bit:
//! of 32 columns, those of even number are one chain of fused multiply-adds from zero on, those of
//! odd number another, and the sum of the two is added to what was there. Subnormal numbers are
//! taken for zero.
//!
//! Rust has no types of tiles. Here each loop over them is a piece of assembly, and between two
//! pieces tiles hold their sums and how they are laid out. The compiler never touches a tile: it
//! knows of them only that these pieces do.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::LazyLock;

use super::tiles::{N_GROUPS, STEP_COLUMNS, Sums, TILE, Tiles, WeightStep, check_steps};

/// Bytes of a tile's rows, and of a step's weights.
const ROW_BYTES: usize = size_of::<[f32; TILE]>();
const STEP_BYTES: usize = size_of::<WeightStep>();

/// Tiles that hold weights: the first four are sums, `[group, strip]`, and two are tokens.
const WEIGHT_TILES: [usize; 2] = [6, 7];

/// How this thread's eight tiles are laid out, until this is dropped.
pub(super) struct TileLayout {
    /// The layout belongs to a thread.
    on_thread: PhantomData<*const ()>,
}

/// Tiles of sums, tokens and weights: this thread's, while this is.
pub(super) struct AmxTiles {
    n_tokens: usize,
    _layout: TileLayout,
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Layout {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    n_row_bytes: [u16; 16],
    n_rows: [u8; 16],
}

/// Whether the processor multiplies tiles of bf16, and has GFNI as all such have, and the operating
/// system lets this process: asked once, before any thread does.
pub(super) fn is_available() -> bool {
    static IS_GRANTED: LazyLock<bool> = LazyLock::new(|| is_in_processor() && is_granted());
    super::avx512::is_bf16_available() && is_x86_feature_detected!("gfni") && *IS_GRANTED
}

/// AMX-TILE and AMX-BF16, and an operating system that saves tiles (*SDM* volume 1, 13.3, 18).
fn is_in_processor() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    let has = |register: u32, bits: u32| register & bits == bits;
    let n_leaves = __cpuid(0).eax;
    n_leaves >= 7
        && has(__cpuid(1).ecx, OSXSAVE)
        && has(__cpuid_count(7, 0).edx, AMX_BF16_AND_TILE)
        && {
            let (low, high): (u32, u32);
            // SAFETY: the processor has XGETBV where the operating system has set OSXSAVE.
            unsafe {
                asm!(
                    "xgetbv",
                    in("ecx") 0, out("eax") low, out("edx") high,
                    options(nomem, nostack),
                );
            }
            (u64::from(high) << 32 | u64::from(low)) & TILE_STATE == TILE_STATE
        }
}

/// Tiles are 8 KiB more to save for every thread: Linux wants a process to ask for them (its
/// `Documentation/arch/x86/xstate.rst`).
#[cfg(target_os = "linux")]
fn is_granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: this request reads and writes no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Nobody has tried another.
#[cfg(not(target_os = "linux"))]
fn is_granted() -> bool {
    false
}

impl TileLayout {
    /// Lays tiles out, each with so many rows and 32-bit lanes of a row, 1 to [`TILE`] of either.
    ///
    /// # Safety
    /// [`is_available`] has held in this process.
    pub(super) unsafe fn assume(shapes: [(usize, usize); 8]) -> TileLayout {
        let mut layout = Layout {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            n_row_bytes: [0; 16],
            n_rows: [0; 16],
        };
        for (tile_idx, (n_rows, n_lanes)) in shapes.into_iter().enumerate() {
            let is_valid = (1..=TILE).contains(&n_rows) && (1..=TILE).contains(&n_lanes);
            assert!(is_valid, "a tile of {n_rows} rows of {n_lanes}");
            layout.n_row_bytes[tile_idx] = (n_lanes * size_of::<f32>()) as u16;
            layout.n_rows[tile_idx] = n_rows as u8;
        }
        // SAFETY: the caller's; the instruction reads the 64 bytes of a valid layout.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(nostack, readonly)) };
        TileLayout { on_thread: PhantomData }
    }
}

impl Drop for TileLayout {
    fn drop(&mut self) {
        // SAFETY: whoever laid tiles out had the instruction.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

impl AmxTiles {
    /// For `n_tokens`, 1 to [`TILE`].
    ///
    /// # Safety
    /// [`is_available`] has held in this process.
    pub(super) unsafe fn assume(n_tokens: usize) -> AmxTiles {
        let n_rows = |tile_idx| if WEIGHT_TILES.contains(&tile_idx) { TILE } else { n_tokens };
        let shapes = std::array::from_fn(|tile_idx| (n_rows(tile_idx), TILE));
        // SAFETY: the caller's.
        AmxTiles { n_tokens, _layout: unsafe { TileLayout::assume(shapes) } }
    }
}

impl AmxTiles {
    /// Runs multiply-adds out of tiles and gives back how many: a thread's peak, for benches.
    pub(super) fn spin(&self, n_rounds: usize) -> usize {
        const MULTIPLY_ADDS_PER_ROUND: usize = 4 * TILE * TILE * STEP_COLUMNS;
        if n_rounds > 0 {
            // SAFETY: as in `add_one`; no memory is touched.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                    "2:",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "dec {n}",
                    "jnz 2b",
                    n = inout(reg) n_rounds => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, nomem),
                );
            }
        }
        n_rounds * MULTIPLY_ADDS_PER_ROUND
    }
}

impl Tiles for AmxTiles {
    #[inline(always)]
    fn clear(&mut self) {
        // SAFETY: whoever made the tiles had the instructions, and their layout is this thread's.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem),
            );
        }
    }

    #[inline(always)]
    fn resume(&mut self, sums: &Sums) {
        // SAFETY: as in `clear`; four tiles of 1 KiB are read, which is what sums are.
        unsafe {
            asm!(
                "tileloadd tmm0, [{sums} + {row}]",
                "tileloadd tmm1, [{sums} + {row} + 1024]",
                "tileloadd tmm2, [{sums} + {row} + 2048]",
                "tileloadd tmm3, [{sums} + {row} + 3072]",
                sums = in(reg) sums.as_ptr(),
                row = in(reg) ROW_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly),
            );
        }
    }

    #[inline(always)]
    fn add_one(&mut self, weights: &[WeightStep], tokens: &[f32]) {
        check_steps(weights, [tokens], self.n_tokens);
        if weights.is_empty() {
            return;
        }
        // SAFETY: as in `clear`. Every step moves the pointers by what it has read: `check_steps`
        // saw that it is there.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{w} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {w}, {w_step}",
                "add {x}, {x_step}",
                "dec {n}",
                "jnz 2b",
                row = in(reg) ROW_BYTES,
                w_step = const STEP_BYTES,
                x_step = in(reg) self.n_tokens * ROW_BYTES,
                w = inout(reg) weights.as_ptr() => _,
                x = inout(reg) tokens.as_ptr() => _,
                n = inout(reg) weights.len() => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    #[inline(always)]
    fn add_two(&mut self, weights: &[WeightStep], tokens: [&[f32]; N_GROUPS]) {
        check_steps(weights, tokens, self.n_tokens);
        if weights.is_empty() {
            return;
        }
        // SAFETY: as in `add_one`.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{w} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {w}, {w_step}",
                "add {x0}, {x_step}",
                "add {x1}, {x_step}",
                "dec {n}",
                "jnz 2b",
                row = in(reg) ROW_BYTES,
                w_step = const STEP_BYTES,
                x_step = in(reg) self.n_tokens * ROW_BYTES,
                w = inout(reg) weights.as_ptr() => _,
                x0 = inout(reg) tokens[0].as_ptr() => _,
                x1 = inout(reg) tokens[1].as_ptr() => _,
                n = inout(reg) weights.len() => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    #[inline(always)]
    fn put(&self, sums: &mut Sums) {
        // SAFETY: as in `clear`; four tiles of at most 1 KiB are written, which is what sums are.
        unsafe {
            asm!(
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 3072], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) ROW_BYTES,
                options(nostack),
            );
        }
    }
}
