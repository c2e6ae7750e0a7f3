//! Copies and fills: which end lies where, what is checked, and when they land.

use std::fmt;
use std::sync::Arc;

use super::context::{self, Context};
use super::operation::{Failure, Operation, WorkCx};
use super::status::{Answer, Status};
use super::stream::{self, Stream};
use super::{capture, complain};
use crate::config::Config;
use crate::memory::{Memory, Place};
use crate::report::{self, CopyKind};

/// Virtual time: bytes per ns between host and device, and within a device.
const HOST_BYTES_PER_NS: u64 = 50;
const DEVICE_BYTES_PER_NS: u64 = 1500;

/// One end of a copy.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// In a device's memory.
    Device(u64),
    /// In host memory that the driver knows, which a copy reaches when its turn comes.
    Pinned(u64),
    /// In any other host memory.
    Pageable(u64),
    /// What pageable memory held when the call was made.
    Staged(Arc<[u8]>),
}

/// Bytes in rows and layers, packed on neither end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) row_bytes: u64,
    pub(super) n_rows: u64,
    pub(super) n_layers: u64,
}

/// From one row and layer to the next, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pitch {
    pub(super) row_bytes: u64,
    pub(super) layer_bytes: u64,
}

impl Shape {
    /// One row.
    pub(super) fn row(n_bytes: u64) -> Shape {
        Shape { row_bytes: n_bytes, n_rows: 1, n_layers: 1 }
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.row_bytes * self.n_rows * self.n_layers
    }

    /// Bytes from the first to behind the last.
    fn extent(&self, pitch: Pitch) -> u64 {
        if self.n_bytes() == 0 {
            return 0;
        }
        (self.n_layers - 1) * pitch.layer_bytes
            + (self.n_rows - 1) * pitch.row_bytes
            + self.row_bytes
    }
}

/// A copy, checked when it was asked for.
#[derive(Clone)]
pub(super) struct Copy {
    pub(super) to: End,
    pub(super) from: End,
    pub(super) shape: Shape,
    pub(super) to_pitch: Pitch,
    pub(super) from_pitch: Pitch,
}

impl End {
    /// The end that an address means, when any memory may be meant.
    pub(super) fn of(address: u64) -> End {
        if Memory::global().owner(address).is_some() {
            End::Device(address)
        } else if Memory::global().find(address).is_some() {
            End::Pinned(address)
        } else {
            End::Pageable(address)
        }
    }

    fn is_device(&self) -> bool {
        matches!(self, End::Device(_))
    }

    fn check(&self, n_bytes: u64) -> Answer {
        let memory = Memory::global();
        let (accessor, address) = match self {
            End::Device(address) => (memory.owner(*address), *address),
            End::Pinned(address) => (Some(crate::memory::DeviceIdx(0)), *address),
            End::Pageable(0) => return Err(Status::INVALID_VALUE),
            End::Pageable(_) | End::Staged(_) => return Ok(()),
        };
        // Copies need no peer access: each end is reached by its own device.
        let accessor = accessor.ok_or_else(|| {
            complain(format_args!("{address:#x} is no device memory"));
            Status::INVALID_VALUE
        })?;
        memory.check(accessor, address, n_bytes).map(|_| ()).map_err(|fault| {
            complain(format_args!("a copy may not be: {fault}"));
            Status::INVALID_VALUE
        })
    }

    /// Where the host finds the bytes.
    fn host_address(&self, n_bytes: u64) -> Result<u64, Failure> {
        let memory = Memory::global();
        match self {
            End::Device(address) => {
                let owner = memory.owner(*address).expect("the copy was checked");
                Ok(memory.resolve(owner, *address, n_bytes)?.as_ptr() as u64)
            }
            End::Pinned(address) => {
                // It may have been freed since.
                let device = crate::memory::DeviceIdx(0);
                Ok(memory.resolve(device, *address, n_bytes)?.as_ptr() as u64)
            }
            End::Pageable(address) => Ok(*address),
            End::Staged(bytes) => Ok(bytes.as_ptr() as u64),
        }
    }
}

impl Copy {
    /// A copy of bytes in a row.
    pub(super) fn row(to: End, from: End, n_bytes: u64) -> Copy {
        let pitch = Pitch { row_bytes: n_bytes, layer_bytes: n_bytes };
        Copy { to, from, shape: Shape::row(n_bytes), to_pitch: pitch, from_pitch: pitch }
    }

    pub(super) fn check(&self) -> Answer {
        if self.shape.n_bytes() == 0 {
            return Ok(());
        }
        self.to.check(self.shape.extent(self.to_pitch))?;
        self.from.check(self.shape.extent(self.from_pitch))
    }

    fn kind(&self) -> CopyKind {
        let owner = |end: &End| match end {
            End::Device(address) => Memory::global().owner(*address),
            _ => None,
        };
        match (owner(&self.from), owner(&self.to)) {
            (None, None) => CopyKind::HostToHost,
            (None, Some(_)) => CopyKind::HostToDevice,
            (Some(_), None) => CopyKind::DeviceToHost,
            (Some(from), Some(to)) if from == to => CopyKind::DeviceToDevice,
            (Some(_), Some(_)) => CopyKind::PeerToPeer,
        }
    }

    pub(super) fn goes_to_a_device(&self) -> bool {
        self.to.is_device()
    }

    pub(super) fn run(&self, cx: &WorkCx<'_>) -> Result<(), Failure> {
        let is_only_counted = cx.is_dry && self.goes_to_a_device();
        let touches_host = |end: &End| matches!(end, End::Pinned(_) | End::Pageable(_));
        if !is_only_counted && (touches_host(&self.to) || touches_host(&self.from)) {
            cx.wait_for_the_host();
        }
        let n_bytes = self.shape.n_bytes();
        let is_local = self.to.is_device() && self.from.is_device();
        cx.spend_ns(n_bytes / if is_local { DEVICE_BYTES_PER_NS } else { HOST_BYTES_PER_NS });
        report::record_copy(cx.device.index(), self.kind(), n_bytes);
        if n_bytes == 0 {
            return Ok(());
        }
        if cx.is_dry {
            return self.run_dry();
        }
        let to = self.to.host_address(self.shape.extent(self.to_pitch))?;
        let from = self.from.host_address(self.shape.extent(self.from_pitch))?;
        self.move_rows(to, from);
        Ok(())
    }

    /// Without data, devices hold zeros as far as the host can see.
    fn run_dry(&self) -> Result<(), Failure> {
        if self.to.is_device() {
            return Ok(());
        }
        let to = self.to.host_address(self.shape.extent(self.to_pitch))?;
        for at in self.rows(self.to_pitch) {
            // SAFETY: host memory that the caller of the copy gave for this many bytes.
            unsafe { ((to + at) as *mut u8).write_bytes(0, self.shape.row_bytes as usize) };
        }
        Ok(())
    }

    fn move_rows(&self, to: u64, from: u64) {
        for (to_at, from_at) in self.rows(self.to_pitch).zip(self.rows(self.from_pitch)) {
            let (to, from) = ((to + to_at) as *mut u8, (from + from_at) as *const u8);
            // SAFETY: device ends were resolved for the whole extent; host ends are memory that
            // the caller of the copy gave for it, until the copy is waited for.
            unsafe { std::ptr::copy(from, to, self.shape.row_bytes as usize) };
        }
    }

    fn rows(&self, pitch: Pitch) -> impl Iterator<Item = u64> + use<> {
        let shape = self.shape;
        (0..shape.n_layers).flat_map(move |layer_idx| {
            let layer = layer_idx * pitch.layer_bytes;
            (0..shape.n_rows).map(move |row_idx| layer + row_idx * pitch.row_bytes)
        })
    }

    /// Takes what pageable memory holds now, as the real driver does before it returns.
    fn stage(mut self) -> Copy {
        if let End::Pageable(address) = self.from
            && self.shape.n_bytes() > 0
        {
            let n_bytes = self.shape.extent(self.from_pitch) as usize;
            // SAFETY: the caller of the copy gave this host memory for the extent to be read.
            let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, n_bytes) };
            self.from = End::Staged(bytes.into());
        }
        self
    }
}

impl fmt::Debug for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy of {} bytes", self.shape.n_bytes())
    }
}

/// A copy in a stream's order. It returns at once, unless pageable memory is at one end.
pub(super) fn submit(copy: Copy, stream: &Stream) -> Answer {
    copy.check()?;
    if stream.capture.lock().is_some() {
        return stream.submit(Operation::Copy(copy)).map(|_| ());
    }
    hold(&copy);
    let returns_late = matches!(copy.to, End::Pageable(_));
    let ticket = stream.submit(Operation::Copy(copy.stage()))?;
    if let Some(ticket) = ticket.filter(|_| returns_late) {
        stream::wait_counted(&stream.context, &ticket);
        stream.context.clone().check()?;
    }
    Ok(())
}

/// Waits where a test wants large copies from the host to wait; see [`Config::hold`].
fn hold(copy: &Copy) {
    let Some((n_bytes_min, pipe)) = &Config::get().hold else { return };
    if copy.kind() == CopyKind::HostToDevice && copy.shape.n_bytes() >= *n_bytes_min {
        // Opened when somebody opens it to write, at its end when that one has closed it.
        let _ = std::fs::read(pipe);
    }
}

/// A copy in the order of the legacy stream. It returns when it is done, unless no host memory is
/// involved.
pub(super) fn run(copy: Copy) -> Answer {
    capture::forbid_unsafe_call()?;
    let context = context::current()?;
    run_in(&context, copy)
}

/// As [`run`], in another context.
pub(super) fn run_in(context: &Arc<Context>, copy: Copy) -> Answer {
    copy.check()?;
    let waits = !(copy.to.is_device() && copy.from.is_device());
    let stream = stream::legacy(context)?;
    let ticket = stream.submit(Operation::Copy(copy))?;
    if let Some(ticket) = ticket.filter(|_| waits) {
        stream::wait_counted(context, &ticket);
        context.clone().check()?;
    }
    Ok(())
}

/// Sets memory to one value of 1, 2 or 4 bytes, in rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    pub(super) address: u64,
    pub(super) value: u32,
    pub(super) value_bytes: u64,
    /// In bytes.
    pub(super) shape: Shape,
    pub(super) pitch_bytes: u64,
}

impl Fill {
    /// Sets `n_values` in a row.
    pub(super) fn row(address: u64, value: u32, value_bytes: u64, n_values: u64) -> Fill {
        let n_bytes = n_values * value_bytes;
        Fill { address, value, value_bytes, shape: Shape::row(n_bytes), pitch_bytes: n_bytes }
    }

    fn pitch(&self) -> Pitch {
        Pitch { row_bytes: self.pitch_bytes, layer_bytes: 0 }
    }

    pub(super) fn check(&self) -> Answer {
        if !self.address.is_multiple_of(self.value_bytes) {
            return Err(Status::INVALID_VALUE);
        }
        match End::of(self.address) {
            _ if self.shape.n_bytes() == 0 => Ok(()),
            End::Pageable(_) => Err(Status::INVALID_VALUE),
            end => end.check(self.shape.extent(self.pitch())),
        }
    }

    pub(super) fn run(&self, cx: &WorkCx<'_>) -> Result<(), Failure> {
        let n_bytes = self.shape.n_bytes();
        cx.spend_ns(n_bytes / DEVICE_BYTES_PER_NS);
        report::record_copy(cx.device.index(), CopyKind::Memset, n_bytes);
        if cx.is_dry || n_bytes == 0 {
            return Ok(());
        }
        let end = End::of(self.address);
        if let Some(Place::Host(_)) = cx.memory.find(self.address).map(|found| found.place) {
            cx.wait_for_the_host();
        }
        let host = end.host_address(self.shape.extent(self.pitch()))?;
        for row_idx in 0..self.shape.n_rows {
            self.fill_row(host + row_idx * self.pitch_bytes);
        }
        Ok(())
    }

    fn fill_row(&self, host: u64) {
        let n_values = (self.shape.row_bytes / self.value_bytes) as usize;
        // SAFETY: `run` resolved all rows, and the address is aligned to the value's size, which
        // backing keeps.
        unsafe {
            match self.value_bytes {
                1 => (host as *mut u8).write_bytes(self.value as u8, n_values),
                2 => std::slice::from_raw_parts_mut(host as *mut u16, n_values)
                    .fill(self.value as u16),
                _ => std::slice::from_raw_parts_mut(host as *mut u32, n_values).fill(self.value),
            }
        }
    }
}

/// A fill in a stream's order.
pub(super) fn submit_fill(fill: Fill, stream: &Stream) -> Answer {
    fill.check()?;
    stream.submit(Operation::Fill(fill)).map(|_| ())
}

/// A fill in the order of the legacy stream; it returns at once, as on a real device.
pub(super) fn run_fill(fill: Fill) -> Answer {
    capture::forbid_unsafe_call()?;
    let stream = stream::legacy(&context::current()?)?;
    submit_fill(fill, &stream)
}
