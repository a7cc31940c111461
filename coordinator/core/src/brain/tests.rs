//! The brain among stand-ins: ranks that keep DESIGN section 7's rules, a ledger in memory, a wire that loses, doubles
//! and reorders. Names of invariants are those of that section.

mod calibrations;
mod cluster;
mod courses;
mod crashes;
mod decisions;
mod earlier;
mod ledger;
mod members;
mod memory;
mod rank;
mod regret;
mod truth;
