//! Distributions of what each layer costs on this device, for displays and the exit summary.
//!
//! The estimate does not use them: it needs the covariates that a histogram loses, and gets the records themselves.

use adaptis_proto::LayerIndex;
use adaptis_proto::sample::{Mark, Phase, Sample};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Two digits from a microsecond to a minute: 10 KiB each.
const LOW_NS: u64 = 1_000;
const HIGH_NS: u64 = 60_000_000_000;
const DIGITS: u8 = 2;
/// Pairs of layer and phase; further ones are counted and not sketched.
const SKETCHES_MAX: usize = 1024;

/// Distribution of one phase of one layer, warm work only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Which layer.
    pub layer: LayerIndex,
    /// Which phase.
    pub phase: Phase,
    /// Samples.
    pub count: u64,
    /// Median, within 1%.
    pub ns_p50: u64,
    /// 99th percentile, within 1%.
    pub ns_p99: u64,
    /// Largest, within 1%.
    pub ns_max: u64,
}

/// One histogram per layer and phase, and one per phase over all layers.
#[derive(Clone, Debug)]
pub struct Sketches {
    layers: BTreeMap<(LayerIndex, Phase), Histogram<u32>>,
    phases: [Histogram<u32>; Phase::ALL.len()],
    unsketched: u64,
}

fn empty() -> Histogram<u32> {
    Histogram::new_with_bounds(LOW_NS, HIGH_NS, DIGITS).expect("the bounds are a factor of two apart, digits below 6")
}

impl Default for Sketches {
    fn default() -> Self {
        Self { layers: BTreeMap::new(), phases: std::array::from_fn(|_| empty()), unsketched: 0 }
    }
}

impl Sketches {
    /// Takes warm work in; everything else is no distribution's matter.
    pub fn learn(&mut self, sample: &Sample) {
        let Sample::Work { layer, phase, mark: Mark::Warm, duration_ns, .. } = *sample else { return };
        self.phases[phase as usize].saturating_record(duration_ns);
        let has_room = self.layers.len() < SKETCHES_MAX;
        match self.layers.get_mut(&(layer, phase)) {
            Some(sketch) => sketch.saturating_record(duration_ns),
            None if has_room => {
                self.layers.entry((layer, phase)).or_insert_with(empty).saturating_record(duration_ns);
            }
            None => self.unsketched += 1,
        }
    }

    /// Samples of more layers than are sketched.
    pub fn unsketched(&self) -> u64 {
        self.unsketched
    }

    /// Per layer and phase, in order.
    pub fn layers(&self) -> impl Iterator<Item = LayerSummary> + '_ {
        self.layers.iter().map(|(&(layer, phase), sketch)| LayerSummary {
            layer,
            phase,
            count: sketch.len(),
            ns_p50: sketch.value_at_quantile(0.5),
            ns_p99: sketch.value_at_quantile(0.99),
            ns_max: sketch.max(),
        })
    }

    /// Per phase over all layers, as readings: `forward_ns_p50`, `forward_ns_p99` and so on; none for a phase not seen.
    pub fn readings(&self) -> Vec<(String, f64)> {
        let mut readings = Vec::new();
        for phase in Phase::ALL {
            let sketch = &self.phases[phase as usize];
            if !sketch.is_empty() {
                let name = name(phase);
                readings.push((format!("{name}_ns_p50"), sketch.value_at_quantile(0.5) as f64));
                readings.push((format!("{name}_ns_p99"), sketch.value_at_quantile(0.99) as f64));
            }
        }
        readings
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Forward => "forward",
        Phase::InputGradient => "input_gradient",
        Phase::WeightGradient => "weight_gradient",
        Phase::Recompute => "recompute",
        Phase::Optimizer => "optimizer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::Microbatch;
    use adaptis_proto::sample::Place;

    fn work(layer: u32, mark: Mark, duration_ns: u64) -> Sample {
        let (layer, microbatch, phase) = (LayerIndex(layer), Microbatch(0), Phase::Forward);
        Sample::Work { place: Place::default(), layer, microbatch, phase, mark, start_ns: 0, duration_ns }
    }

    #[test]
    fn a_summary_is_within_a_percent_and_leaves_cold_work_out() {
        let mut sketches = Sketches::default();
        for duration in 1..=1_000 {
            sketches.learn(&work(3, Mark::Warm, duration * 10_000));
            sketches.learn(&work(3, Mark::Cold, 1 << 40));
        }
        let summary: Vec<_> = sketches.layers().collect();
        assert_eq!(summary.len(), 1);
        assert_eq!((summary[0].layer, summary[0].phase, summary[0].count), (LayerIndex(3), Phase::Forward, 1_000));
        for (found, expected) in
            [(summary[0].ns_p50, 5_000_000), (summary[0].ns_p99, 9_900_000), (summary[0].ns_max, 10_000_000)]
        {
            assert!(found.abs_diff(expected) * 100 <= expected, "{found} {expected}");
        }
        let names: Vec<_> = sketches.readings().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["forward_ns_p50", "forward_ns_p99"]);
    }

    #[test]
    fn values_out_of_range_and_layers_without_number_are_bounded() {
        let mut sketches = Sketches::default();
        for layer in 0..SKETCHES_MAX as u32 + 5 {
            sketches.learn(&work(layer, Mark::Warm, u64::from(layer % 2) * u64::MAX));
        }
        assert_eq!(sketches.layers().count(), SKETCHES_MAX);
        assert_eq!(sketches.unsketched(), 5);
    }
}
