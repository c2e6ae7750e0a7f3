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
