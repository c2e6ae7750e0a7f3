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
        source: rayon::ThreadPoolBuildError,
    },
    /// The processor lacks the instructions that were asked for.
    #[error("this processor has no {level:?}")]
    NoSimd {
        /// What was asked for.
        level: SimdLevel,
    },
}
