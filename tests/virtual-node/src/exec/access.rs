//! Loads and stores.

/// A load.
#[derive(Debug)]
pub struct Load {}

/// A store.
#[derive(Debug)]
pub struct Store {}

/// An atomic operation.
#[derive(Debug)]
pub struct Atomic {}
