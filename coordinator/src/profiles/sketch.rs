//! How long something took, many times over: a histogram that merges exactly.
//!
//! 1. Three significant digits at any length, so that a quantile is within 0.05% of a value that was recorded; the range
//!    grows with what comes, and nothing saturates below ten years.
//! 2. Merging adds counts bin by bin: in whatever order and grouping sketches are merged, the result is the same.
//! 3. On disk it is the V2 encoding of HdrHistogram, which other tools read: 130 bytes for 64 samples.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

/// Significant digits.
const DIGITS: u8 = 3;
/// Ten years; longer times are no measurements, and count as this.
const LONGEST_NS: u64 = 10 * 365 * 86_400 * 1_000_000_000;
/// Standard deviations from the middle of a normal distribution to the ends of the central 90%.
const CENTRAL_90_SD: f64 = 1.645;

/// A distribution of times.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch(Histogram<u64>);

/// Bytes that are no sketch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a histogram: {why}")]
pub struct Unreadable {
    why: String,
}

impl Unreadable {
    /// A sketch that holds another number of samples than were stored.
    pub(crate) fn count(found: u64, stored: u64) -> Self {
        Self { why: format!("it holds {found} samples, and {stored} were stored") }
    }
}

impl Default for Sketch {
    fn default() -> Self {
        Self::new()
    }
}

impl Sketch {
    /// Without any samples.
    pub fn new() -> Self {
        Self(Histogram::new(DIGITS).expect("three digits are as many as hdrhistogram takes"))
    }

    /// Takes a time.
    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// Takes a time that occurred so many times.
    pub fn record_n(&mut self, ns: u64, count: u64) {
        let fits = self.0.record_n(ns.min(LONGEST_NS), count);
        fits.expect("the range grows by itself as far as the longest time");
    }

    /// Samples in it.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Adds another one's samples.
    pub fn add(&mut self, other: &Sketch) {
        other.bins().for_each(|(ns, count)| self.record_n(ns, count));
    }

    /// The time that this share of the samples does not exceed; 0 without samples.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        self.0.median_equivalent(self.0.value_at_quantile(share))
    }

    /// Half of the samples are not above it; 0 without samples.
    pub fn median_ns(&self) -> u64 {
        self.quantile_ns(0.5)
    }

    /// Between which the median of all that could have been measured lies, at 90%: by order statistics, without any
    /// assumption on the distribution. One sample says nothing of it: then both are that sample.
    pub fn median_interval_ns(&self) -> (u64, u64) {
        let half_width = CENTRAL_90_SD / 2.0 / (self.count().max(1) as f64).sqrt();
        (self.quantile_ns((0.5 - half_width).max(0.0)), self.quantile_ns((0.5 + half_width).min(1.0)))
    }

    /// Standard deviation of the logarithm of a sample, by the distance of the quartiles; none below four samples.
    pub fn ln_spread(&self) -> Option<f64> {
        /// Distance of the quartiles of a normal distribution in standard deviations.
        const QUARTILES_SD: f64 = 1.349;
        let ln = |share: f64| (self.quantile_ns(share).max(1) as f64).ln();
        (self.count() >= 4).then(|| (ln(0.75) - ln(0.25)) / QUARTILES_SD)
    }

    /// Middle of each bin that holds samples, and how many; recording these again gives the same sketch.
    pub fn bins(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter_recorded().map(|bin| (self.0.median_equivalent(bin.value_iterated_to()), bin.count_at_value()))
    }

    /// As bytes.
    pub fn pack(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).expect("a vector takes all bytes");
        bytes
    }

    /// From bytes; of a histogram of other digits or range each bin counts as its middle.
    ///
    /// # Errors
    /// They are not what [`Sketch::pack`] or another encoder of V2 writes.
    pub fn unpack(bytes: &[u8]) -> Result<Sketch, Unreadable> {
        let read: Result<Histogram<u64>, _> = Deserializer::new().deserialize(&mut &bytes[..]);
        let mut histogram = read.map_err(|error| Unreadable { why: error.to_string() })?;
        if histogram.sigfig() == DIGITS && histogram.low() == 1 {
            histogram.auto(true);
            return Ok(Sketch(histogram));
        }
        let mut sketch = Sketch::new();
        for bin in histogram.iter_recorded() {
            sketch.record_n(histogram.median_equivalent(bin.value_iterated_to()), bin.count_at_value());
        }
        Ok(sketch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(times: &[u64]) -> Sketch {
        let mut sketch = Sketch::new();
        times.iter().for_each(|&ns| sketch.record(ns));
        sketch
    }

    fn merged(sketches: &[&Sketch]) -> Sketch {
        let mut all = Sketch::new();
        sketches.iter().for_each(|sketch| all.add(sketch));
        all
    }

    #[test]
    fn short_and_long_times_keep_three_digits() {
        for ns in [0, 1, 7, 999, 12_345, 88_600_000, 60_000_000_001, 3_600_000_000_000] {
            let told = of(&[ns]).median_ns();
            assert!(told.abs_diff(ns) as f64 <= 0.0005 * ns as f64 + 0.5, "{ns} is told as {told}");
        }
        assert_eq!(of(&[u64::MAX]).count(), 1);
        assert_eq!((Sketch::new().median_ns(), Sketch::new().ln_spread()), (0, None));
    }

    #[test]
    fn what_is_no_histogram_is_refused() {
        for bytes in [&b""[..], b"no histogram at all", &of(&[1, 2, 3]).pack()[..20]] {
            assert!(Sketch::unpack(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn coarser_histograms_are_read_bin_by_bin() {
        let mut coarse = Histogram::<u64>::new_with_bounds(1_000, 60_000_000_000, 2).unwrap();
        (0..100).for_each(|at| coarse.saturating_record(1_000_000 + 10_000 * at));
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&coarse, &mut bytes).unwrap();
        let sketch = Sketch::unpack(&bytes).unwrap();
        assert_eq!(sketch.count(), 100);
        // The lower of the two in the middle, within half of a bin.
        assert!((sketch.median_ns() as f64 / 1_490_000.0 - 1.0).abs() < 0.003, "{}", sketch.median_ns());
    }

    #[test]
    fn the_interval_of_a_median_covers_it_nine_times_in_ten() {
        // Times around 1 ms by a generator of its own; the median of what it draws is 1 ms.
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            900_000 + (state >> 33) % 200_001
        };
        let covers = (0..1_000).filter(|_| {
            let (low, high) = of(&std::array::from_fn::<u64, 40, _>(|_| draw())).median_interval_ns();
            (low..=high).contains(&1_000_000)
        });
        let covered = covers.count();
        assert!((860..=950).contains(&covered), "{covered} of 1,000");
    }

    proptest! {
        #[test]
        fn merging_is_exact_in_any_order(
            a in prop::collection::vec(0_u64..1 << 45, 0..40),
            b in prop::collection::vec(0_u64..1 << 20, 0..40),
            c in prop::collection::vec(any::<u64>(), 0..40),
        ) {
            let all = of(&[&a[..], &b, &c].concat());
            let (a, b, c) = (of(&a), of(&b), of(&c));
            prop_assert_eq!(&merged(&[&a, &merged(&[&b, &c])]), &all);
            prop_assert_eq!(&merged(&[&merged(&[&c, &a]), &b]), &all);
            let read = Sketch::unpack(&all.pack()).unwrap();
            prop_assert_eq!(&merged(&[&read]), &all);
            prop_assert_eq!(read.bins().collect::<Vec<_>>(), all.bins().collect::<Vec<_>>());
        }
    }
}
