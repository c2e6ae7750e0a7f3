//! The `lnserve` program.

fn main() {}
