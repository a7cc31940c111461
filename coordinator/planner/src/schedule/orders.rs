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
