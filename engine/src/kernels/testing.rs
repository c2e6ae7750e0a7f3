//! What the families' tests share: seeded numbers, oracles' helpers, threads.
