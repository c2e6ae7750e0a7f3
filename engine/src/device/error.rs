//! What a device can refuse, with the numbers that explain it. Shapes that do not fit are our own
//! mistakes and are asserted, not reported here.

use thiserror::Error;

use super::SimdLevel;

/// A device cannot do what boot or a step asks of it.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The compute threads of a rank could not be started.
    #[error("{n_threads} compute threads could not be started")]
    Threads {
        /// Threads asked for, the rank's own among them.
        n_threads: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The processor lacks the instructions that were asked for.
    #[error("this processor has no {level:?}")]
    NoSimd {
        /// What was asked for.
        level: SimdLevel,
    },
    /// A library that the CUDA arm calls is not there.
    #[error("{library} cannot be opened: {remedy}")]
    MissingLibrary {
        /// Its file.
        library: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The node has fewer devices.
    #[error("there is no CUDA device {ordinal}: this node has {n_devices}")]
    NoDevice {
        /// What was asked for.
        ordinal: usize,
        /// What there is.
        n_devices: usize,
    },
    /// The kernels are compiled for Hopper.
    #[error(
        "CUDA device {ordinal} is a {name} of compute capability {major}.{minor}, but the kernels \
         run on 9.0 alone (H100, H200)"
    )]
    WrongDevice {
        /// Which.
        ordinal: usize,
        /// What it calls itself.
        name: String,
        /// Its capability before the point.
        major: usize,
        /// Behind it.
        minor: usize,
    },
    /// Device memory ran out, although the memory plan came out.
    #[error(
        "CUDA device {device}: {n_bytes} bytes are needed, but {free_bytes} of {total_bytes} are \
         free: does another program use it?"
    )]
    OutOfMemory {
        /// Which device.
        device: usize,
        /// What was asked for.
        n_bytes: usize,
        /// What is left.
        free_bytes: usize,
        /// What it has.
        total_bytes: usize,
    },
    /// The driver refused a call, or reports what an earlier kernel did.
    #[error("{call}: {name} ({code}): {text}")]
    Driver {
        /// The call, or the kernel that was launched.
        call: &'static str,
        /// The driver's code.
        code: u32,
        /// The code's name.
        name: String,
        /// What the driver says about it.
        text: String,
    },
    /// The program carries no such kernel.
    #[error("there is no kernel {name} in family {family}")]
    NoKernel {
        /// The family.
        family: &'static str,
        /// The entry point.
        name: &'static str,
    },
    /// Two devices cannot reach each other's memory.
    #[error("CUDA device {from} cannot reach the memory of device {to}: are they on one NVLink?")]
    NoPeerAccess {
        /// Who would read.
        from: usize,
        /// Whose memory.
        to: usize,
    },
    /// cuBLASLt refused a call.
    #[error("{call}{subject}: {name} ({code})")]
    Blas {
        /// The call.
        call: &'static str,
        /// The product, where the call is about one.
        subject: String,
        /// The library's code.
        code: u32,
        /// The code's name.
        name: String,
    },
    /// A rank's share of a projection has rows that FP8 kernels cannot read.
    #[error(
        "an FP8 projection of {n_inputs} inputs and {n_outputs} outputs on one rank: both must be \
         multiples of {multiple}; use fewer ranks"
    )]
    RowsNotAligned {
        /// Rows of the rank's weights.
        n_outputs: usize,
        /// Their columns.
        n_inputs: usize,
        /// What both must be a multiple of.
        multiple: usize,
    },
}
