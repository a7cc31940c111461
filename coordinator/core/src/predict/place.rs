//! Where a cell lies: its signature taken apart, and its texts as numbers.

use super::measurement::{Cell, MeasuredPhase};
use std::collections::BTreeMap;

/// A signature of the form `type/shape/dtype/b<microbatch>xs<sequence>/tp<N>`, taken apart.
///
/// The parts behind the type may stand in any order and may be missing; only with a `b<microbatch>` is a text of this
/// form. Any other text is a type of its own, of which no sizes are known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts<'a> {
    /// What the layer is.
    pub layer: &'a str,
    /// All that tells layers of one type apart, but for the sizes below: shape, dtype, sequence.
    pub family: String,
    /// Sequences of a microbatch.
    pub microbatch: u64,
    /// Devices that share the layer.
    pub split: u64,
}

impl<'a> Parts<'a> {
    pub fn of(signature: &'a str) -> Self {
        let whole = Parts { layer: signature, family: String::new(), microbatch: 1, split: 1 };
        let Some((layer, rest)) = signature.split_once('/') else {
            return whole;
        };
        let mut parts = Parts { layer, ..whole.clone() };
        let (mut is_sized, mut family) = (false, Vec::new());
        for part in rest.split('/') {
            if let (Some((microbatch, sequence)), false) = (sizes(part), is_sized) {
                parts.microbatch = microbatch;
                is_sized = true;
                family.extend(sequence);
            } else if let Some(split) = part.strip_prefix("tp").and_then(count) {
                parts.split = split;
            } else {
                family.push(part);
            }
        }
        parts.family = family.join("/");
        if is_sized { parts } else { whole }
    }
}

/// `b<microbatch>xs<sequence>`: the microbatch, and `s<sequence>` where it stands there.
fn sizes(part: &str) -> Option<(u64, Option<&str>)> {
    let sizes = part.strip_prefix('b')?;
    match sizes.split_once('x') {
        None => Some((count(sizes)?, None)),
        Some((microbatch, sequence)) => {
            sequence.strip_prefix('s').and_then(count)?;
            Some((count(microbatch)?, Some(sequence)))
        }
    }
}

fn count(text: &str) -> Option<u64> {
    text.parse().ok().filter(|count| (1..=1 << 40).contains(count))
}

/// A text that no measurement has: places of measurements are compared with that of one asked cell, never two such.
const UNKNOWN: u32 = u32::MAX;

/// A cell in the axes of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub kind: u32,
    pub family: u32,
    pub layer: u32,
    pub phase: MeasuredPhase,
    /// Whether the layer looks rows up: it waits for memory, and hardly computes.
    pub is_lookup: bool,
    /// Base 2.
    pub microbatch_log: f64,
    /// Base 2.
    pub split_log: f64,
}

impl Place {
    /// Whether the layer works on a microbatch: its optimizer does not.
    pub fn is_work(&self) -> bool {
        self.phase != MeasuredPhase::Optimizer
    }

    /// Whether both lie on one curve: all but the sizes is equal.
    pub fn shares_curve(&self, other: &Place) -> bool {
        self.family == other.family && self.shares_group(other)
    }

    /// Whether both were run in one setting: all but type and phase is equal.
    pub fn shares_setting(&self, other: &Place) -> bool {
        (self.kind, self.family) == (other.kind, other.family)
            && self.microbatch_log == other.microbatch_log
            && self.split_log == other.split_log
    }

    /// Whether kind, type and phase are equal.
    pub fn shares_group(&self, other: &Place) -> bool {
        (self.kind, self.layer, self.phase) == (other.kind, other.layer, other.phase)
    }
}

/// Numbers for texts, in the order of their first appearance.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    kinds: BTreeMap<String, u32>,
    families: BTreeMap<String, u32>,
    layers: BTreeMap<String, u32>,
}

impl Names {
    /// The place of a measured cell, whose texts become known.
    pub fn learn(&mut self, cell: &Cell) -> Place {
        let parts = Parts::of(&cell.signature);
        let number = |names: &mut BTreeMap<String, u32>, text: &str| {
            let next = u32::try_from(names.len()).expect("fewer names than measurements");
            *names.entry(text.to_owned()).or_insert(next)
        };
        number(&mut self.kinds, &cell.kind);
        number(&mut self.families, &parts.family);
        number(&mut self.layers, parts.layer);
        self.find(cell)
    }

    /// The place of any cell.
    pub fn find(&self, cell: &Cell) -> Place {
        let parts = Parts::of(&cell.signature);
        let number = |names: &BTreeMap<String, u32>, text: &str| names.get(text).copied().unwrap_or(UNKNOWN);
        Place {
            kind: number(&self.kinds, &cell.kind),
            family: number(&self.families, &parts.family),
            layer: number(&self.layers, parts.layer),
            phase: cell.phase,
            is_lookup: parts.layer.to_ascii_lowercase().starts_with("embed"),
            microbatch_log: log2(parts.microbatch),
            split_log: log2(parts.split),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 2^40")]
fn log2(count: u64) -> f64 {
    (count as f64).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_apart() {
        for (signature, layer, family, microbatch, split) in [
            ("attention/4096h32/bf16/b1xs4096/tp2", "attention", "4096h32/bf16/s4096", 1, 2),
            ("block/opt-30/b4/tp2", "block", "opt-30", 4, 2),
            ("block/opt-30/b4", "block", "opt-30", 4, 1),
            ("block/opt-30/b4/tp1", "block", "opt-30", 4, 1),
            ("block/opt-30/tp2/b16", "block", "opt-30", 16, 2),
            ("block/b2/b16", "block", "b16", 2, 1),
            ("OPT-30/block", "OPT-30/block", "", 1, 1),
            ("block/opt-30/b0/tp2", "block/opt-30/b0/tp2", "", 1, 1),
            ("block/opt-30/b4xs/tp2", "block/opt-30/b4xs/tp2", "", 1, 1),
            ("block/opt-30/b4/tp0", "block", "opt-30/tp0", 4, 1),
            ("anything at all", "anything at all", "", 1, 1),
            ("", "", "", 1, 1),
        ] {
            let expected = Parts { layer, family: family.to_owned(), microbatch, split };
            assert_eq!(Parts::of(signature), expected, "{signature:?}");
        }
    }
}
