//! Two stages per device in a V, from one repeated block (Qi et al. 2024, "Pipeline Parallelism with Controllable
//! Memory").
//!
//! ```text
//!   device 0   F0 .  .  .  .  .  .  F1 B1 .  .  .  .  .  .  B0      slopes: time between neighbours of one
//!   device 1   .  F0 .  .  .  .  F1 .  .  B1 .  .  .  .  B0 .       descent or ascent; gaps: time at the
//!   device 2   .  .  F0 .  .  F1 .  .  .  .  B1 .  .  B0 .  .       three turning points
//! ```
//!
//! With unit times for F, I and W each device has six units of work per microbatch, so a block may repeat every six
//! units if its four F and I fall on different residues of six on every device; each W takes the next free residue.
//! Memory is the sum of the lifetimes over six; it is the same on all devices if both arms of the V sum to the same
//! slope K: 2 gives a third of the memory of 1F1B, 3 a half, 6 all of it. Among the blocks of a K the shortest is taken.

/// Units of work on a device per microbatch.
pub(crate) const PERIOD: usize = 6;

/// When each instruction of one microbatch starts, in units; indexed by stage `0..2p`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) forward: Vec<usize>,
    pub(crate) backward: Vec<usize>,
    pub(crate) weight: Vec<usize>,
}

/// The shortest block over `p` devices whose slopes sum to `k` on both arms; `None` if there is none.
pub(crate) fn v(p: usize, k: usize) -> Option<Block> {
    let mut best: Option<(usize, Block)> = None;
    for down in 1..k {
        for up in 1..k {
            for gaps in 0..PERIOD * PERIOD * PERIOD {
                let gaps = [gaps % PERIOD + 1, gaps / PERIOD % PERIOD + 1, gaps / PERIOD / PERIOD + 1];
                let (first, second) = ([down, up], [k - up, k - down]);
                let start = [0, 0, 0, 0];
                let mut at = start;
                at[1] = at[0] + first[0] * (p - 1) + gaps[0];
                at[2] = at[1] + first[1] * (p - 1) + gaps[1];
                at[3] = at[2] + second[0] * (p - 1) + gaps[2];
                let length = at[3] + second[1] * (p - 1);
                if best.as_ref().is_some_and(|(held, _)| *held <= length) {
                    continue;
                }
                if let Some(block) = build(p, at, first, second) {
                    best = Some((length, block));
                }
            }
        }
    }
    best.map(|(_, block)| block)
}

fn build(p: usize, at: [usize; 4], first: [usize; 2], second: [usize; 2]) -> Option<Block> {
    let mut block = Block { forward: vec![0; 2 * p], backward: vec![0; 2 * p], weight: vec![0; 2 * p] };
    for device in 0..p {
        let (near, far) = (device, p - 1 - device);
        let times =
            [at[0] + first[0] * near, at[1] + first[1] * far, at[2] + second[0] * near, at[3] + second[1] * far];
        let mut taken = [false; PERIOD];
        for time in times {
            if std::mem::replace(&mut taken[time % PERIOD], true) {
                return None;
            }
        }
        let mut free = |after: usize| {
            let time = (after + 1..=after + PERIOD).find(|time| !taken[time % PERIOD])?;
            taken[time % PERIOD] = true;
            Some(time)
        };
        let (low, high) = (device, 2 * p - 1 - device);
        block.forward[low] = times[0];
        block.forward[high] = times[1];
        block.backward[high] = times[2];
        block.backward[low] = times[3];
        block.weight[high] = free(times[2])?;
        block.weight[low] = free(times[3])?;
    }
    Some(block)
}
