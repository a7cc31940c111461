//! The published orders as programs over the stages of any placement.
//!
//! Notation: S stages in model order, M microbatches; on each device the stages it holds.

use crate::program::{B, F, I, Op, Programs, W, kind, microbatch, op, stage};
use crate::shape::Tables;

/// All forwards, stage by stage, then all backwards in reverse.
pub(crate) fn gpipe(tables: &Tables) -> Programs {
    let program = |local: &Vec<u32>| {
        let all = |kind, stage: u32| (0..tables.microbatches).map(move |m| op(kind, stage as usize, m));
        let forwards = local.iter().flat_map(move |&stage| all(F, stage));
        forwards.chain(local.iter().rev().flat_map(move |&stage| all(B, stage))).collect()
    };
    tables.local.iter().map(program).collect()
}

/// One forward, one backward: stage s first runs `S - s` forwards. One stage per device.
pub(crate) fn one_f_one_b(tables: &Tables) -> Programs {
    let (stages, microbatches) = (tables.stages(), tables.microbatches);
    let program = |local: &Vec<u32>| match local.first() {
        None => Vec::new(),
        Some(&stage) => alternate(stage as usize, microbatches, stages - stage as usize),
    };
    tables.local.iter().map(program).collect()
}

fn alternate(stage: usize, microbatches: usize, ahead: usize) -> Vec<Op> {
    let mut program = Vec::with_capacity(2 * microbatches);
    let ahead = ahead.min(microbatches);
    program.extend((0..ahead - 1).map(|m| op(F, stage, m)));
    for m in 0..microbatches {
        if m + ahead - 1 < microbatches {
            program.push(op(F, stage, m + ahead - 1));
        }
        program.push(op(B, stage, m));
    }
    program
}

/// ZB-H1 and ZB-H2, one stage per device: 1F1B with `ahead` forwards first, and W `delay` microbatches behind its I, so
/// that every stage holds as many microbatches as the first.
pub(crate) fn zero_bubble(tables: &Tables, ahead_and_delay: impl Fn(usize) -> (usize, usize)) -> Programs {
    let microbatches = tables.microbatches;
    let program = |local: &Vec<u32>| {
        let Some(&stage) = local.first() else { return Vec::new() };
        let stage = stage as usize;
        let (ahead, delay) = ahead_and_delay(stage);
        let ahead = ahead.min(microbatches);
        let mut program: Vec<Op> = (0..ahead - 1).map(|m| op(F, stage, m)).collect();
        for m in 0..microbatches {
            if m + ahead - 1 < microbatches {
                program.push(op(F, stage, m + ahead - 1));
            }
            program.push(op(I, stage, m));
            if m >= delay {
                program.push(op(W, stage, m - delay));
            }
        }
        program.extend((microbatches.saturating_sub(delay)..microbatches).map(|m| op(W, stage, m)));
        program
    };
    tables.local.iter().map(program).collect()
}

/// ZB-V over stages that lie in a V, in the order of the Zero Bubble paper: the first device forwards as many microbatches
/// of its first stage as fill the way down and up, each device then works on both of its stages in turn, I and W after
/// each F; behind the last F, I goes first and what W is left closes the gaps.
pub(crate) fn zb_v(tables: &Tables) -> Programs {
    let depth = tables.stages() / 2;
    // With fewer the order is that of as many, without those that are not there.
    let most = tables.microbatches.max(2 * depth - 1);
    let mut programs = vec![Vec::new(); tables.devices];
    for rank in 0..depth {
        let stages = [rank, 2 * depth - 1 - rank];
        // By stage: the next microbatch of each kind.
        let mut next = [[0_usize; 3]; 2];
        let program: &mut Vec<Op> = &mut programs[tables.device[rank] as usize];
        let mut run = |next: &mut [[usize; 3]; 2], arm: usize, kinds: &[u32]| {
            for &kind in kinds {
                let at = &mut next[arm][kind as usize];
                if *at < tables.microbatches {
                    program.push(op(kind, stages[arm], *at));
                }
                *at += 1;
            }
        };
        (0..2 * (depth - rank) - 1).for_each(|_| run(&mut next, 0, &[F]));
        for _ in 0..rank {
            run(&mut next, 1, &[F]);
            run(&mut next, 0, &[F]);
        }
        (0..depth - rank).for_each(|_| run(&mut next, 1, &[F, I, W]));
        while next[1][0] < next[0][0] || next[0][0] < most {
            if next[0][0] < most {
                run(&mut next, 0, &[F]);
            }
            run(&mut next, 0, &[I, W]);
            run(&mut next, 1, &[F, I, W]);
        }
        for _ in 0..rank {
            run(&mut next, 0, &[I]);
            run(&mut next, 1, &[I]);
        }
        (0..depth - rank).for_each(|_| run(&mut next, 0, &[I, W]));
        for arm in [1, 0] {
            while next[arm][2] < next[arm][1] {
                run(&mut next, arm, &[W]);
            }
        }
    }
    programs
}

/// Interleaved 1F1B: the k-th stage of device d is `k x p + d`; microbatches go in groups of p. The order is that of
/// Megatron-LM, with a last group that may be short.
pub(crate) fn interleaved(tables: &Tables) -> Programs {
    let p = tables.local.iter().filter(|local| !local.is_empty()).count();
    let rounds = tables.local.iter().map(Vec::len).max().unwrap_or(0);
    let microbatches = tables.microbatches;
    let mut programs = vec![Vec::new(); tables.devices];
    for (device, local) in tables.local.iter().enumerate() {
        let Some(&first) = local.first() else { continue };
        let sequence = |backward: bool| {
            let mut sequence = Vec::with_capacity(local.len() * microbatches);
            for group in (0..microbatches).step_by(p) {
                for turn in 0..local.len() {
                    let turn = if backward { local.len() - 1 - turn } else { turn };
                    let kind = if backward { B } else { F };
                    let members = group..(group + p).min(microbatches);
                    sequence.extend(members.map(|m| op(kind, local[turn] as usize, m)));
                }
            }
            sequence
        };
        let (forwards, backwards) = (sequence(false), sequence(true));
        let rank = (first as usize).min(p - 1);
        let ahead = ((p - rank - 1) * 2 + (rounds - 1) * p + 1).min(forwards.len());
        let program = &mut programs[device];
        program.extend(&forwards[..ahead - 1]);
        for (at, &backward) in backwards.iter().enumerate() {
            program.extend(forwards.get(at + ahead - 1));
            program.push(backward);
        }
    }
    programs
}

/// Joins I and W that follow each other into B wherever `join` says so.
pub(crate) fn fuse(program: &mut Vec<Op>, mut join: impl FnMut(Op) -> bool) {
    let mut kept = 0;
    let mut at = 0;
    while at < program.len() {
        let here = program[at];
        let follows =
            program.get(at + 1).is_some_and(|&next| kind(here) == I && next == op(W, stage(here), microbatch(here)));
        if follows && join(here) {
            program[kept] = op(B, stage(here), microbatch(here));
            at += 2;
        } else {
            program[kept] = here;
            at += 1;
        }
        kept += 1;
    }
    program.truncate(kept);
}
