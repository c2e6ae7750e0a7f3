//! Arithmetic against values worked out apart from it.
