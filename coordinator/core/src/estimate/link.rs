//! A directed link's two terms from its transfers: time = latency + bytes / bandwidth.
//!
//! Transfers are grouped by size, each group stands for its median; the terms are told apart only where sizes differ
//! enough. After a change the old transfers are gone and often one size is left: the latency found before is kept and
//! the bandwidth takes all of the change, which is right for that size.

use super::robust;
use crate::next_job::Transfers;
use adaptis_plan::Link;
use adaptis_proto::Step;
use adaptis_proto::sample::Mark;
use std::collections::{BTreeMap, VecDeque};

/// Transfers kept of a directed pair; the oldest goes.
const TRANSFERS: usize = 256;
/// Probes kept of a directed pair; the oldest goes.
const PROBES: usize = 64;
/// Iterations of traffic that count.
const ITERATIONS: u64 = 8;
/// Sizes apart by at least this factor separate latency from bandwidth.
const SEPARATING: f64 = 1.5;
/// The latency is known for use after a change only if it is below this share of a transfer's time.
const LATENCY_SHARE_MAX: f64 = 0.5;
/// No transfer time is taken to be better known than a clock.
const SD_MIN: f64 = 1e-3;
/// Standard deviations of chance by which iterations may differ more than their transfers.
const CHANCE: f64 = 2.0;
/// Slowest link that is written, in bytes per second.
const SLOWEST: f64 = 1.0;
/// Longest latency that is written of a link that was scaled.
const LATENCY_MAX_NS: f64 = 1e12;
/// Fastest link that is written, in bytes per second.
const FASTEST: f64 = 1e15;

#[derive(Clone, Copy, Debug)]
struct Transfer {
    step: Step,
    cold: bool,
    bytes: u64,
    duration_ns: u64,
}

/// One directed pair's transfers.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    traffic: VecDeque<Transfer>,
    probes: VecDeque<Transfer>,
    /// Fitted just before the last change.
    before: Option<Fit>,
    /// What its transfers before the first change said.
    unchanged: Option<Fit>,
    changed: Option<Step>,
}

/// A link's fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fit {
    pub link: Link,
    pub ln_sd: f64,
    pub separated: bool,
}

impl History {
    pub fn absorb(&mut self, step: Step, mark: Mark, bytes: u64, duration_ns: u64) {
        if bytes == 0 || (mark != Mark::Calibration && self.changed.is_some_and(|changed| step < changed)) {
            return;
        }
        let (queue, limit) = match mark {
            Mark::Calibration => (&mut self.probes, PROBES),
            Mark::Warm | Mark::Cold | Mark::Hasty => (&mut self.traffic, TRANSFERS),
        };
        if queue.len() == limit {
            queue.pop_front();
        }
        queue.push_back(Transfer { step, cold: mark == Mark::Cold, bytes, duration_ns });
    }

    /// The link's speed changed at `from`.
    pub fn change(&mut self, from: Step) {
        self.before = self.fit();
        self.unchanged = self.unchanged.or_else(|| self.fit_of(|transfer| transfer.step < from));
        self.changed = Some(from);
        self.traffic.retain(|transfer| transfer.step >= from);
        self.probes.retain(|probe| probe.step >= from);
    }

    /// What its transfers say; none without any. Cold ones count where there is nothing else.
    pub fn fit(&self) -> Option<Fit> {
        let before = || self.before.map(|before| Fit { ln_sd: before.ln_sd.max(0.5), ..before });
        self.fit_of(|_| true).or_else(before)
    }

    fn fit_of(&self, counts: impl Fn(&Transfer) -> bool) -> Option<Fit> {
        let traffic = || self.traffic.iter().filter(|transfer| counts(transfer));
        let latest = traffic().map(|transfer| transfer.step).max().unwrap_or_default();
        let recent = |transfer: &&Transfer| transfer.step.0 + ITERATIONS > latest.0;
        let probes = self.probes.iter().filter(|probe| counts(probe));
        let mut groups = by_size(traffic().filter(recent).filter(|transfer| !transfer.cold).chain(probes));
        if groups.is_empty() {
            groups = by_size(traffic());
        }
        (!groups.is_empty()).then(|| self.fit_groups(&groups))
    }

    /// Its speed changed once.
    pub fn is_changed(&self) -> bool {
        self.changed.is_some()
    }

    /// What its transfers before the first change said; what they say where there was none.
    pub fn unchanged(&self) -> Option<Fit> {
        self.unchanged.or_else(|| self.fit())
    }

    fn fit_groups(&self, groups: &[Group]) -> Fit {
        let known = self.before.filter(|before| before.separated).map_or(0.0, |before| before.link.latency_ns as f64);
        fit_groups(groups, known)
    }
}

/// The fit of some sizes, at least one; `known_ns` is a latency found before, 0 for none.
fn fit_groups(groups: &[Group], known_ns: f64) -> Fit {
    let ln_sd = groups.iter().map(|group| group.ln_sd).fold(SD_MIN, f64::max);
    if let Some((latency_ns, ns_per_byte)) = separate(groups) {
        return Fit { link: link(latency_ns, ns_per_byte), ln_sd, separated: true };
    }
    let largest = groups.iter().max_by_key(|group| group.works).expect("there is a group");
    let latency_ns = known_ns.min(LATENCY_SHARE_MAX * largest.median_ns);
    let ns_per_byte = (largest.median_ns - latency_ns) / largest.bytes;
    Fit { link: link(latency_ns, ns_per_byte), ln_sd, separated: false }
}

/// The link that fits the medians of transfers of some sizes, and whether latency and bandwidth were told apart; none
/// without any.
pub(crate) fn fit_sizes(sizes: &[Transfers]) -> Option<(Link, bool)> {
    let sizes = sizes.iter().filter(|size| size.bytes > 0 && size.count > 0);
    let group = |size: &Transfers| Group {
        bytes: size.bytes as f64,
        median_ns: size.median_ns.max(1.0),
        works: usize::try_from(size.count).unwrap_or(usize::MAX),
        ln_sd: robust::MEDIAN_SD * size.ln_spread / (size.count as f64).sqrt(),
    };
    let groups: Vec<Group> = sizes.map(group).collect();
    let fit = (!groups.is_empty()).then(|| fit_groups(&groups, 0.0))?;
    Some((fit.link, fit.separated))
}

impl Fit {
    /// Nanoseconds that a transfer of so many bytes takes.
    pub fn ns(&self, bytes: f64) -> f64 {
        self.link.latency_ns as f64 + bytes * 1e9 / self.link.bytes_per_second
    }

    /// The same link where transfers take `factor` times as long.
    pub fn slower(self, factor: f64) -> Self {
        let latency_ns = (self.link.latency_ns as f64 * factor).min(LATENCY_MAX_NS);
        Self { link: link(latency_ns, factor * 1e9 / self.link.bytes_per_second), ..self }
    }
}

struct Group {
    bytes: f64,
    median_ns: f64,
    works: usize,
    ln_sd: f64,
}

fn by_size<'a>(transfers: impl Iterator<Item = &'a Transfer>) -> Vec<Group> {
    let mut sizes: BTreeMap<u64, BTreeMap<Step, Vec<f64>>> = BTreeMap::new();
    for transfer in transfers {
        let steps = sizes.entry(transfer.bytes).or_default();
        steps.entry(transfer.step).or_default().push(transfer.duration_ns as f64);
    }
    let group = |(bytes, steps): (u64, BTreeMap<Step, Vec<f64>>)| {
        let mut durations = steps.values().flatten().copied().collect::<Vec<_>>();
        let median_ns = robust::median(&mut durations).expect("a size has a transfer").max(1.0);
        let relative = robust::scale_around(&durations, median_ns).unwrap_or(0.0) / median_ns;
        let works = durations.len();
        let ln_sd = robust::MEDIAN_SD * relative.max(if works < 3 { 0.1 } else { 0.0 }) / (works as f64).sqrt();
        let ln_sd = ln_sd * apart(steps.into_values(), median_ns, ln_sd * (works as f64).sqrt());
        Group { bytes: bytes as f64, median_ns, works, ln_sd }
    };
    sizes.into_iter().map(group).collect()
}

/// How many times further medians of iterations are apart than transfers that are independent would make them (Birge's
/// ratio), `each_sd` being what one transfer contributes; 1 where chance alone may do so. What a neighbour's traffic
/// does to an iteration does not average out over its transfers.
fn apart(iterations: impl Iterator<Item = Vec<f64>>, median_ns: f64, each_sd: f64) -> f64 {
    let (mut squares, mut count) = (0.0, 0.0);
    for mut durations in iterations {
        let works = durations.len() as f64;
        let off = robust::median(&mut durations).unwrap_or(median_ns) / median_ns - 1.0;
        squares += works * (off / each_sd.max(SD_MIN)).powi(2);
        count += 1.0;
    }
    let free: f64 = count - 1.0;
    let ratio = squares / free.max(1.0);
    if free >= 1.0 && ratio > 1.0 + CHANCE * (2.0 / free).sqrt() { ratio.sqrt() } else { 1.0 }
}

/// Latency and nanoseconds per byte: the weighted median of the slopes between sizes that are far enough apart
/// (Theil and Sen), if there are such and the slope is positive.
fn separate(groups: &[Group]) -> Option<(f64, f64)> {
    let mut slopes = Vec::new();
    for (at, small) in groups.iter().enumerate() {
        for large in &groups[at + 1..] {
            if large.bytes >= SEPARATING * small.bytes {
                let slope = (large.median_ns - small.median_ns) / (large.bytes - small.bytes);
                let noise = (large.ln_sd * large.median_ns).hypot(small.ln_sd * small.median_ns).max(1.0);
                slopes.push((slope, (large.bytes - small.bytes) / noise));
            }
        }
    }
    let ns_per_byte = robust::weighted_median(&mut slopes).filter(|slope| *slope > 0.0)?;
    let mut rest: Vec<_> = groups
        .iter()
        .map(|group| (group.median_ns - ns_per_byte * group.bytes, (group.ln_sd * group.median_ns).max(1.0).recip()))
        .collect();
    let latency_ns = robust::weighted_median(&mut rest)?;
    if latency_ns >= 0.0 {
        return Some((latency_ns, ns_per_byte));
    }
    // Noise alone makes a latency negative: without one, the sizes agree on the bandwidth that fits the largest best.
    let largest = groups.iter().max_by(|a, b| a.bytes.total_cmp(&b.bytes))?;
    Some((0.0, largest.median_ns / largest.bytes))
}

fn link(latency_ns: f64, ns_per_byte: f64) -> Link {
    let bytes_per_second = (1e9 / ns_per_byte).clamp(SLOWEST, FASTEST);
    Link { latency_ns: latency_ns.round() as u64, bytes_per_second, note: () }
}

/// The robust middle of some links, for pairs never seen.
pub(crate) fn middle(fits: &[Fit]) -> Option<Fit> {
    let mut latencies: Vec<f64> = fits.iter().map(|fit| fit.link.latency_ns as f64).collect();
    let mut bandwidths: Vec<f64> = fits.iter().map(|fit| fit.link.bytes_per_second.ln()).collect();
    let ln_bandwidth = robust::median(&mut bandwidths)?;
    let ln_sd = robust::scale_around(&bandwidths, ln_bandwidth)?.max(0.2);
    let link = Link {
        latency_ns: robust::median(&mut latencies)?.round() as u64,
        bytes_per_second: ln_bandwidth.exp().clamp(SLOWEST, FASTEST),
        note: (),
    };
    Some(Fit { link, ln_sd, separated: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(transfers: &[(u64, Mark, u64, u64)]) -> History {
        let mut history = History::default();
        transfers.iter().for_each(|&(step, mark, bytes, ns)| history.absorb(Step(step), mark, bytes, ns));
        history
    }

    #[test]
    fn two_sizes_separate_latency_from_bandwidth() {
        // 10 us + 1 ns per byte.
        let mut probes = Vec::new();
        for stall in [0, 0, 0, 3_000_000] {
            probes.push((0, Mark::Calibration, 10_000, 20_000 + stall));
            probes.push((0, Mark::Calibration, 1_000_000, 1_010_000 + stall));
        }
        let fit = fed(&probes).fit().expect("there are transfers");
        assert!(fit.separated);
        assert_eq!(fit.link.latency_ns, 10_000);
        assert!((fit.link.bytes_per_second / 1e9 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_size_has_no_latency_and_says_so() {
        let fit = fed(&[(1, Mark::Warm, 1_000, 3_000), (2, Mark::Warm, 1_000, 3_000)]).fit().expect("there are some");
        assert!(!fit.separated);
        assert_eq!(fit.link.latency_ns, 0);
        assert!((fit.link.bytes_per_second * 3.0 / 1e9 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn after_a_change_only_new_transfers_count_and_the_latency_stays() {
        let mut history = fed(&[
            (0, Mark::Calibration, 10_000, 20_000),
            (0, Mark::Calibration, 1_000_000, 1_010_000),
            (5, Mark::Warm, 500_000, 510_000),
            (6, Mark::Warm, 500_000, 2_010_000),
        ]);
        history.change(Step(6));
        history.absorb(Step(5), Mark::Warm, 500_000, 510_000);
        let fit = history.fit().expect("one transfer is left");
        assert_eq!(fit.link.latency_ns, 10_000);
        assert!((fit.link.bytes_per_second - 0.25e9).abs() < 1e3, "{fit:?}");
    }

    #[test]
    fn extremes_stay_in_range() {
        for (bytes, ns) in [(1, u64::MAX), (u64::MAX, 0), (1, 0), (u64::MAX, u64::MAX)] {
            let fit = fed(&[(1, Mark::Warm, bytes, ns), (1, Mark::Warm, bytes / 3, ns)]).fit();
            let fit = fit.expect("there are transfers");
            assert!(fit.link.bytes_per_second.is_finite() && fit.link.bytes_per_second > 0.0, "{fit:?}");
        }
        assert_eq!(fed(&[(1, Mark::Warm, 0, 5)]).fit(), None);
    }
}
