//! What the cross-crate tests share.

pub mod accuracy;
pub mod http;
pub mod plans;
pub mod random;
pub mod serving;

/// The seed of a test's random draws: `SEED`, or a new one. Print it where the test fails.
pub fn seed() -> u64 {
    let fresh = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_nanos() as u64)
    };
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh)
}

/// What tells the virtual node to count and not to compute. It reads this once in a process.
pub const DRY: (&str, &str) = ("VIRTUAL_NODE_MODE", "dry");

/// Whether this process's node only counts.
pub fn is_dry() -> bool {
    std::env::var(DRY.0).is_ok_and(|mode| mode == DRY.1)
}
