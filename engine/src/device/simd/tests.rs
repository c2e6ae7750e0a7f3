//! Primitives at every level against their definitions.
