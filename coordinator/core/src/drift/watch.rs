//! One device or link: a two-sided CUSUM (Page 1954) of its readings around a learned baseline.
//!
//! Everyday picture: two buckets, one for "slower", one for "faster". Each iteration pours in how far the reading is off
//! in that direction less an allowance, and what leaks below empty is gone. A bucket that fills up is a change, if the
//! iterations that filled it agree. With an allowance of 1.25 and a bucket of 4 standard deviations the mean time
//! between false alarms of both sides is about 60,000 iterations for normal readings (Siegmund's approximation), and a
//! step of 4 standard deviations fills it in two or three.

use super::ramp;
use super::{Course, Limits, Reading};
use crate::estimate::robust;
use adaptis_proto::Step;
use std::collections::VecDeque;

/// Allowance, in standard deviations of a reading.
const ALLOWANCE_SD: f64 = 1.25;
/// Medians of few works have heavy tails: one work raises the threshold by this share, n works by its n-th part.
const FEW_WORKS: f64 = 1.0;
/// The same as shares of the least change that is told.
const ALLOWANCE_SHARE: f64 = 0.4;
const THRESHOLD_SHARE: f64 = 0.6;
/// One reading fills at most this share of the threshold.
const ONE_READING_SHARE: f64 = 0.6;
/// A bucket filled to this share of the threshold may be a change under way: its readings teach nothing.
const SUSPECT_SHARE: f64 = 0.5;
/// Iterations that must show a change.
const CONFIRMING: usize = 2;
/// Readings kept to tell the onset by; the oldest goes.
const RECENT: usize = 96;
/// Quiet deviations kept to tell the noise by; the oldest goes.
const QUIET: usize = 64;
/// Share of the quiet deviations that are below the one that the noise is told by.
const NOISE_QUANTILE: f64 = 0.85;
/// The same quantile of the absolute value of a standard normal variable.
const NORMAL_QUANTILE: f64 = 1.4395;
/// Quiet readings that the expected noise is worth.
const NOISE_PRIOR: f64 = 12.0;
/// What readings may vary by beyond the noise of their works, before they have shown it: an iteration may be slow or fast as
/// a whole.
const ITERATION_SD: f64 = 0.03;
/// No reading is taken to be better than this.
const NOISE_SD_MIN: f64 = 0.004;
/// A fresh reference is not taken to be better than this.
const REFERENCE_SD_MIN: f64 = 0.01;

/// A confirmed shift.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Confirmed {
    pub onset: Step,
    /// Log factor against the level before.
    pub shift: f64,
    /// Iterations since the onset that show at least half of it.
    pub showing: u32,
    pub course: Course,
    /// The level before was a guess that no reading had borne out.
    pub is_correction: bool,
}

#[derive(Clone, Copy, Debug)]
struct Recent {
    step: Step,
    ln: f64,
}

/// One device's or link's state.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// Sum of the readings that the baseline is made of, and their number: together with a prior around 0.
    sum: f64,
    count: f64,
    /// Where the level was when the baseline began: 0, or what the last change led to.
    centre: f64,
    reference_ln_sd: f64,
    noise_sd: f64,
    slower: f64,
    faster: f64,
    /// What a bucket holds when a change may be under way.
    suspect: f64,
    /// The last reading was of works that were guessed.
    is_guess: bool,
    /// The level of such works was not seen yet.
    is_unseen: bool,
    quiet: VecDeque<f64>,
    recent: VecDeque<Recent>,
}

impl Watch {
    pub fn new(reference_ln_sd: f64) -> Self {
        Self {
            sum: 0.0,
            count: 0.0,
            centre: 0.0,
            reference_ln_sd: reference_ln_sd.max(REFERENCE_SD_MIN),
            noise_sd: NOISE_SD_MIN,
            slower: 0.0,
            faster: 0.0,
            suspect: f64::INFINITY,
            is_guess: false,
            is_unseen: false,
            quiet: VecDeque::new(),
            recent: VecDeque::new(),
        }
    }

    /// Standard deviation of a reading.
    pub fn noise_sd(&self) -> f64 {
        self.noise_sd
    }

    /// A change may be under way.
    pub fn is_suspect(&self) -> bool {
        self.slower.max(self.faster) > self.suspect
    }

    /// It may be about to be told slower.
    pub fn is_slower(&self) -> bool {
        self.slower > self.suspect
    }

    /// The level against which a reading is a change.
    pub fn baseline(&self) -> f64 {
        let prior = self.prior();
        (self.centre * prior + self.sum) / (prior + self.count).max(f64::MIN_POSITIVE)
    }

    /// Readings that the prior around the centre is worth: as many as its variance is smaller than theirs.
    fn prior(&self) -> f64 {
        (self.noise_sd / self.reference_ln_sd).powi(2)
    }

    /// Begins a new baseline around 0, for a new reference.
    pub fn restart(&mut self) {
        self.centre = 0.0;
        self.clear();
        self.reference_ln_sd = REFERENCE_SD_MIN;
        (self.is_guess, self.is_unseen) = (false, false);
    }

    fn clear(&mut self) {
        (self.sum, self.count, self.slower, self.faster) = (0.0, 0.0, 0.0, 0.0);
        self.recent.clear();
    }

    pub fn observe(&mut self, step: Step, reading: &Reading, common: f64, limits: &Limits) -> Option<Confirmed> {
        let ln = reading.ln_ratio - common;
        if reading.is_guess && !self.is_guess {
            // Other works than before: what is known of the level says nothing of them.
            self.restart();
            self.is_unseen = true;
        }
        self.is_guess = reading.is_guess;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { step, ln });
        if reading.cold {
            return None;
        }
        self.noise_sd = self.noise(reading);
        if self.count == 0.0 {
            self.reference_ln_sd = self.reference_ln_sd.max(reading.reference_ln_sd);
        }
        let off = ln - self.baseline();
        // Neither a baseline of few readings nor an uncertain reference is a change of the device.
        let unsure = (reading.reference_ln_sd.powi(2) - self.reference_ln_sd.powi(2)).max(0.0);
        let sd = (self.noise_sd.powi(2) * (1.0 + (self.prior() + self.count).recip()) + unsure).sqrt();
        let tail = 1.0 + FEW_WORKS / f64::from(reading.works);
        let threshold = (limits.threshold_sd * tail * sd).max(THRESHOLD_SHARE * limits.enter_ln);
        let allowance = (ALLOWANCE_SD * sd).max(ALLOWANCE_SHARE * limits.leave_ln);
        self.suspect = SUSPECT_SHARE * threshold;
        let most = ONE_READING_SHARE * threshold;
        self.slower = (self.slower + (off - allowance).min(most)).clamp(0.0, 2.0 * threshold);
        self.faster = (self.faster + (-off - allowance).min(most)).clamp(0.0, 2.0 * threshold);
        for sign in [1.0, -1.0] {
            let filled = if sign > 0.0 { self.slower } else { self.faster };
            if filled > threshold
                && sign * off > allowance
                && let Some(confirmed) = self.confirm(sign, limits)
            {
                self.moved(confirmed.shift);
                return Some(confirmed);
            }
        }
        self.learn(ln, off, limits);
        None
    }

    /// Standard deviation of a reading: what its works should give, corrected by what quiet readings did give.
    fn noise(&self, reading: &Reading) -> f64 {
        let works = robust::LOCATION_SD * reading.spread / f64::from(reading.works).sqrt();
        let expected = works.hypot(ITERATION_SD);
        let mut quiet: Vec<f64> = self.quiet.iter().map(|off| off.abs()).collect();
        // Less what a few devices share, deviations have a spike in the middle: the median one tells too little.
        let at = (quiet.len() as f64 * NOISE_QUANTILE) as usize;
        let seen = if quiet.is_empty() { 0.0 } else { *quiet.select_nth_unstable_by(at, f64::total_cmp).1 };
        let count = quiet.len() as f64;
        let variance =
            (NOISE_PRIOR * expected.powi(2) + count * (seen / NORMAL_QUANTILE).powi(2)) / (NOISE_PRIOR + count);
        variance.sqrt().max(NOISE_SD_MIN)
    }

    /// The onset and size of a shift, if the iterations since agree on it.
    fn confirm(&self, sign: f64, limits: &Limits) -> Option<Confirmed> {
        let baseline = self.baseline();
        let back_to_reference = baseline * sign < 0.0 && baseline.abs() > limits.leave_ln;
        let least = if back_to_reference { limits.leave_ln } else { limits.enter_ln };
        let off: Vec<f64> = self.recent.iter().map(|recent| sign * (recent.ln - baseline)).collect();
        // The latest readings show the size well enough to split at half of it; the split that explains most is the
        // onset. One reading counts for at most twice the size, as in the buckets.
        let size = robust::lower_median(&mut off[off.len().saturating_sub(CONFIRMING)..].to_vec())?;
        if size < least / 2.0 {
            return None;
        }
        let (mut sum, mut best, mut onset) = (0.0, f64::NEG_INFINITY, off.len() - 1);
        for at in (0..off.len()).rev() {
            sum += (off[at] - size / 2.0).clamp(-size, size);
            if sum > best {
                (best, onset) = (sum, at);
            }
        }
        let mut since = off[onset..].to_vec();
        let showing = since.iter().filter(|off| **off > least / 2.0).count();
        let (least_sure, middle) = (robust::lower_median(&mut since)?, robust::median(&mut since)?);
        // Two readings that agree are averaged; of two that don't, the smaller one may be all there is to it.
        let shift = if least_sure > middle / 2.0 { middle } else { least_sure };
        if showing < CONFIRMING || least_sure < least {
            return None;
        }
        let showing = since.iter().filter(|off| **off > shift / 2.0).count() as u32;
        let is_correction = self.is_unseen;
        let step = Confirmed {
            onset: self.recent[onset].step,
            shift: sign * shift,
            showing,
            course: Course::Step,
            is_correction,
        };
        let gradual = ramp::find(&off, onset, shift, self.noise_sd).filter(|_| !is_correction);
        Some(gradual.map_or(step, |ramp| {
            let per_iteration = (sign * ramp.slope).exp();
            let (from, total) = (self.recent[ramp.from].step, (sign * ramp.reached).exp());
            Confirmed {
                // Where it has got to, the last readings say.
                onset: self.recent[off.len().saturating_sub(ramp::LATEST)].step,
                shift: sign * ramp.reached,
                showing: u32::MAX,
                course: Course::Gradual { from, per_iteration, total },
                is_correction,
            }
        }))
    }

    /// The level after a change is the new baseline, learned from here on.
    pub fn moved(&mut self, shift: f64) {
        self.centre = self.baseline() + shift;
        self.clear();
        self.is_unseen = false;
        // A median of few readings.
        self.reference_ln_sd = self.noise_sd.max(REFERENCE_SD_MIN);
    }

    fn learn(&mut self, ln: f64, off: f64, limits: &Limits) {
        if self.is_suspect() {
            return;
        }
        self.is_unseen = false;
        if self.quiet.len() == QUIET {
            self.quiet.pop_front();
        }
        self.quiet.push_back(off);
        if self.count < limits.baseline_readings {
            self.sum += ln;
            self.count += 1.0;
        }
    }
}
