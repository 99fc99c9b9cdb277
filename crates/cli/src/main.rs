//! The `pgmahout` binary.
fn main() {}
