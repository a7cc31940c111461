//! Problems so small that all their shapes can be looked at: where memory binds, the best one may lie far from any start.

use super::judge::Judge;
use super::portfolio::Pool;
use crate::recipe::Genes;
use crate::schedule::one_at_a_time;
use crate::shape::{Shape, Slot, Tables};

/// Shapes that are looked at, at most.
const SHAPES_MAX: usize = 1 << 14;
/// Recipes by which each is listed.
const RECIPES: usize = 3;

/// Lists every shape that may be better than the best so far, the most promising first.
pub(super) fn offer(judge: &mut Judge, pool: &mut Pool) {
    let Some(number) = number(judge) else { return };
    let mut ranked: Vec<(f64, Shape)> = Vec::new();
    for at in 0..number {
        if let Some(shape) = shape(judge, at) {
            ranked.push((judge.floor_ns(&shape) + judge.charge(&shape), shape));
        }
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    judge.worth = f64::INFINITY;
    for (floor, shape) in ranked {
        if judge.done() {
            return;
        }
        // What no listing admits may still fit, one microbatch after the other.
        if floor.is_finite() && pool.members.first().is_some_and(|best| floor >= best.value) {
            continue;
        }
        // The least memory: what a listing admits leaves room for any order.
        let alone = one_at_a_time(&Tables::new(judge.costs, &shape));
        let listed = judge.best_listing(&shape, &Genes::STANDARD[..RECIPES]);
        for candidate in listed.into_iter().chain(judge.given(&shape, alone, Genes::STANDARD[0])) {
            pool.offer(judge, candidate);
        }
    }
}

/// How many there are, if few enough: a device for each layer, and whether it is recomputed, and whether a new stage begins
/// with it where the device stays.
fn number(judge: &Judge) -> Option<usize> {
    let devices = judge.rules.usable.len();
    let number = (1..judge.costs.layers).try_fold(2 * devices, |number, _| number.checked_mul(4 * devices))?;
    (number <= SHAPES_MAX).then_some(number)
}

/// The one of a number; none if no plan may have it, or another number is the same.
fn shape(judge: &Judge, mut at: usize) -> Option<Shape> {
    let usable = &judge.rules.usable;
    let mut take = |of: usize| {
        let digit = at % of;
        at /= of;
        digit
    };
    let mut shape = Shape::new(judge.costs.layers, Vec::new());
    for layer in 0..judge.costs.layers {
        let device = usable[take(usable.len())];
        shape.recompute[layer] = take(2) == 1;
        let begins = layer > 0 && take(2) == 1;
        match shape.stages.last_mut() {
            Some(slot) if slot.device == device && !begins => slot.end += 1,
            Some(slot) if slot.device != device && begins => return None,
            _ => shape.stages.push(Slot { start: layer as u32, end: layer as u32 + 1, device }),
        }
    }
    judge.rules.permits(&shape).then_some(shape)
}
