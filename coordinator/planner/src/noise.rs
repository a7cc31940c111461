//! What an iteration takes where works jitter: a plan replayed on draws of their times.
//!
//! Devices wait for one another. Who is late makes others late, who is early is seldom of use to anyone, and so an
//! iteration takes longer than its works at their means, put together, say: 10% on every instruction of 1F1B is 6 to 9%
//! on the iteration.
//!
//! 1. A draw is a function of the seed, its number and the work alone: the layer, the microbatch and the phase. So two
//!    plans meet with the same luck, wherever they put a layer, and their difference is known better than either.
//! 2. Only what is independent within an iteration belongs in here: what all works of an iteration have in common
//!    lengthens it as it lengthens them.
//! 3. Where nothing jitters, every draw takes what the simulator says, to the nanosecond.
//!
//! Left out on purpose: links, the optimizer and the boundary take their time.

use crate::costs::{Costs, Works};
use crate::program::{B, F, I, STAGES_MAX, W};
use crate::random::mixed;
use crate::replay::Replay;
use crate::shape::{Shape, Slot, Tables, programs_of};
use crate::simulate::{CannotSimulate, check, deadlock};
use adaptis_plan::{Plan, Problem};

/// Values that a distribution given by its formula is told by.
const VALUES: usize = 1024;
/// Where the normal distribution is taken to end, and the steps that it is summed up in up to there.
const NORMAL_END: f64 = 6.0;
const NORMAL_STEPS: usize = 12_000;

/// Factors on a work's time: equally likely values, ascending. None: always 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Jitter {
    factors: Vec<f64>,
}

impl Jitter {
    /// Factors as they were measured, all alike likely; what is not a positive number is left out.
    pub fn measured(factors: impl IntoIterator<Item = f64>) -> Self {
        let mut factors: Vec<f64> = factors.into_iter().filter(|factor| factor.is_finite() && *factor > 0.0).collect();
        factors.sort_unstable_by(f64::total_cmp);
        if factors.first() == Some(&1.0) && factors.last() == Some(&1.0) {
            factors.clear();
        }
        Self { factors }
    }

    /// Log-normal with mean 1 and this standard deviation.
    pub fn log_normal(sd: f64) -> Self {
        let variance = (sd * sd).ln_1p();
        let factor = |normal: f64| (variance.sqrt() * normal - variance / 2.0).exp();
        let of_normal = if sd > 0.0 { normal_quantiles(VALUES) } else { Vec::new() };
        Self::measured(of_normal.into_iter().map(factor))
    }

    /// Every factor is 1.
    pub fn is_none(&self) -> bool {
        self.factors.is_empty()
    }

    /// The factor that this share of all, as a fraction of 2^32, lies below.
    fn factor(&self, share: u32) -> f64 {
        let at = (u64::from(share) * self.factors.len() as u64) >> 32;
        self.factors.get(at as usize).copied().unwrap_or(1.0)
    }
}

/// The middle of each of so many equally likely parts of the standard normal distribution.
fn normal_quantiles(count: usize) -> Vec<f64> {
    let step = 2.0 * NORMAL_END / NORMAL_STEPS as f64;
    let at = |number: usize| -NORMAL_END + step * number as f64;
    let density = |value: f64| (-value * value / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let mut quantiles = Vec::with_capacity(count);
    let mut below = 0.0;
    for number in 0..NORMAL_STEPS {
        let part = step * density(at(number) + step / 2.0);
        // Between the edges of a step its share is spread evenly.
        let middles = (quantiles.len()..count).map(|of| (of as f64 + 0.5) / count as f64);
        let within = middles.take_while(|middle| *middle <= below + part);
        quantiles.extend(within.map(|middle| at(number) + step * (middle - below) / part));
        below += part;
    }
    quantiles
}

/// How works deviate, one independently of another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Noise {
    /// By device: of F, of I and of W.
    pub devices: Vec<[Jitter; 3]>,
    /// Correlation of the layers of one instruction, 0 to 1: with 1 the instruction as a whole deviates.
    pub together: f64,
}

impl Noise {
    /// Every instruction of every device deviates as a whole, log-normal with mean 1 and this standard deviation.
    pub fn of_instructions(devices: usize, sd: f64) -> Self {
        let jitter = Jitter::log_normal(sd);
        Self { devices: vec![[jitter.clone(), jitter.clone(), jitter]; devices], together: 1.0 }
    }

    /// Nothing deviates.
    pub fn is_none(&self) -> bool {
        self.devices.iter().flatten().all(Jitter::is_none)
    }
}

/// What an iteration takes on each draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// In the order of the draws: the same place in those of another plan is the same draw.
    pub iteration_ns: Vec<u64>,
}

impl Draws {
    /// The mean, to the nearest nanosecond; 0 of no draws.
    pub fn mean_ns(&self) -> u64 {
        let count = self.iteration_ns.len().max(1) as u128;
        let sum: u128 = self.iteration_ns.iter().map(|&ns| u128::from(ns)).sum();
        u64::try_from((sum + count / 2) / count).unwrap_or(u64::MAX)
    }

    /// The time that a share of the draws is below, 0 to 1; between two draws in proportion. 0 of no draws.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let mut sorted = self.iteration_ns.clone();
        sorted.sort_unstable();
        let Some(last) = sorted.len().checked_sub(1) else { return 0 };
        let at = share.clamp(0.0, 1.0) * last as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low.saturating_add(((high - low) as f64 * at.fract()).round() as u64)
    }

    /// Half of the draws take less.
    pub fn median_ns(&self) -> u64 {
        self.quantile_ns(0.5)
    }
}

/// Replays a plan on `count` draws of its works' times. The same seed gives the same draws of the same works, whatever
/// the plan.
///
/// # Errors
/// As [`crate::simulate::simulate`].
pub fn draws(problem: &Problem, plan: &Plan, noise: &Noise, count: usize, seed: u64) -> Result<Draws, CannotSimulate> {
    check(problem, plan)?;
    let (costs, shape) = (Costs::new(problem), Shape::of(plan));
    let tables = Tables::new(&costs, &shape);
    let programs = programs_of(plan);
    let mut replay = Replay::default();
    let exact_ns = replay.run(&tables, &programs).ok_or_else(|| deadlock(&replay, &programs))?;
    let iteration = |end_ns: u64| end_ns.saturating_add(tables.tail_ns);
    if noise.is_none() {
        return Ok(Draws { iteration_ns: vec![iteration(exact_ns); count] });
    }
    let mut drawn = Drawn::new(&costs, &shape, &tables, noise);
    let mut iteration_ns = Vec::with_capacity(count);
    for number in 0..count {
        drawn.draw(&tables, noise, Luck::of(seed, number));
        let ns = |stage: usize, kind: u32, microbatch: usize| {
            drawn.ns[(stage * tables.microbatches + microbatch) * 4 + kind as usize]
        };
        let end_ns = replay.run_timed(&tables, &programs, None, ns, |_| ());
        // The order of instructions alone decides whether the programs come to their end.
        iteration_ns.push(iteration(end_ns.ok_or_else(|| deadlock(&replay, &programs))?));
    }
    Ok(Draws { iteration_ns })
}

/// The phase of F again; F, I and W are 0, 1 and 2.
const AGAIN: usize = 3;

/// The luck of one draw.
#[derive(Clone, Copy)]
struct Luck {
    of_layers: u64,
    of_instructions: u64,
}

impl Luck {
    fn of(seed: u64, number: usize) -> Self {
        let own = mixed(mixed(seed).wrapping_add(number as u64));
        Self { of_layers: mixed(own), of_instructions: mixed(!own) }
    }
}

/// 64 bits of a work.
fn bits(luck: u64, [place, microbatch, phase]: [usize; 3]) -> u64 {
    // A place in a splitmix64 sequence, of places that do not meet within the planner's limits.
    let at = (place as u64) << 32 | (microbatch as u64) << 4 | phase as u64;
    mixed(luck.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Durations of all instructions in a draw.
struct Drawn {
    /// By stage: its device, its place among the device's stages, its first layer, and the works of its layers.
    stages: Vec<(usize, usize, usize, Vec<Works>)>,
    /// By stage: what F, I, W and B take besides.
    fixed_ns: Vec<[u64; 4]>,
    /// A layer whose bits are below it deviates as its instruction does: in a pair of layers both do so with the
    /// probability `together`.
    together: u64,
    /// By stage, microbatch, and F, I, W, B.
    ns: Vec<u64>,
}

impl Drawn {
    fn new(costs: &Costs, shape: &Shape, tables: &Tables, noise: &Noise) -> Self {
        let mut stages = Vec::with_capacity(shape.stages.len());
        let mut fixed_ns = Vec::with_capacity(shape.stages.len());
        for (stage, slot) in shape.stages.iter().enumerate() {
            let device = slot.device as usize;
            let place = tables.local[device].iter().position(|&own| own as usize == stage).unwrap_or(0);
            let works = slot.range().map(|layer| costs.works(device, layer, shape.recompute[layer])).collect();
            stages.push((device, place, slot.start as usize, works));
            let elsewhere = |other: Option<&Slot>| other.is_some_and(|other| other.device != slot.device);
            let before = elsewhere(stage.checked_sub(1).map(|before| &shape.stages[before]));
            let crossings_ns = costs.crossings_ns(before, elsewhere(shape.stages.get(stage + 1)));
            let with_them = costs.stage_ns.saturating_add(crossings_ns);
            fixed_ns.push([with_them, with_them, costs.stage_ns, with_them]);
        }
        Self {
            stages,
            fixed_ns,
            together: (noise.together.clamp(0.0, 1.0).sqrt() * (1_u64 << 32) as f64) as u64,
            ns: vec![0; shape.stages.len() * tables.microbatches * 4],
        }
    }

    fn draw(&mut self, tables: &Tables, noise: &Noise, luck: Luck) {
        for (stage, (device, place, first, works)) in self.stages.iter().enumerate() {
            let Some(jitter) = noise.devices.get(*device).filter(|jitter| !jitter.iter().all(Jitter::is_none)) else {
                let ns = tables.cost[stage].ns;
                let of_stage = stage * tables.microbatches * 4..(stage + 1) * tables.microbatches * 4;
                self.ns[of_stage].chunks_exact_mut(4).for_each(|own| own.copy_from_slice(&ns));
                continue;
            };
            let instruction = device * STAGES_MAX + place;
            for microbatch in 0..tables.microbatches {
                // Of the instructions F, I and W; B has I's.
                let whole: [u32; 3] = std::array::from_fn(|kind| {
                    (bits(luck.of_instructions, [instruction, microbatch, kind]) >> 32) as u32
                });
                let mut sums = [0.0; 4];
                for (offset, work) in works.iter().enumerate() {
                    let factor = |phase: usize, kind: u32| {
                        let bits = bits(luck.of_layers, [first + offset, microbatch, phase]);
                        let is_together = (bits & 0xffff_ffff) < self.together;
                        let share = if is_together { whole[kind as usize] } else { (bits >> 32) as u32 };
                        jitter[if phase == AGAIN { F as usize } else { phase }].factor(share)
                    };
                    let input = factor(1, I);
                    let again_ns = if work.again_ns > 0.0 { work.again_ns * factor(AGAIN, I) } else { 0.0 };
                    sums[F as usize] += work.forward_ns * factor(0, F);
                    sums[I as usize] += (work.input_gradient_ns + work.split_ns) * input + again_ns;
                    sums[W as usize] += work.weight_gradient_ns * factor(2, W);
                    sums[B as usize] +=
                        work.input_gradient_ns * input + again_ns + work.weight_gradient_ns * factor(2, I);
                }
                let own = (stage * tables.microbatches + microbatch) * 4;
                for ((ns, sum), fixed) in self.ns[own..own + 4].iter_mut().zip(sums).zip(self.fixed_ns[stage]) {
                    *ns = (sum.round() as u64).saturating_add(fixed);
                }
            }
        }
    }
}
