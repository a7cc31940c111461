//! What a device holds along its program. Memory depends on the order of a device's own program alone, not on times.

use crate::program::{B, F, I, Op, kind, stage};
use crate::shape::Tables;

/// Highest use of a device over its program, in bytes.
pub(crate) fn peak_bytes(tables: &Tables, device: usize, program: &[Op]) -> u64 {
    let base = i128::from(tables.base_bytes[device]);
    let (mut live, mut peak) = (0_i128, 0_i128);
    for &op in program {
        let (during, after) = step(tables, op);
        peak = peak.max(live + i128::from(during));
        live += i128::from(after);
    }
    u64::try_from(base + peak).unwrap_or(u64::MAX)
}

/// Of an instruction: how far use rises during it above what is live before it, and what it leaves more or less.
#[inline]
pub(crate) fn step(tables: &Tables, op: Op) -> (i64, i64) {
    let cost = &tables.cost[stage(op)];
    let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let (stash, gradient) = (bytes(cost.stash_bytes), bytes(cost.gradient_bytes));
    let workspace = bytes(cost.workspace_bytes);
    match kind(op) {
        F => (stash.saturating_add(workspace), stash),
        I => (bytes(cost.rise_bytes).saturating_add(workspace), gradient - stash),
        B => (bytes(cost.rise_bytes).saturating_add(workspace), -stash),
        _ => (workspace, -gradient),
    }
}

/// Every device stays within its memory.
pub(crate) fn fits(tables: &Tables, programs: &[Vec<Op>]) -> bool {
    programs
        .iter()
        .enumerate()
        .all(|(device, program)| peak_bytes(tables, device, program) <= tables.limit_bytes[device])
}

/// Bytes that a device needs at least, whatever the order: one microbatch at a time, each stage's F in turn, then each
/// stage's B.
pub(crate) fn least_bytes(tables: &Tables, device: usize) -> u64 {
    let mut held = u128::from(tables.base_bytes[device]);
    let mut peak = held;
    for &stage in &tables.local[device] {
        let cost = &tables.cost[stage as usize];
        held += u128::from(cost.stash_bytes);
        peak = peak.max(held + u128::from(cost.rise_bytes) + u128::from(cost.workspace_bytes));
    }
    u64::try_from(peak).unwrap_or(u64::MAX)
}

/// Bytes that are short on all devices together, even with one microbatch at a time.
pub(crate) fn shortage_bytes(tables: &Tables) -> u128 {
    let short = |device: usize| least_bytes(tables, device).saturating_sub(tables.limit_bytes[device]);
    (0..tables.devices).map(|device| u128::from(short(device))).sum()
}
