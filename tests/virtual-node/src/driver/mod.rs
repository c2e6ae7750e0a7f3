//! libcuda: contexts, streams, memory, modules, launches and graphs.

pub mod status;
