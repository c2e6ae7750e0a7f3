//! Loads and stores: 32 lanes at once where they lie next to each other, else one by one.
//!
//! Device memory is shared with other threads and, through pinned memory, with the host; nobody
//! holds references to it. A lane's own accesses are atomic for each element, so that polling a
//! flag is sound; where a whole warp's access is copied at once, a kernel that races with another
//! may read a mixture, as it may on the device.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::exec::checks::{self, Access, AccessKind};
use crate::exec::context::{Place, lanes};
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{Address, Base, R32, R64, Space};
use crate::exec::registers::Registers;
use crate::exec::{PARAM_WINDOW, WarpCx};

/// A load of one element or a vector of them.
#[derive(Debug)]
pub struct Load {
    pub space: Space,
    pub address: Address,
    pub element_bytes: u8,
    pub n_elements: u8,
    /// Whether narrow elements are sign-extended.
    pub is_signed: bool,
    /// Volatile, relaxed or acquire: it may be polling.
    pub is_strong: bool,
    /// Targets, in the file that holds an element.
    pub rows: [u16; 4],
}

/// A store of one element or a vector of them.
#[derive(Debug)]
pub struct Store {
    pub space: Space,
    pub address: Address,
    pub element_bytes: u8,
    pub n_elements: u8,
    pub is_strong: bool,
    /// Sources, in the file that holds an element.
    pub rows: [u16; 4],
}

/// An element in memory, and the register that holds it.
trait Word: Copy {
    type Register: Copy + Default;
    /// # Safety
    ///
    /// An element lies there, aligned, which nobody holds a reference to.
    unsafe fn load(at: NonNull<u8>) -> Self::Register;
    /// # Safety
    ///
    /// As for `load`.
    unsafe fn store(at: NonNull<u8>, value: Self::Register);
    fn read(registers: &Registers, row: u16) -> [Self::Register; 32];
    fn write(registers: &mut Registers, row: u16, values: &[Self::Register; 32], mask: u32);
}

macro_rules! word {
    ($type:ty, $atomic:ty, $raw:ty, $register:ty, $file:ident, $get:ident, $set:ident) => {
        impl Word for $type {
            type Register = $register;

            // SAFETY: as the trait asks for.
            #[inline(always)]
            unsafe fn load(at: NonNull<u8>) -> $register {
                // SAFETY: the caller vouches for the element.
                let element = unsafe { <$atomic>::from_ptr(at.cast().as_ptr()) };
                element.load(Ordering::Relaxed) as $type as $register
            }

            // SAFETY: as the trait asks for.
            #[inline(always)]
            unsafe fn store(at: NonNull<u8>, value: $register) {
                // SAFETY: the caller vouches for the element.
                let element = unsafe { <$atomic>::from_ptr(at.cast().as_ptr()) };
                element.store(value as $raw, Ordering::Relaxed);
            }

            #[inline(always)]
            fn read(registers: &Registers, row: u16) -> [$register; 32] {
                *registers.$get($file(row))
            }

            #[inline(always)]
            fn write(registers: &mut Registers, row: u16, values: &[$register; 32], mask: u32) {
                registers.$set($file(row), values, mask);
            }
        }
    };
}

word!(u8, AtomicU8, u8, u32, R32, r32, set_r32);
word!(i8, AtomicU8, u8, u32, R32, r32, set_r32);
word!(u16, AtomicU16, u16, u32, R32, r32, set_r32);
word!(i16, AtomicU16, u16, u32, R32, r32, set_r32);
word!(u32, AtomicU32, u32, u32, R32, r32, set_r32);
word!(u64, AtomicU64, u64, u64, R64, r64, set_r64);

impl WarpCx<'_> {
    /// Runs a load for the lanes of the mask.
    pub(super) fn load(&mut self, load: &Load) -> Result<Flow, Trap> {
        if self.mask == 0 {
            return Ok(Flow::Next);
        }
        let addresses = self.addresses(&load.address);
        let n_bytes = load.element_bytes as usize * load.n_elements as usize;
        self.notice((load.space, AccessKind::Read), n_bytes, &addresses)?;
        match (load.element_bytes, load.is_signed) {
            (1, false) => self.load_vector::<u8>(load, &addresses)?,
            (1, true) => self.load_vector::<i8>(load, &addresses)?,
            (2, false) => self.load_vector::<u16>(load, &addresses)?,
            (2, true) => self.load_vector::<i16>(load, &addresses)?,
            (4, _) => self.load_vector::<u32>(load, &addresses)?,
            _ => self.load_vector::<u64>(load, &addresses)?,
        }
        if load.is_strong {
            fence(Ordering::Acquire);
            let first = addresses[self.mask.trailing_zeros() as usize];
            if self.warp.polls.is_spinning(self.inst.line, first) {
                return Ok(Flow::Yield);
            }
        }
        Ok(Flow::Next)
    }

    fn load_vector<W: Word>(&mut self, load: &Load, addresses: &[u64; 32]) -> Result<(), Trap> {
        match load.n_elements {
            1 => self.load_words::<W, 1>(load, addresses),
            2 => self.load_words::<W, 2>(load, addresses),
            _ => self.load_words::<W, 4>(load, addresses),
        }
    }

    fn load_words<W: Word, const N: usize>(
        &mut self,
        load: &Load,
        addresses: &[u64; 32],
    ) -> Result<(), Trap> {
        let element_bytes = load.element_bytes as usize;
        let n_bytes = N * element_bytes;
        let mut out = [[W::Register::default(); 32]; N];
        match self.together((load.space, load.address.base), n_bytes, addresses) {
            Some((start, stride)) => {
                for lane in 0..32 {
                    for (idx, out) in out.iter_mut().enumerate() {
                        // SAFETY: `together` found all lanes' bytes from `start` on, aligned.
                        out[lane] =
                            unsafe { W::load(start.add(lane * stride + idx * element_bytes)) };
                    }
                }
            }
            None => {
                for lane in lanes(self.mask) {
                    let at = self.reach((load.space, false), lane, addresses[lane], n_bytes)?;
                    for (idx, out) in out.iter_mut().enumerate() {
                        // SAFETY: `reach` found so many bytes there, aligned.
                        out[lane] = unsafe { W::load(at.add(idx * element_bytes)) };
                    }
                }
            }
        }
        for (row, out) in load.rows.iter().zip(&out) {
            W::write(&mut self.warp.registers, *row, out, self.mask);
        }
        Ok(())
    }

    /// Runs a store for the lanes of the mask.
    pub(super) fn store(&mut self, store: &Store) -> Result<Flow, Trap> {
        if self.mask == 0 {
            return Ok(Flow::Next);
        }
        let addresses = self.addresses(&store.address);
        let n_bytes = store.element_bytes as usize * store.n_elements as usize;
        self.notice((store.space, AccessKind::Write), n_bytes, &addresses)?;
        self.warp.polls.reset();
        if store.is_strong {
            fence(Ordering::Release);
        }
        match store.element_bytes {
            1 => self.store_vector::<u8>(store, &addresses)?,
            2 => self.store_vector::<u16>(store, &addresses)?,
            4 => self.store_vector::<u32>(store, &addresses)?,
            _ => self.store_vector::<u64>(store, &addresses)?,
        }
        Ok(Flow::Next)
    }

    fn store_vector<W: Word>(&mut self, store: &Store, addresses: &[u64; 32]) -> Result<(), Trap> {
        match store.n_elements {
            1 => self.store_words::<W, 1>(store, addresses),
            2 => self.store_words::<W, 2>(store, addresses),
            _ => self.store_words::<W, 4>(store, addresses),
        }
    }

    fn store_words<W: Word, const N: usize>(
        &mut self,
        store: &Store,
        addresses: &[u64; 32],
    ) -> Result<(), Trap> {
        let element_bytes = store.element_bytes as usize;
        let n_bytes = N * element_bytes;
        let values: [_; N] =
            std::array::from_fn(|idx| W::read(&self.warp.registers, store.rows[idx]));
        match self.together((store.space, store.address.base), n_bytes, addresses) {
            // Lanes that all write to one place do so in order below.
            Some((start, stride)) if stride != 0 => {
                for lane in 0..32 {
                    for (idx, values) in values.iter().enumerate() {
                        // SAFETY: `together` found all lanes' bytes from `start` on, aligned.
                        unsafe {
                            W::store(start.add(lane * stride + idx * element_bytes), values[lane]);
                        }
                    }
                }
            }
            _ => {
                for lane in lanes(self.mask) {
                    let at = self.reach((store.space, true), lane, addresses[lane], n_bytes)?;
                    for (idx, values) in values.iter().enumerate() {
                        // SAFETY: `reach` found so many bytes there, aligned.
                        unsafe { W::store(at.add(idx * element_bytes), values[lane]) };
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the bytes of all 32 lanes lie, if they are active and access the same place or one
    /// after the other: the first lane's, and the distance between lanes. None also where
    /// something is wrong, which going lane by lane finds again.
    #[inline(always)]
    fn together(
        &mut self,
        (space, base): (Space, Base),
        n_bytes: usize,
        addresses: &[u64; 32],
    ) -> Option<(NonNull<u8>, usize)> {
        let first = addresses[0];
        let stride = addresses[1].wrapping_sub(first);
        if base == Base::Absolute && space == Space::Param {
            let at = self.param(0, first, n_bytes).ok()?;
            return Some((at, 0));
        }
        if self.mask != !0 || (stride != n_bytes as u64 && stride != 0) {
            return None;
        }
        let mut is_regular = true;
        for (lane, address) in addresses.iter().enumerate() {
            is_regular &= *address == first.wrapping_add(lane as u64 * stride);
        }
        if !is_regular {
            return None;
        }
        let total = stride as usize * 31 + n_bytes;
        let at = match space {
            Space::Global => self.cx.global(first, total, n_bytes),
            Space::Shared => self.cx.shared(first, total, n_bytes),
            _ => return None,
        };
        Some((at.ok()?, stride as usize))
    }

    /// Where a lane's bytes lie, aligned to their number.
    #[inline]
    pub(super) fn reach(
        &mut self,
        (space, is_write): (Space, bool),
        lane: usize,
        address: u64,
        n_bytes: usize,
    ) -> Result<NonNull<u8>, Trap> {
        match space {
            Space::Global => self.global(lane, address, n_bytes),
            Space::Shared => self.shared(lane, address, n_bytes),
            Space::Local => self.local(lane, address, n_bytes),
            Space::Param if is_write => Err(Cause::ReadOnly { address }.at(lane)),
            Space::Param => self.param(lane, address, n_bytes),
            Space::Generic => {
                if is_write && address & !0xffff_ffff == PARAM_WINDOW {
                    return Err(Cause::ReadOnly { address }.at(lane));
                }
                self.generic(lane, address, n_bytes)
            }
        }
    }

    /// Counts an access, and lets the checks see it where they want to.
    #[inline]
    pub(super) fn notice(
        &mut self,
        (space, kind): (Space, AccessKind),
        n_bytes: usize,
        addresses: &[u64; 32],
    ) -> Result<(), Trap> {
        if space == Space::Generic {
            return self.notice_generic(kind, n_bytes, addresses);
        }
        if space == Space::Global {
            let total = u64::from(self.mask.count_ones()) * n_bytes as u64;
            match kind {
                AccessKind::Read => self.cx.counters.bytes_read += total,
                AccessKind::Write => self.cx.counters.bytes_written += total,
                AccessKind::Atomic => {
                    self.cx.counters.bytes_read += total;
                    self.cx.counters.bytes_written += total;
                }
            }
        }
        if self.cx.launch.checks.watches(space) {
            let mask = self.mask;
            checks::observe(self, &Access { space, kind, n_bytes, addresses, mask })?;
        }
        Ok(())
    }

    /// Sorts lanes by the space that each one points into.
    fn notice_generic(
        &mut self,
        kind: AccessKind,
        n_bytes: usize,
        addresses: &[u64; 32],
    ) -> Result<(), Trap> {
        let whole = self.mask;
        let (mut global, mut shared) = (0, 0);
        let mut offsets = *addresses;
        for lane in lanes(whole) {
            match Place::of(addresses[lane]) {
                Place::Global(_) => global |= 1 << lane,
                Place::Shared(offset) => {
                    shared |= 1 << lane;
                    offsets[lane] = offset;
                }
                Place::Local(_) | Place::Param(_) => {}
            }
        }
        for (space, mask) in [(Space::Global, global), (Space::Shared, shared)] {
            if mask != 0 {
                self.mask = mask;
                let noticed = self.notice((space, kind), n_bytes, &offsets);
                self.mask = whole;
                noticed?;
            }
        }
        Ok(())
    }
}
