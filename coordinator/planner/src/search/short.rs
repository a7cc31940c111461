//! What memory lacks, in bytes and words.

use crate::memory;
use crate::shape::Tables;
use adaptis_plan::Problem;

/// Devices named in a message.
const NAMED_MAX: usize = 8;

/// A device that lacks memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// Which one.
    pub device: String,
    /// What it needs.
    pub needed_bytes: u64,
    /// What it has.
    pub available_bytes: u64,
    /// The difference.
    pub short_bytes: u64,
    /// It holds no layer: what it reserves is more than it has.
    pub is_idle: bool,
}

/// The devices that lack memory, the one that lacks most first.
pub(super) fn of(problem: &Problem, tables: &Tables) -> Vec<Short> {
    let mut all: Vec<Short> = (0..tables.devices)
        .filter_map(|device| {
            let (needed_bytes, available_bytes) = (memory::least_bytes(tables, device), tables.limit_bytes[device]);
            let short_bytes = needed_bytes.checked_sub(available_bytes).filter(|&short| short > 0)?;
            let is_idle = tables.local[device].is_empty();
            Some(Short {
                device: problem.devices[device].name.clone(),
                needed_bytes,
                available_bytes,
                short_bytes,
                is_idle,
            })
        })
        .collect();
    all.sort_by_key(|short| std::cmp::Reverse(short.short_bytes));
    all
}

/// Says it.
pub(super) fn text(short: &[Short], is_proved: bool) -> String {
    let rest = |count: usize| if count > 0 { format!(" and {count} more devices") } else { String::new() };
    let (idle, busy): (Vec<&Short>, Vec<&Short>) = short.iter().partition(|short| short.is_idle);
    if let Some(first) = idle.first() {
        let rest = rest(idle.len() - 1);
        return format!(
            "device {}{rest} reserves {} bytes and has {}, before it holds any layer: lower its reserved_bytes, or give it \
             {} more bytes",
            first.device, first.needed_bytes, first.available_bytes, first.short_bytes
        );
    }
    let list = |of: &dyn Fn(&Short) -> String| {
        let named: Vec<String> = busy.iter().take(NAMED_MAX).map(|short| of(short)).collect();
        named.join(", ") + &rest(busy.len().saturating_sub(NAMED_MAX))
    };
    let lead = if is_proved { "no plan fits" } else { "no plan was found that fits" };
    let needs = list(&|short| {
        format!("device {} needs {} bytes and has {}", short.device, short.needed_bytes, short.available_bytes)
    });
    let lacks = list(&|short| format!("{} more bytes on {}", short.short_bytes, short.device));
    format!(
        "{lead}: with every layer recomputed and one microbatch in flight, {needs}; {lacks} would make it fit, a smaller \
         microbatch or more devices may"
    )
}
