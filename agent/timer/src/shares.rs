//! Works that only one interval is known of: a layer's whole backward, an optimizer's step over all layers. Each is taken
//! for its share.

use adaptis_proto::LayerIndex;
use adaptis_proto::sample::Phase;
use std::ops::Range;

/// Parts of all intervals that are shared.
const PARTS_MAX: usize = 1 << 20;

/// One work in an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which layer.
    pub layer: LayerIndex,
    /// Which phase.
    pub phase: Phase,
    /// How much of the interval, beside the others' weights.
    pub weight: u64,
}

/// Some works that share intervals, as [`crate::Timer::share`] named them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares(u32);

impl Shares {
    /// The number that they go by.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// All that were named.
#[derive(Debug, Default)]
pub(crate) struct Book {
    parts: Vec<Share>,
    ranges: Vec<Range<usize>>,
}

impl Book {
    /// None if there is nothing to share, or no room.
    pub fn add(&mut self, parts: &[Share]) -> Option<Shares> {
        if parts.is_empty() || self.parts.len() + parts.len() > PARTS_MAX {
            return None;
        }
        let first = self.parts.len();
        self.parts.extend_from_slice(parts);
        self.ranges.push(first..self.parts.len());
        Some(Shares(self.ranges.len() as u32 - 1))
    }

    /// By its number.
    pub fn named(&self, number: u32) -> Option<Shares> {
        ((number as usize) < self.ranges.len()).then_some(Shares(number))
    }

    /// At least one.
    pub fn of(&self, shares: Shares) -> &[Share] {
        &self.parts[self.ranges[shares.0 as usize].clone()]
    }

    /// Each part with its start within the interval and its length; together they are the interval.
    pub fn cut(&self, shares: Shares, duration_ns: u64) -> impl Iterator<Item = (Share, u64, u64)> + '_ {
        let parts = self.of(shares);
        let total: u128 = parts.iter().map(|part| u128::from(part.weight)).sum();
        let at = move |weight: u128| match total {
            0 => 0,
            _ => (u128::from(duration_ns) * weight / total) as u64,
        };
        parts.iter().scan(0, move |before, part| {
            let from_ns = at(*before);
            *before += u128::from(part.weight);
            Some((*part, from_ns, at(*before) - from_ns))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(layer: u32, weight: u64) -> Share {
        Share { layer: LayerIndex(layer), phase: Phase::Optimizer, weight }
    }

    #[test]
    fn the_parts_are_the_whole() {
        let mut book = Book::default();
        assert_eq!(book.add(&[]), None);
        let thirds = book.add(&[share(0, 1), share(1, 1), share(2, 1)]).expect("there is room");
        let uneven = book.add(&[share(3, 0), share(4, u64::MAX), share(5, u64::MAX)]).expect("there is room");
        let nothing = book.add(&[share(6, 0)]).expect("there is room");
        let cut = |shares| book.cut(shares, 1_000).map(|(part, from, ns)| (part.layer.0, from, ns)).collect::<Vec<_>>();
        assert_eq!(cut(thirds), [(0, 0, 333), (1, 333, 333), (2, 666, 334)]);
        assert_eq!(cut(uneven), [(3, 0, 0), (4, 0, 500), (5, 500, 500)]);
        assert_eq!(cut(nothing), [(6, 0, 0)]);
        assert_eq!((book.named(uneven.number()), book.named(3)), (Some(uneven), None));
    }
}
