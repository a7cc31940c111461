//! Where the keys of a listing come from.
//!
//! One microbatch alone walks F down the stages and I back up; its times on an idle pipeline, stretched, are the
//! offsets, and the load of the busiest device is the period. A stretch above one keeps more microbatches in flight,
//! below one fewer. Caps give the published families: `S - s` forwards without their I is 1F1B.

use crate::listing::Recipe;
use crate::random::Random;
use crate::shape::Tables;

/// Above every key of a problem, with room to add.
const FAR: i64 = i64::MAX / 8;
const NO_CAP: u32 = u32::MAX;

/// Stretch of the forward and backward path, in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stretch {
    pub(crate) forward: i64,
    pub(crate) backward: i64,
    /// Of a period, from I to W.
    pub(crate) weight: i64,
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(FAR).min(FAR)
}

/// Work of a microbatch on each device: F, I and W of its stages.
pub(crate) fn loads(tables: &Tables) -> Vec<u64> {
    let load = |stage: &u32| tables.cost[*stage as usize].ns[..3].iter().fold(0_u64, |sum, ns| sum.saturating_add(*ns));
    tables.local.iter().map(|local| local.iter().map(load).fold(0, u64::saturating_add)).collect()
}

/// Work of an iteration on each device, with F, I and W apart.
pub(crate) fn works_ns(tables: &Tables) -> Vec<u64> {
    loads(tables).into_iter().map(|load| load.saturating_mul(tables.microbatches as u64)).collect()
}

/// The busiest device's load.
pub(crate) fn period_ns(tables: &Tables) -> i64 {
    // A key grows with the microbatch: keep the product within 63 bits.
    signed(loads(tables).into_iter().max().unwrap_or(0)).clamp(1, FAR / (tables.microbatches as i64 + 1))
}

/// Keys by time: a microbatch's own path, stretched.
pub(crate) fn by_time(tables: &Tables, stretch: Stretch) -> Recipe {
    let count = tables.stages();
    let period_ns = period_ns(tables);
    let mut at = 0_i64;
    let mut forward = vec![0; count];
    for (stage, forward) in forward.iter_mut().enumerate() {
        *forward = at;
        let step = signed(tables.cost[stage].ns[0].saturating_add(tables.onward[stage].delay_ns()));
        at = at.saturating_add(step.saturating_mul(stretch.forward) / 100).min(FAR);
    }
    let mut backward = vec![0; count];
    for stage in (0..count).rev() {
        backward[stage] = at;
        let step = signed(tables.cost[stage].ns[1].saturating_add(tables.back[stage].delay_ns()));
        at = at.saturating_add(step.saturating_mul(stretch.backward) / 100).min(FAR);
    }
    let weight = backward.iter().map(|at| at.saturating_add(period_ns.saturating_mul(stretch.weight) / 100)).collect();
    Recipe {
        period_ns,
        forward,
        backward,
        weight,
        cap: vec![NO_CAP; count],
        hold: vec![NO_CAP; count],
        fused: vec![false; count],
        impatience: 100,
        weight_last: stretch.weight >= 1000,
        overrun: 0,
    }
}

/// Backward first, then forward; `cap` forwards without their I on each stage.
pub(crate) fn backward_first(tables: &Tables, cap: impl Fn(usize) -> u32) -> Recipe {
    let count = tables.stages();
    let period_ns = period_ns(tables);
    Recipe {
        period_ns,
        // Of a device's stages the later one's forward comes first: it ends a microbatch sooner.
        forward: (0..count).map(|stage| -(stage as i64)).collect(),
        backward: (0..count).map(|stage| -FAR + stage as i64).collect(),
        weight: vec![FAR; count],
        cap: (0..count).map(|stage| cap(stage).max(1)).collect(),
        hold: vec![NO_CAP; count],
        fused: vec![false; count],
        impatience: 0,
        weight_last: true,
        overrun: 0,
    }
}

/// What a recipe is made from, whatever the shape: survives a change of partition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Genes {
    pub(crate) style: Style,
    pub(crate) fused: bool,
    pub(crate) impatience: i64,
    pub(crate) weight_last: bool,
    pub(crate) overrun: u64,
}

/// Family of keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Style {
    /// [`by_time`].
    Time(Stretch),
    /// [`backward_first`], with so many percent of `S - s` forwards without their I.
    BackwardFirst(u32),
}

impl Genes {
    const fn time(forward: i64, backward: i64, weight: i64) -> Self {
        let style = Style::Time(Stretch { forward, backward, weight });
        Self { style, fused: false, impatience: 100, weight_last: weight >= 1000, overrun: 0 }
    }

    const fn backward_first(percent: u32) -> Self {
        Self { style: Style::BackwardFirst(percent), fused: false, impatience: 0, weight_last: true, overrun: 0 }
    }

    const fn busy(self, overrun: u64) -> Self {
        Self { overrun, ..self }
    }

    const fn fused(self) -> Self {
        Self { fused: true, ..self }
    }

    /// To try on any shape, the most promising first.
    pub(crate) const STANDARD: [Genes; 22] = [
        Genes::time(100, 100, 1000).busy(100),
        Genes::backward_first(100),
        Genes::time(200, 200, 1000).busy(100),
        // For several passes where memory binds: few microbatches begun early, I long waited for.
        Genes::time(100, 450, 200).busy(60),
        Genes::time(40, 450, 60).busy(60),
        Genes::time(100, 100, 1000),
        Genes::backward_first(150).busy(100),
        Genes::time(150, 150, 1000).busy(50),
        Genes::backward_first(100).fused(),
        Genes::time(300, 300, 1000).busy(100),
        Genes::time(150, 150, 1000),
        Genes::backward_first(150),
        Genes::time(100, 100, 50),
        Genes::time(200, 200, 1000),
        Genes::time(150, 150, 1000).busy(100),
        Genes::time(100, 100, 1000).fused(),
        Genes::time(130, 130, 100),
        Genes::time(70, 100, 1000),
        Genes::time(300, 200, 1000),
        Genes::time(100, 150, 1000),
        Genes::backward_first(200),
        Genes::backward_first(70),
    ];

    /// Others near these.
    pub(crate) fn mutated(self, random: &mut Random) -> Self {
        let mut next = self;
        match random.below(9) {
            0 => next = Self::STANDARD[random.below(Self::STANDARD.len())],
            1 => next.impatience = [0, 50, 100, 200, 400][random.below(5)],
            2 => next.weight_last = !next.weight_last,
            3 => next.fused = !next.fused,
            4 => next.overrun = [0, 30, 60, 100][random.below(4)],
            _ => match &mut next.style {
                Style::Time(stretch) => {
                    let gene = [&mut stretch.forward, &mut stretch.backward, &mut stretch.weight];
                    let [forward, backward, weight] = gene;
                    let gene = [forward, backward, weight].into_iter().nth(random.below(3)).expect("three genes");
                    *gene = (*gene * (70 + random.below(61) as i64) / 100 + random.below(3) as i64).clamp(1, 2000);
                }
                Style::BackwardFirst(percent) => *percent = (*percent + random.below(60) as u32).clamp(60, 330) - 30,
            },
        }
        next
    }

    /// The recipe for a shape.
    pub(crate) fn recipe(self, tables: &Tables) -> Recipe {
        let count = tables.stages();
        let mut recipe = match self.style {
            Style::Time(stretch) => by_time(tables, stretch),
            Style::BackwardFirst(percent) => {
                backward_first(tables, |stage| (((count - stage) * percent as usize).div_ceil(100)) as u32)
            }
        };
        recipe.fused.fill(self.fused);
        recipe.impatience = self.impatience;
        recipe.weight_last = self.weight_last;
        recipe.overrun = self.overrun;
        recipe
    }
}
