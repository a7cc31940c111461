//! Lists programs greedily: every device, when free, takes the admitted instruction of the lowest key.
//!
//! A key is `microbatch x period + offset(stage, action)`; a recipe is a set of them with caps on what is in flight. A
//! device may wait for a better instruction that is on its way, and fills the wait with what ends about then, W last.
//!
//! Memory, exact and free of deadlock: on a device let j be the next microbatch that its last stage will forward. A
//! forward of a microbatch beyond j is admitted only if all started ones beyond j, itself, and one whole microbatch
//! with the highest rise fit together; every forward also needs room for itself and the highest rise beside what lives
//! now. So the oldest unfinished microbatch can always go on. What W would free counts as live, and W runs when the
//! best instruction lacks just that.
//!
//! 1. A listing never exceeds a device's memory, and ends for every shape that [`admissible`] accepts.
//! 2. F, I and W of a stage each ascend in microbatch.

use crate::program::{B, F, I, Op, Programs, W, microbatch, op};
use crate::shape::{Hop, Tables};
use crate::wakes::Wakes;

const UNKNOWN: u64 = u64::MAX;

/// How to list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recipe {
    /// Added to a key per microbatch.
    pub(crate) period_ns: i64,
    /// Offsets per stage.
    pub(crate) forward: Vec<i64>,
    pub(crate) backward: Vec<i64>,
    pub(crate) weight: Vec<i64>,
    /// Forwards of a stage without their I, at least 1.
    pub(crate) cap: Vec<u32>,
    /// Forwards of a stage without their W, at least 1.
    pub(crate) hold: Vec<u32>,
    /// I and W in one.
    pub(crate) fused: Vec<bool>,
    /// Key added per nanosecond of waiting, in percent.
    pub(crate) impatience: i64,
    /// W is a filler, whatever its key.
    pub(crate) weight_last: bool,
    /// How much of a filler may reach beyond the wait that it fills, in percent: 0 keeps to the keys, 100 never idles.
    pub(crate) overrun: u64,
}

/// One whole microbatch with the highest rise fits on every device.
pub(crate) fn admissible(tables: &Tables) -> bool {
    (0..tables.devices).all(|device| {
        let (whole, rise) = whole_and_rise(tables, device);
        u128::from(tables.base_bytes[device]) + u128::from(whole) + u128::from(rise)
            <= u128::from(tables.limit_bytes[device])
    })
}

fn whole_and_rise(tables: &Tables, device: usize) -> (u64, u64) {
    let local = || tables.local[device].iter().map(|&stage| &tables.cost[stage as usize]);
    let whole = local().fold(0_u64, |sum, cost| sum.saturating_add(cost.stash_bytes));
    let rise = local().map(|cost| cost.rise_bytes.saturating_add(cost.workspace_bytes)).max().unwrap_or(0);
    (whole, rise)
}

/// What a device is to do next.
enum Choice {
    Run(Op),
    /// Nothing before this time, or before something arrives.
    Wait(u64),
}

#[derive(Clone, Copy)]
struct Candidate {
    key: i64,
    op: Op,
    ready: u64,
    /// It lacks memory, or a place under `hold`, that W would free.
    short: bool,
}

/// What a stage could do next: when its input is there, `UNKNOWN` if it is not on its way, and the key.
#[derive(Clone, Copy, Debug)]
struct Front {
    forward_ns: u64,
    forward_key: i64,
    /// Fewer forwards are without their I than the cap.
    is_open: bool,
    backward_ns: u64,
    backward_key: i64,
    /// `i64::MAX` without a W to do.
    weight_key: i64,
}

/// Buffers of a listing, and its result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) programs: Programs,
    /// End of each device's last instruction.
    pub(crate) free: Vec<u64>,
    forward_ready: Vec<u64>,
    backward_ready: Vec<u64>,
    /// Per stage: how many of F, I, W have started.
    forwards: Vec<u32>,
    backwards: Vec<u32>,
    weights: Vec<u32>,
    fronts: Vec<Front>,
    wakes: Wakes,
    /// Per device.
    left_ns: Vec<u64>,
    live: Vec<i64>,
    room: Vec<i64>,
    whole: Vec<i64>,
    rise: Vec<i64>,
    /// All microbatches at once would fit.
    is_ample: Vec<bool>,
    pair_free: Vec<u64>,
}

fn refill<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    buffer.clear();
    buffer.resize(len, value);
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Listing {
    /// Lists; the end of the last instruction, `None` where the recipe can't go on or ends after `give_up_ns`.
    pub(crate) fn run(&mut self, tables: &Tables, recipe: &Recipe, give_up_ns: u64) -> Option<u64> {
        self.prepare(tables, recipe);
        let per_stage = |stage: usize| if recipe.fused[stage] { 2 } else { 3 };
        let mut left: usize = (0..tables.stages()).map(|stage| per_stage(stage) * tables.microbatches).sum();
        self.left_ns.clear();
        self.left_ns.extend(tables.local.iter().map(|local| {
            let work = |&stage: &u32| {
                let ns = &tables.cost[stage as usize].ns;
                let each = if recipe.fused[stage as usize] { [ns[0], ns[3], 0] } else { [ns[0], ns[1], ns[2]] };
                each.into_iter().fold(0, u64::saturating_add).saturating_mul(tables.microbatches as u64)
            };
            local.iter().map(work).fold(0, u64::saturating_add)
        }));
        while left > 0 {
            let device = self.wakes.first();
            let now = self.wakes.of(device);
            if now >= give_up_ns {
                return None;
            }
            match self.choose(tables, recipe, device, now) {
                Choice::Run(op) => {
                    // What is still to do on this device does not end in time.
                    if now.saturating_add(self.left_ns[device]) > give_up_ns {
                        return None;
                    }
                    self.left_ns[device] = self.left_ns[device].saturating_sub(tables.ns(op));
                    self.execute(tables, recipe, device, now, op);
                    left -= 1;
                }
                Choice::Wait(until) => self.wakes.set(device, until),
            }
        }
        self.free.iter().copied().max()
    }

    fn prepare(&mut self, tables: &Tables, recipe: &Recipe) {
        let (stages, microbatches, devices) = (tables.stages(), tables.microbatches, tables.devices);
        refill(&mut self.forward_ready, stages * microbatches, UNKNOWN);
        refill(&mut self.backward_ready, stages * microbatches, UNKNOWN);
        self.forward_ready[..microbatches].fill(0);
        refill(&mut self.forwards, stages, 0);
        refill(&mut self.backwards, stages, 0);
        refill(&mut self.weights, stages, 0);
        self.fronts.clear();
        self.fronts.extend((0..stages).map(|stage| Front {
            forward_ns: if stage == 0 { 0 } else { UNKNOWN },
            forward_key: recipe.forward[stage],
            is_open: true,
            backward_ns: UNKNOWN,
            backward_key: recipe.backward[stage],
            weight_key: i64::MAX,
        }));
        refill(&mut self.free, devices, 0);
        self.wakes.reset(devices);
        refill(&mut self.live, devices, 0);
        refill(&mut self.pair_free, devices * devices, 0);
        self.room.clear();
        self.whole.clear();
        self.rise.clear();
        self.is_ample.clear();
        self.programs.resize(devices, Vec::new());
        for device in 0..devices {
            self.programs[device].clear();
            let (whole, rise) = whole_and_rise(tables, device);
            self.whole.push(signed(whole));
            self.rise.push(signed(rise));
            self.room.push(signed(tables.limit_bytes[device]).saturating_sub(signed(tables.base_bytes[device])));
            // Where layers are recomputed, what W needs may be more than what F left.
            let held = |&stage: &u32| {
                let cost = &tables.cost[stage as usize];
                signed(cost.stash_bytes.max(cost.gradient_bytes)).saturating_mul(microbatches as i64)
            };
            let most = tables.local[device].iter().map(held).fold(signed(rise), i64::saturating_add);
            self.is_ample.push(most <= self.room[device]);
        }
    }

    fn choose(&self, tables: &Tables, recipe: &Recipe, device: usize, now: u64) -> Choice {
        let mut best: Option<Candidate> = None;
        let mut filler: Option<Candidate> = None;
        let mut earliest = UNKNOWN;
        let mut weight: Option<Candidate> = None;
        let mut offer = |candidate: Candidate| {
            if candidate.ready > now {
                earliest = earliest.min(candidate.ready);
            } else if !candidate.short && filler.is_none_or(|held| candidate.key < held.key) {
                filler = Some(candidate);
            }
            let mut key = candidate.key;
            if candidate.ready > now {
                let waits = (candidate.ready - now).min(1 << 50) as i64;
                key = key.saturating_add(waits.saturating_mul(recipe.impatience) / 100);
            }
            if best.is_none_or(|held| key < held.key) {
                best = Some(Candidate { key, ..candidate });
            }
        };
        let mut ahead = None;
        for &local in &tables.local[device] {
            let stage = local as usize;
            let front = self.fronts[stage];
            if front.forward_ns != UNKNOWN
                && front.is_open
                && let Some(short) = self.admits(tables, recipe, device, stage, &mut ahead)
            {
                let op = op(F, stage, self.forwards[stage] as usize);
                offer(Candidate { key: front.forward_key, op, ready: front.forward_ns, short });
            }
            if front.backward_ns != UNKNOWN {
                let short = !self.is_ample[device] && !self.fits_backward(tables, device, stage);
                let op = op(if recipe.fused[stage] { B } else { I }, stage, self.backwards[stage] as usize);
                offer(Candidate { key: front.backward_key, op, ready: front.backward_ns, short });
            }
            if front.weight_key < weight.map_or(i64::MAX, |held| held.key) && self.has_room(tables, device, stage) {
                let op = op(W, stage, self.weights[stage] as usize);
                weight = Some(Candidate { key: front.weight_key, op, ready: 0, short: false });
            }
        }
        if let Some(candidate) = weight.filter(|_| !recipe.weight_last) {
            offer(candidate);
        }
        let Some(best) = best else {
            return weight.map_or(Choice::Wait(UNKNOWN), |weight| Choice::Run(weight.op));
        };
        if best.short {
            // Only W makes room on this device; without one, what is in flight elsewhere must come back first.
            if let Some(weight) = weight {
                return Choice::Run(weight.op);
            }
            return filler.map_or(Choice::Wait(earliest), |filler| Choice::Run(filler.op));
        }
        if best.ready <= now {
            return Choice::Run(best.op);
        }
        let wait = u128::from(best.ready - now) * 100;
        let ends_in_time = |candidate: &Candidate| {
            u128::from(tables.ns(candidate.op)) * u128::from(100 - recipe.overrun.min(100)) <= wait
        };
        match filler.filter(ends_in_time).or(weight.filter(ends_in_time)) {
            Some(filler) => Choice::Run(filler.op),
            None => Choice::Wait(earliest),
        }
    }

    /// Memory lets the next forward of a stage begin: none if not, else whether it lacks what W would free.
    fn admits(
        &self,
        tables: &Tables,
        recipe: &Recipe,
        device: usize,
        stage: usize,
        ahead: &mut Option<i64>,
    ) -> Option<bool> {
        let mut fits = true;
        if !self.is_ample[device] {
            let stash = signed(tables.cost[stage].stash_bytes);
            let local = &tables.local[device];
            let last = *local.last().expect("the stage itself is local") as usize;
            let oldest = self.forwards[last];
            if self.forwards[stage] > oldest {
                // The same for all stages of the device.
                let ahead = *ahead.get_or_insert_with(|| self.ahead(tables, device, oldest));
                let needs =
                    ahead.saturating_add(stash).saturating_add(self.whole[device]).saturating_add(self.rise[device]);
                if needs > self.room[device] {
                    return None;
                }
            }
            fits = self.live[device].saturating_add(stash).saturating_add(self.rise[device]) <= self.room[device];
        }
        let held = !recipe.fused[stage] && self.forwards[stage] - self.weights[stage] >= recipe.hold[stage];
        let is_short = !fits || held;
        if is_short && self.pending_weights(device, tables, recipe) == 0 {
            return None;
        }
        Some(is_short)
    }

    /// Bytes of the microbatches that a device's stages have started beyond the next one of its last stage.
    fn ahead(&self, tables: &Tables, device: usize, oldest: u32) -> i64 {
        tables.local[device]
            .iter()
            .map(|&other| {
                let ahead = i64::from(self.forwards[other as usize].saturating_sub(oldest + 1));
                signed(tables.cost[other as usize].stash_bytes).saturating_mul(ahead)
            })
            .fold(0, i64::saturating_add)
    }

    /// W of a stage fits now. That of the last I or of any F since always does, so something can go on.
    fn has_room(&self, tables: &Tables, device: usize, stage: usize) -> bool {
        let workspace = signed(tables.cost[stage].workspace_bytes);
        self.is_ample[device] || self.live[device].saturating_add(workspace) <= self.room[device]
    }

    fn pending_weights(&self, device: usize, tables: &Tables, recipe: &Recipe) -> u32 {
        tables.local[device]
            .iter()
            .filter(|&&stage| !recipe.fused[stage as usize])
            .map(|&stage| self.backwards[stage as usize] - self.weights[stage as usize])
            .sum()
    }

    fn fits_backward(&self, tables: &Tables, device: usize, stage: usize) -> bool {
        let cost = &tables.cost[stage];
        let needs = signed(cost.rise_bytes).saturating_add(signed(cost.workspace_bytes));
        self.live[device].saturating_add(needs) <= self.room[device]
    }

    fn execute(&mut self, tables: &Tables, recipe: &Recipe, device: usize, now: u64, op: Op) {
        let (kind, stage, microbatch) = (crate::program::kind(op), crate::program::stage(op), microbatch(op));
        let end = now.saturating_add(tables.ns(op)).min(UNKNOWN - 1);
        self.programs[device].push(op);
        self.free[device] = end;
        self.wakes.set(device, end);
        self.live[device] += crate::memory::step(tables, op).1;
        let first = stage * tables.microbatches;
        let hop = match kind {
            F => {
                self.forwards[stage] += 1;
                if stage + 1 == tables.stages() {
                    self.backward_ready[first + microbatch] = end;
                }
                &tables.onward[stage]
            }
            W => {
                self.weights[stage] += 1;
                self.turn_weight(recipe, stage);
                return;
            }
            _ => {
                self.backwards[stage] += 1;
                &tables.back[stage]
            }
        };
        self.turn(tables, recipe, stage, kind == F);
        let arrival = match hop.pair {
            Hop::END => return,
            Hop::LOCAL => end,
            pair => {
                let pair = &mut self.pair_free[pair as usize];
                *pair = end.max(*pair).saturating_add(hop.transfer_ns);
                pair.saturating_add(hop.latency_ns).min(UNKNOWN - 1)
            }
        };
        if kind == F {
            let next = stage + 1;
            self.forward_ready[first + tables.microbatches + microbatch] = arrival;
            if self.forwards[next] as usize == microbatch {
                self.fronts[next].forward_ns = arrival;
            }
        } else {
            let next = stage - 1;
            self.backward_ready[first - tables.microbatches + microbatch] = arrival;
            if self.backwards[next] as usize == microbatch && self.backwards[next] < self.forwards[next] {
                self.fronts[next].backward_ns = arrival;
            }
        }
        let to = hop.to as usize;
        self.wakes.set(to, self.wakes.of(to).min(arrival.max(self.free[to])));
    }

    /// A stage has begun an F, or else an I or B: what it could do next.
    fn turn(&mut self, tables: &Tables, recipe: &Recipe, stage: usize, is_forward: bool) {
        let first = stage * tables.microbatches;
        let (forwards, backwards) = (self.forwards[stage], self.backwards[stage]);
        let front = &mut self.fronts[stage];
        front.is_open = forwards - backwards < recipe.cap[stage];
        if is_forward {
            front.forward_key = front.forward_key.saturating_add(recipe.period_ns);
            let is_left = (forwards as usize) < tables.microbatches;
            front.forward_ns = if is_left { self.forward_ready[first + forwards as usize] } else { UNKNOWN };
        } else {
            front.backward_key = front.backward_key.saturating_add(recipe.period_ns);
        }
        let is_due = backwards < forwards;
        front.backward_ns = if is_due { self.backward_ready[first + backwards as usize] } else { UNKNOWN };
        if !is_forward {
            self.turn_weight(recipe, stage);
        }
    }

    fn turn_weight(&mut self, recipe: &Recipe, stage: usize) {
        let is_due = self.weights[stage] < self.backwards[stage] && !recipe.fused[stage];
        let key = || recipe.weight[stage].saturating_add(recipe.period_ns * i64::from(self.weights[stage]));
        self.fronts[stage].weight_key = if is_due { key() } else { i64::MAX };
    }
}
