//! The `adaptis` command.
fn main() {}
