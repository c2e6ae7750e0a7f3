//! A virtual node of eight H100s: answers as `libcuda`, `libcublasLt` and `libnccl`, and executes
//! the PTX of the kernels that it is given on this machine's processor.
//!
//! One library under several names, because all three share streams and memory. It knows nothing
//! of the product: any driver-API program runs on it.

pub mod client;
pub mod config;
#[doc(hidden)]
pub mod cublaslt;
#[doc(hidden)]
pub mod driver;
#[doc(hidden)]
pub mod exec;
#[doc(hidden)]
pub mod handles;
pub mod memory;
#[doc(hidden)]
pub mod nccl;
#[doc(hidden)]
pub mod ptx;
pub mod report;
