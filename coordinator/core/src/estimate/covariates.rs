//! How a work's time follows the load of its microbatch.
//!
//! ```text
//!   time(microbatch) = level of its layer, phase, device, iteration x form(load) x noise
//!   form(load) = fixed + tokens x T/mean T + squares x S/mean S + busiest x B/mean B, shares >= 0 that add up to 1
//! ```
//!
//! So a form is 1 at the mean load, and a work's time over its form is what it would take with that. Shares are fitted in
//! log space (Gauss-Newton with Huber's weights). What a group of works has in common, a device's slowdown or a slow
//! iteration, is eliminated by centring each group, so nothing but the difference within groups tells of loads: a change
//! of speed is none, and is never taken for one.
//!
//! 1. A term is there only if the data ask for it: among all sets of terms the one counts whose fit, with a penalty of
//!    the logarithm of the works for each term (Schwarz 1978), is best.
//! 2. Forms are fitted for the job, then for a signature, then for a phase of it, then for that on a kind: each from the
//!    one before, which stands while its own works do not tell otherwise.

use super::figures::Figure;
use super::loads::{Load, TERMS};
use super::robust;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A fixed part, and the terms of a load.
const PARTS: usize = 1 + TERMS;
/// Works that a form is fitted to at most: every n-th group.
const WORKS: usize = 512;
/// Works below which nothing is fitted.
const WORKS_MIN: usize = 24;
/// Rounds of a fit; the last ones move nothing that matters.
const ROUNDS: usize = 8;
/// Rounds that learn the noise; and a step of shares that is none.
const SCALE_ROUNDS: usize = 2;
const SETTLED: f64 = 1e-3;
/// Relative range of a term below which it does not vary.
const RANGE_MIN: f64 = 1e-3;
/// No work is taken to be better known than this, standard deviation of the logarithm.
const SD_MIN: f64 = 1e-4;
/// Nor are few works, whose scale is as uncertain.
const NOISE_MIN: f64 = 0.02;
/// A slope this well known is known.
const SLOPE_SD_KNOWN: f64 = 0.1;
/// A form is no smaller: what is extrapolated far stays a number.
const FORM_MIN: f64 = 1e-3;

/// Shares of a work's time at the mean load: fixed, tokens, squares, busiest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Form(pub [f64; PARTS]);

impl Form {
    /// Loads make no difference.
    pub const FLAT: Form = Form([1.0, 0.0, 0.0, 0.0]);

    /// Time over that at the mean load; `over_mean` holds a load's terms over the mean ones.
    fn of(&self, over_mean: &[f64; TERMS]) -> f64 {
        self.0[1..].iter().zip(over_mean).fold(self.0[0], |sum, (share, term)| sum + share * term)
    }
}

/// A form, and how well it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    /// The form.
    pub form: Form,
    /// Standard deviation of its slope: of the logarithm of the time over that of the length.
    pub slope_sd: f64,
}

impl Fitted {
    /// Before anything was seen: a slope of 0, 1 or 2.
    pub(super) const UNKNOWN: Fitted = Fitted { form: Form::FLAT, slope_sd: 1.0 };
}

/// How times follow loads: by kind of device, layer and phase (F, I, W).
#[derive(Clone, Debug, PartialEq)]
pub struct Covariates {
    /// What costs are of: the mean load of the last iterations.
    pub mean: Load,
    /// Loads as they are.
    pub some: Vec<Load>,
    /// By kind, then layer.
    pub forms: BTreeMap<String, Vec<[Fitted; 3]>>,
}

impl Covariates {
    /// Time with a load over that with the mean one, and how well the logarithm of it is known.
    pub fn factor(&self, kind: &str, layer: usize, phase: usize, load: Load) -> (f64, f64) {
        let Some(fitted) = self.forms.get(kind).and_then(|layers| layers.get(layer)?.get(phase)) else {
            return (1.0, 0.0);
        };
        let over_mean = over(load, self.mean);
        (fitted.form.of(&over_mean).max(FORM_MIN), fitted.slope_sd * ln_size(&over_mean).abs())
    }

    /// The logarithm of that where the load is not known, for a work as works are; and how far single ones are from it,
    /// standard deviation.
    pub fn typical(&self, kind: &str, layer: usize, phase: usize) -> (f64, f64) {
        let factors = || self.some.iter().map(|load| self.factor(kind, layer, phase, *load));
        let count = self.some.len().max(1) as f64;
        let mean = factors().map(|(factor, _)| factor.ln()).sum::<f64>() / count;
        let variance =
            factors().map(|(factor, ln_sd)| (factor.ln() - mean).powi(2) + ln_sd.powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt())
    }

    /// Loads make a difference somewhere, as far as works tell: it is not only that too few were seen.
    pub fn matter(&self) -> bool {
        self.forms.values().flatten().flatten().any(|fitted| fitted.form != Form::FLAT)
    }

    /// Adds to a figure of a cost what the form leaves open, where works are of this size in the middle (logarithm over that
    /// of the mean load).
    pub(super) fn widen(&self, kind: &str, layer: usize, figures: &mut [Figure; 4], middle_ln: f64) {
        let Some(fitted) = self.forms.get(kind).and_then(|layers| layers.get(layer)) else { return };
        for (figure, fitted) in figures.iter_mut().zip(fitted) {
            figure.ln_sd = figure.ln_sd.hypot(fitted.slope_sd * middle_ln);
        }
    }

    /// Loads make no difference anywhere, as far as enough works tell.
    pub fn are_flat(&self) -> bool {
        let is_flat = |fitted: &Fitted| fitted.form == Form::FLAT && fitted.slope_sd < SLOPE_SD_KNOWN;
        self.forms.values().flatten().flatten().all(is_flat)
    }
}

/// A load's terms over those of the mean; 0 of a term that the job does not have.
pub(super) fn over(load: Load, mean: Load) -> [f64; TERMS] {
    let (load, mean) = (load.terms(), mean.terms());
    std::array::from_fn(|term| if mean[term] > 0.0 { load[term] / mean[term] } else { 0.0 })
}

/// Logarithm of how long a microbatch is beside the mean one: by its tokens, or what else is told of it.
fn ln_size(over_mean: &[f64; TERMS]) -> f64 {
    let [tokens, squares, busiest] = *over_mean;
    let sizes = [tokens, squares.sqrt(), busiest];
    sizes.into_iter().find(|size| *size > 0.0).map_or(0.0, f64::ln)
}

/// A work: the logarithm of its time, and its load over the mean one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub ln_ns: f64,
    pub over_mean: [f64; TERMS],
}

/// Works that have their level in common.
pub(super) type Group = Vec<Work>;

/// The form that groups ask for; that of `parent` while they ask for no other. Its slope is at first held to be as far from
/// the parent's as `apart`, standard deviation.
pub(super) fn fit(groups: &[&Group], parent: Fitted, apart: f64) -> Fitted {
    let some = some(groups);
    let form = form(&some, parent.form);
    let sd = scale(&some, &form).max(NOISE_MIN);
    let information: f64 = groups.iter().map(|group| spread_of_sizes(group)).sum::<f64>() / sd.powi(2);
    let before = (parent.slope_sd.powi(2) + apart.powi(2)).recip();
    Fitted { form, slope_sd: (before + information).sqrt().recip() }
}

/// Sum of the squared deviations of a group's sizes.
fn spread_of_sizes(group: &Group) -> f64 {
    let sizes = || group.iter().map(|work| ln_size(&work.over_mean));
    let mean = sizes().sum::<f64>() / group.len().max(1) as f64;
    sizes().map(|size| (size - mean).powi(2)).sum()
}

/// Groups of at most [`WORKS`] works, evenly over all; a work by itself tells nothing.
fn some<'a>(groups: &[&'a Group]) -> Vec<&'a Group> {
    let works: usize = groups.iter().map(|group| group.len()).sum();
    groups.iter().step_by(works.div_ceil(WORKS).max(1)).copied().filter(|group| group.len() > 1).collect()
}

fn form(groups: &[&Group], parent: Form) -> Form {
    let free = groups.iter().map(|group| group.len() - 1).sum::<usize>();
    let terms: Vec<usize> = (0..TERMS).filter(|&term| varies(groups, term)).collect();
    if free < WORKS_MIN || terms.is_empty() {
        return parent;
    }
    let fitted: Vec<(Form, f64)> = (0..1_usize << terms.len())
        .map(|set| {
            let of: Vec<usize> =
                terms.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, &t)| t).collect();
            let parts = 1.0 + of.len() as f64;
            (shares(groups, &of), parts)
        })
        .collect();
    // All sets are measured by the noise that the best of them leaves.
    let sd = fitted.iter().map(|(form, _)| scale(groups, form)).fold(f64::INFINITY, f64::min).max(SD_MIN);
    let penalty = (free as f64).ln();
    let own = fitted.iter().map(|(form, parts)| (*form, loss(groups, form, sd) + parts * penalty));
    // Whoever keeps to what is known pays for nothing.
    let kept = (parent, loss(groups, &parent, sd));
    own.fold(kept, |best, own| if own.1 < best.1 { own } else { best }).0
}

fn varies(groups: &[&Group], term: usize) -> bool {
    let values = || groups.iter().flat_map(|group| group.iter().map(|work| work.over_mean[term]));
    let (low, high) = values().fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    high - low > RANGE_MIN
}

/// Calls `each` with what a form leaves of every work's logarithm, less the median of its group.
fn residuals(groups: &[&Group], form: &Form, mut each: impl FnMut(f64)) {
    let (mut of, mut sorted) = (Vec::new(), Vec::new());
    for group in groups {
        of.clear();
        of.extend(group.iter().map(|work| work.ln_ns - form.of(&work.over_mean).max(FORM_MIN).ln()));
        sorted.clone_from(&of);
        let centre = robust::median(&mut sorted).unwrap_or(0.0);
        of.iter().for_each(|residual| each(residual - centre));
    }
}

fn scale(groups: &[&Group], form: &Form) -> f64 {
    let mut all = Vec::new();
    residuals(groups, form, |residual| all.push(residual.abs()));
    robust::median(&mut all).map_or(0.0, |median| robust::MAD_TO_SD * median)
}

/// Huber's loss, doubled: as a sum of squares of what is near.
fn loss(groups: &[&Group], form: &Form, sd: f64) -> f64 {
    let of = |z: f64| if z <= robust::BEND { z * z } else { robust::BEND * (2.0 * z - robust::BEND) };
    let mut sum = 0.0;
    residuals(groups, form, |residual| sum += of(residual.abs() / sd));
    sum
}

/// The likeliest shares of the fixed part and of some terms. A share that wants to be negative is 0 from then on: without it
/// the works are those of another set.
fn shares(groups: &[&Group], terms: &[usize]) -> Form {
    let mut free: Vec<usize> = std::iter::once(0).chain(terms.iter().map(|term| 1 + term)).collect();
    let mut form = Form([0.0; PARTS]);
    free.iter().for_each(|&part| form.0[part] = (free.len() as f64).recip());
    let mut sd = SD_MIN;
    for round in 0..ROUNDS {
        if round < SCALE_ROUNDS {
            sd = scale(groups, &form).max(SD_MIN);
        }
        let Some(step) = step(groups, &form, &free, sd) else { break };
        let reach = |part: usize| if step[part] < 0.0 { form.0[part] / -step[part] } else { f64::INFINITY };
        let first = free.iter().copied().min_by(|a, b| reach(*a).total_cmp(&reach(*b)));
        let bound = first.filter(|&part| reach(part) <= 1.0);
        let far = bound.map_or(1.0, reach);
        form.0.iter_mut().zip(step).for_each(|(share, step)| *share += far * step);
        match bound {
            Some(bound) => {
                form.0[bound] = 0.0;
                free.retain(|part| *part != bound);
            }
            None if step.iter().all(|step| step.abs() < SETTLED) => break,
            None => {}
        }
    }
    form
}

/// One round of Gauss-Newton, as a step of the free shares that adds up to 0; none where the works do not tell them apart.
fn step(groups: &[&Group], form: &Form, free: &[usize], sd: f64) -> Option<[f64; PARTS]> {
    let (&base, others) = free.split_first()?;
    let count = others.len();
    let mut normal = [[0.0; TERMS]; TERMS];
    let mut right = [0.0; TERMS];
    let (mut rows, mut sorted) = (Vec::new(), Vec::new());
    for group in groups {
        rows.clear();
        rows.extend(group.iter().map(|work| Row::of(work, form, base, others)));
        centre(&mut rows, &mut sorted, sd);
        for Row { weight, residual, slopes } in &rows {
            for a in 0..count {
                right[a] += weight * slopes[a] * residual;
                for b in 0..count {
                    normal[a][b] += weight * slopes[a] * slopes[b];
                }
            }
        }
    }
    let solved = solve(normal, right, count)?;
    let mut step = [0.0; PARTS];
    for (part, solved) in others.iter().zip(solved) {
        step[*part] = solved;
        step[base] -= solved;
    }
    Some(step)
}

/// A work as an equation.
struct Row {
    weight: f64,
    residual: f64,
    /// What the logarithm of its form gains with each share, at the cost of the base's.
    slopes: [f64; TERMS],
}

impl Row {
    fn of(work: &Work, form: &Form, base: usize, others: &[usize]) -> Row {
        let of = form.of(&work.over_mean).max(FORM_MIN);
        let part = |part: usize| if part == 0 { 1.0 } else { work.over_mean[part - 1] };
        let mut slopes = [0.0; TERMS];
        others.iter().zip(&mut slopes).for_each(|(&other, slope)| *slope = (part(other) - part(base)) / of);
        Row { weight: 1.0, residual: work.ln_ns - of.ln(), slopes }
    }
}

/// Weighs a group's rows by how odd they are, and takes off what they have in common.
fn centre(rows: &mut [Row], sorted: &mut Vec<f64>, sd: f64) {
    sorted.clear();
    sorted.extend(rows.iter().map(|row| row.residual));
    let middle = robust::median(sorted).unwrap_or(0.0);
    let (mut total, mut residual, mut slopes) = (0.0, 0.0, [0.0; TERMS]);
    for row in rows.iter_mut() {
        row.weight = robust::huber((row.residual - middle) / sd);
        total += row.weight;
        residual += row.weight * row.residual;
        slopes.iter_mut().zip(row.slopes).for_each(|(sum, slope)| *sum += row.weight * slope);
    }
    for row in rows {
        row.residual -= residual / total;
        row.slopes.iter_mut().zip(slopes).for_each(|(slope, sum)| *slope -= sum / total);
    }
}

/// Gaussian elimination of the first `count` equations; none where they do not determine the solution.
fn solve(mut normal: [[f64; TERMS]; TERMS], mut right: [f64; TERMS], count: usize) -> Option<[f64; TERMS]> {
    let largest = (0..count).map(|at| normal[at][at]).fold(0.0, f64::max);
    for at in 0..count {
        let pivot = normal[at][at];
        if pivot <= 1e-9 * largest || !pivot.is_finite() {
            return None;
        }
        for below in at + 1..count {
            let factor = normal[below][at] / pivot;
            let upper = normal[at];
            normal[below].iter_mut().zip(upper).for_each(|(of, upper)| *of -= factor * upper);
            right[below] -= factor * right[at];
        }
    }
    let mut solution = [0.0; TERMS];
    for at in (0..count).rev() {
        let known: f64 = (at + 1..count).map(|later| normal[at][later] * solution[later]).sum();
        solution[at] = (right[at] - known) / normal[at][at];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    /// Groups of eight works at levels of their own, with lengths of a log-normal distribution and this noise. `sequences`
    /// make up a microbatch.
    fn groups(truth: Form, noise: f64, count: usize, sequences: usize, seed: u64) -> Vec<Group> {
        let mut random = Random::new(seed, 0);
        let loads: Vec<Load> = (0..8 * count)
            .map(|_| {
                let lengths: Vec<f64> = (0..sequences).map(|_| 1000.0 * random.factor(0.6)).collect();
                let tokens = lengths.iter().sum();
                let squares = lengths.iter().map(|length| length * length).sum();
                Load { tokens, squares, busiest: tokens / 4.0 * random.factor(0.2) }
            })
            .collect();
        let n = loads.len() as f64;
        let mean = |of: &dyn Fn(&Load) -> f64| loads.iter().map(of).sum::<f64>() / n;
        let mean = Load { tokens: mean(&|l| l.tokens), squares: mean(&|l| l.squares), busiest: mean(&|l| l.busiest) };
        let group = |loads: &[Load]| {
            let level = random.normal();
            let work = |load: &Load| {
                let over_mean = over(*load, mean);
                let student = random.normal() / ((0..4).map(|_| random.normal().powi(2)).sum::<f64>() / 4.0).sqrt();
                Work { ln_ns: level + truth.of(&over_mean).ln() + (noise * student).max(-0.9).ln_1p(), over_mean }
            };
            loads.iter().map(work).collect()
        };
        loads.chunks(8).map(group).collect()
    }

    fn fitted(truth: Form, noise: f64, count: usize, sequences: usize, seed: u64, parent: Form) -> Form {
        let groups = groups(truth, noise, count, sequences, seed);
        form(&groups.iter().collect::<Vec<_>>(), parent)
    }

    /// Largest relative error over the loads of 5 to 95 of 100 microbatches of one sequence.
    fn error(fitted: &Form, truth: &Form) -> f64 {
        let of = |z: f64| {
            let tokens = (0.6 * z - 0.18).exp();
            let over = [tokens, (1.2 * z - 0.72).exp(), tokens];
            (fitted.of(&over) / truth.of(&over)).ln()
        };
        let errors: Vec<f64> = (-16..=16).map(|at| of(f64::from(at) / 10.0)).collect();
        let (low, high) = errors.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), e| (l.min(*e), h.max(*e)));
        // Up to a level, which each group has its own of.
        (high - low) / 2.0
    }

    #[test]
    fn works_of_unknown_load_are_as_works_are() {
        let some: Vec<Load> = [500, 1_000, 4_000].map(|tokens| Load::new(tokens, 0, 0)).into();
        let of = |form: Form, slope_sd: f64| {
            let forms = [("h100".to_owned(), vec![[Fitted { form, slope_sd }; 3]])].into();
            Covariates { mean: Load::new(1_000, 0, 0), some: some.clone(), forms }
        };
        let known = of(Form([0.0, 1.0, 0.0, 0.0]), 0.0);
        let (ln, ln_sd) = known.typical("h100", 0, 0);
        let sd = (42.0_f64 / 9.0 / 3.0).sqrt() * std::f64::consts::LN_2;
        assert!((ln - std::f64::consts::LN_2 / 3.0).abs() < 1e-12 && (ln_sd - sd).abs() < 1e-12, "{ln} {ln_sd}");
        assert_eq!(known.typical("a100", 0, 0), (0.0, 0.0), "of nothing known");
        // Not known yet: no difference that anyone could be told of, but it may be there.
        let unknown = of(Form::FLAT, 1.0);
        assert!(!unknown.are_flat() && !unknown.matter() && known.matter());
        assert!(unknown.typical("h100", 0, 0).1 > 0.8);
    }

    #[test]
    fn shares_come_out_under_heavy_tails() {
        for truth in [
            [0.2, 0.8, 0.0, 0.0],
            [0.1, 0.5, 0.4, 0.0],
            [0.0, 0.3, 0.7, 0.0],
            [0.6, 0.0, 0.4, 0.0],
            [0.1, 0.3, 0.0, 0.6],
        ] {
            for (noise, count, most) in [(0.0, 8, 1e-3), (0.05, 32, 0.03), (0.1, 64, 0.05)] {
                for seed in 0..4 {
                    let form = fitted(Form(truth), noise, count, 1, seed, Form::FLAT);
                    let off = error(&form, &Form(truth));
                    assert!(off < most, "{truth:?} {noise} {seed}: {form:?} is off by {off}");
                    let sum: f64 = form.0.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-9 && form.0.iter().all(|share| *share >= 0.0), "{form:?}");
                }
            }
        }
    }

    #[test]
    fn what_the_data_do_not_ask_for_is_left_out() {
        let mut flat = 0;
        for seed in 0..40 {
            flat += usize::from(fitted(Form::FLAT, 0.1, 32, 4, seed, Form::FLAT) == Form::FLAT);
            let tokens = fitted(Form([0.2, 0.8, 0.0, 0.0]), 0.05, 32, 4, seed, Form::FLAT);
            assert!(tokens.0[1] > 0.4, "{tokens:?}");
        }
        assert!(flat >= 36, "loads that make no difference count as making none: {flat} of 40");
        // Too few works to tell, and a microbatch like the other.
        let parent = Form([0.5, 0.5, 0.0, 0.0]);
        assert_eq!(fitted(Form([0.0, 0.0, 1.0, 0.0]), 0.1, 2, 1, 1, parent), parent);
        let same: Group = vec![Work { ln_ns: 1.0, over_mean: [1.0; 3] }; 64];
        assert_eq!(form(&[&same], parent), parent);
    }

    #[test]
    fn a_parent_stands_until_works_tell_otherwise() {
        let parent = Form([0.1, 0.5, 0.4, 0.0]);
        let mut kept = 0;
        for seed in 0..20 {
            kept += usize::from(fitted(parent, 0.1, 16, 1, seed, parent) == parent);
            let other = fitted(Form::FLAT, 0.1, 32, 1, seed, parent);
            assert!(error(&other, &Form::FLAT) < 0.1, "a padded layer is found out: {other:?}");
        }
        assert!(kept >= 18, "{kept} of 20");
    }

    #[test]
    fn stalls_and_absurd_numbers_harm_nothing() {
        let truth = Form([0.1, 0.9, 0.0, 0.0]);
        let mut groups = groups(truth, 0.03, 32, 1, 3);
        groups.iter_mut().for_each(|group| group[0].ln_ns += 1.0);
        let found = form(&groups.iter().collect::<Vec<_>>(), Form::FLAT);
        assert!(error(&found, &truth) < 0.05, "{found:?}");
        for over_mean in [[0.0; 3], [1e18, 1e36, 0.0]] {
            groups[0][0].over_mean = over_mean;
            let found = form(&groups.iter().collect::<Vec<_>>(), Form::FLAT);
            assert!(found.0.iter().all(|share| share.is_finite()), "{found:?}");
        }
        assert_eq!(form(&[], truth), truth);
    }
}
