//! Programs against libcuda's double, each with a rule that it keeps or breaks.

mod copies;
mod errors;
mod launches;
mod memory;
mod streams;
mod support;
