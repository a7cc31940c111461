//! Memory as measured against the plan: what a device's peak has beyond what the estimate says of the plan in force.
//!
//! 1. What is missing is reserved from then on, so that a plan that is made later fits as it runs and not as it was added up.
//! 2. Nothing is ever reserved less for it than the card and the device's own samples say.
//! 3. A plan that runs within its device's memory fits it: no shortfall of another plan makes it look otherwise.
//! 4. One iteration that needed more (a checkpoint, a switch) raises nothing: two must have.

use adaptis_proto::Epoch;
use std::collections::VecDeque;

/// Plans whose shortfalls are remembered; the oldest goes.
const PLANS: usize = 4;
/// Iterations whose peaks are kept of a plan; the oldest goes.
const ITERATIONS: usize = 8;
/// Highest peaks that are left out.
const ODD: usize = 1;

#[derive(Clone, Debug)]
struct OfPlan {
    epoch: Epoch,
    peaks: VecDeque<u64>,
    /// Of its peak over the estimate's, without what was reserved for it.
    shortfall_bytes: u64,
}

impl OfPlan {
    /// What at least two of its iterations needed; none before two were seen.
    fn peak_bytes(&self) -> Option<u64> {
        let mut peaks: Vec<u64> = self.peaks.iter().copied().collect();
        peaks.sort_unstable_by(|a, b| b.cmp(a));
        peaks.get(ODD).copied()
    }
}

/// What one device's memory came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Peaks {
    plans: VecDeque<OfPlan>,
    reserved_bytes: u64,
}

impl Peaks {
    /// Takes the peak of an iteration; one of a plan before the latest comes too late.
    pub fn absorb(&mut self, epoch: Epoch, peak_bytes: u64) {
        if self.plans.back().is_some_and(|latest| epoch < latest.epoch) {
            return;
        }
        if self.plans.back().is_none_or(|latest| epoch > latest.epoch) {
            if self.plans.len() == PLANS {
                self.plans.pop_front();
            }
            self.plans.push_back(OfPlan { epoch, peaks: VecDeque::new(), shortfall_bytes: 0 });
        }
        let latest = self.plans.back_mut().expect("one is there or was put there");
        if latest.peaks.len() == ITERATIONS {
            latest.peaks.pop_front();
        }
        latest.peaks.push_back(peak_bytes);
    }

    /// What was predicted of a plan, when nobody fits it any more.
    pub fn recall(&mut self, epoch: Epoch, predicted_bytes: u64) {
        let Some(plan) = self.plans.iter_mut().find(|plan| plan.epoch == epoch) else { return };
        let short_bytes = plan.peak_bytes().map_or(0, |peak| peak.saturating_sub(predicted_bytes));
        plan.shortfall_bytes = plan.shortfall_bytes.max(short_bytes);
    }

    /// To be reserved beside what is known to be.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    /// Holds a plan's peaks against the estimate's, which has nothing reserved for them. Its device has `memory_bytes`.
    pub fn compare(&mut self, epoch: Epoch, estimated_bytes: u64, memory_bytes: u64) {
        let Some(latest) = self.plans.back_mut().filter(|latest| latest.epoch == epoch) else { return };
        let Some(peak_bytes) = latest.peak_bytes() else { return };
        latest.shortfall_bytes = peak_bytes.saturating_sub(estimated_bytes);
        let own_bytes = latest.shortfall_bytes;
        let most_bytes = self.plans.iter().map(|plan| plan.shortfall_bytes).max().unwrap_or(0);
        let fits_bytes = most_bytes.min(memory_bytes.saturating_sub(estimated_bytes));
        self.reserved_bytes = fits_bytes.max(own_bytes).min(memory_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peaks of some iterations under a plan of which the estimate says 100, on a device with 150; what is reserved.
    fn reserved(of: &mut Peaks, epoch: u64, peaks: &[u64]) -> u64 {
        peaks.iter().for_each(|&peak| of.absorb(Epoch(epoch), peak));
        of.compare(Epoch(epoch), 100, 150);
        of.reserved_bytes()
    }

    #[test]
    fn what_two_iterations_needed_beyond_the_estimate_is_reserved() {
        let table: [(&str, &[u64], u64); 6] = [
            ("one iteration proves nothing", &[130], 0),
            ("two do", &[130, 130], 30),
            ("the lower of them", &[130, 120], 20),
            ("one that stands out is left out", &[100, 110, 149, 110], 10),
            ("less than was predicted gives nothing back", &[90, 90, 80], 0),
            ("old ones are forgotten", &[140, 140, 105, 105, 105, 105, 105, 105, 105, 105], 5),
        ];
        for (what, peaks, expected) in table {
            assert_eq!(reserved(&mut Peaks::default(), 1, peaks), expected, "{what}");
        }
    }

    #[test]
    fn another_plan_keeps_what_one_before_it_taught_as_far_as_it_fits() {
        let mut of = Peaks::default();
        assert_eq!(reserved(&mut of, 1, &[130; 3]), 30);
        assert_eq!(reserved(&mut of, 2, &[110; 3]), 30, "kept");
        of.absorb(Epoch(1), 149);
        of.absorb(Epoch(1), 149);
        assert_eq!(reserved(&mut of, 2, &[]), 30, "what came late of another plan is left out");
        // 135 of 150 run: the rest is all that another plan's shortfall can claim.
        of.absorb(Epoch(3), 137);
        of.absorb(Epoch(3), 137);
        of.compare(Epoch(3), 135, 150);
        assert_eq!(of.reserved_bytes(), 15);
        for epoch in 4..8 {
            reserved(&mut of, epoch, &[103, 103]);
        }
        assert_eq!(of.reserved_bytes(), 3, "four plans on, the first ones are forgotten");
    }

    #[test]
    fn after_a_restart_earlier_plans_count_as_they_did() {
        let (mut of, mut again) = (Peaks::default(), Peaks::default());
        for peaks in [&mut of, &mut again] {
            [130; 3].into_iter().for_each(|peak| peaks.absorb(Epoch(1), peak));
        }
        of.compare(Epoch(1), 100, 150);
        again.recall(Epoch(1), 100);
        again.recall(Epoch(9), 1);
        for peaks in [&mut of, &mut again] {
            assert_eq!(reserved(peaks, 2, &[101; 2]), 30);
        }
    }

    #[test]
    fn a_peak_beyond_the_device_is_believed() {
        assert_eq!(reserved(&mut Peaks::default(), 1, &[170; 2]), 70);
        assert_eq!(reserved(&mut Peaks::default(), 1, &[u64::MAX; 2]), 150, "and all there is is reserved at most");
    }
}
