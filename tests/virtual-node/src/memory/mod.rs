//! Memory of eight devices: address ranges of their own, allocations, who may reach what.
