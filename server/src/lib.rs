//! HTTP in, tokens out: the only async crate, and the only one that knows HTTP and JSON.
