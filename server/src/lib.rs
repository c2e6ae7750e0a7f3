//! HTTP in, tokens out: the only async crate, and the only one that knows HTTP and JSON.

pub mod bench;
pub mod boot;
pub mod cli;
pub mod config;
pub mod demo;
pub mod guide;
pub mod http;
pub mod log;
pub mod metrics;
mod progress;
pub mod text;
mod total;
pub mod traces;
