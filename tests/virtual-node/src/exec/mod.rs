//! Runs decoded kernels: warps of 32 lanes, blocks over cores, faults by name.
