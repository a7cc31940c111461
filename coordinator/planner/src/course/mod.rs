//! The times of programs under change: a move of one instruction touches only what it delays or hastens.
//!
//! ```text
//!   shift(device, from, to)  -->  window of the program --> instructions whose inputs changed
//!                                                             |  pop the earliest, time it anew
//!                                                             |  changed? its next on the device, the consumer of its
//!                                                             v  result and the next transfer on its link follow
//!                                                           nothing left: accept, or undo from the journal
//! ```
//!
//! A move that reaches far is cheaper to time by a [`sweep`] over all that follows it: a visit costs several
//! instructions of one.
//!
//! An instruction starts at the later of the end of the one before it and the arrival of its input; a transfer starts
//! at the later of its production and the end of the one before it on its link. Those times are the only fixed point
//! of a set of programs that can run, so the order of visits changes nothing. Programs that wait for one another have
//! none: their times climb until the deadline or the limit of visits ends it, and a sweep does not come to its end.
//!
//! 1. After `shift` returned true and `keep`, or `undo`, times equal those of [`Replay`].
//! 2. Nothing is allocated once the buffers have grown.
//! 3. Programs hold F, I and W; a fused B is none of its business.

mod critical;
mod sweep;

use crate::program::{F, I, NONE, Op, Programs, W, kind, microbatch, op, stage};
use crate::replay::Replay;
use crate::shape::{Hop, Tables};
use sweep::Sweep;

/// Visits after which the rest of a move is swept.
const VISITS_MAX: usize = 24;
/// Swept instructions that cost about as much as a visit.
const SWEPT_PER_VISIT: usize = 4;

/// An instruction's times and neighbours.
#[derive(Clone, Copy, Debug)]
struct Node {
    start_ns: u64,
    /// The link is free again after its result; its end where nothing crosses.
    sent_ns: u64,
    /// The same, from the sweep of the move numbered `swept`.
    fresh_start_ns: u64,
    fresh_sent_ns: u64,
    /// What its device still does after it.
    after_ns: u64,
    position: u32,
    /// The transfer before and after it on its link, where links are occupied at all.
    pair_before: Op,
    pair_next: Op,
    /// Number of the move that wrote it down in the journal, and of the one under which it waits.
    written: u32,
    queued: u32,
    swept: u32,
}

impl Node {
    /// When its link is free again, as the move of a number left it.
    #[inline]
    fn latest_sent_ns(&self, number: u32) -> u64 {
        if self.swept == number { self.fresh_sent_ns } else { self.sent_ns }
    }
}

const NOWHERE: Node = Node {
    start_ns: 0,
    sent_ns: 0,
    fresh_start_ns: 0,
    fresh_sent_ns: 0,
    after_ns: 0,
    position: u32::MAX,
    pair_before: NONE,
    pair_next: NONE,
    written: 0,
    queued: 0,
    swept: 0,
};

/// Times of a set of programs, kept current.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    nodes: Vec<Node>,
    microbatches: usize,
    /// Some transfer takes time: links have queues.
    is_contended: bool,
    /// Some instruction takes no time, so that programs may wait for one another without their times climbing.
    is_instant: bool,
    /// End of each device's last instruction.
    ends: Vec<u64>,
    move_number: u32,
    /// What nodes held before the move.
    journal: Vec<(Op, u64, u64)>,
    /// Instructions to visit, the earliest last; a few per device, so that a sorted list is faster than a heap.
    waiting: Vec<(u64, Op)>,
    /// The open move: device, where the instruction was and where it went.
    open: Option<(usize, usize, usize)>,
    /// Its times are those of the sweep.
    is_swept: bool,
    sweep: Sweep,
    /// Visits of the last move, and instructions swept.
    visits: usize,
    swept: usize,
}

impl Course {
    /// Takes over the times of a replay of the programs that has just run to its end.
    pub(crate) fn adopt(&mut self, tables: &Tables, programs: &Programs, replay: &Replay) {
        self.microbatches = tables.microbatches;
        self.is_contended = tables.onward.iter().chain(&tables.back).any(|hop| hop.transfer_ns > 0);
        self.is_instant = tables.cost.iter().any(|cost| cost.ns[..3].contains(&0));
        self.nodes.clear();
        self.nodes.resize(tables.stages() * tables.microbatches * 4, NOWHERE);
        self.move_number = 0;
        self.open = None;
        self.ends.clear();
        let mut last = vec![(NONE, 0_u64); if self.is_contended { tables.devices * tables.devices } else { 0 }];
        for (device, program) in programs.iter().enumerate() {
            let mut after_ns: u64 = program.iter().map(|&op| tables.ns(op)).fold(0, u64::saturating_add);
            self.ends.push(0);
            for (position, &op) in program.iter().enumerate() {
                let start_ns = replay.start[device][position];
                let end_ns = start_ns.saturating_add(tables.ns(op));
                after_ns = after_ns.saturating_sub(tables.ns(op));
                let mut node = Node { start_ns, sent_ns: end_ns, after_ns, position: position as u32, ..NOWHERE };
                if self.is_contended
                    && let Some(hop) = crossing(tables, op)
                {
                    let (before, free_ns) = std::mem::replace(&mut last[hop.pair as usize], (op, 0));
                    node.pair_before = before;
                    node.sent_ns = end_ns.max(free_ns).saturating_add(hop.transfer_ns);
                    last[hop.pair as usize].1 = node.sent_ns;
                    if before != NONE {
                        self.at_mut(before).pair_next = op;
                    }
                }
                self.ends[device] = end_ns;
                *self.at_mut(op) = node;
            }
        }
    }

    #[inline]
    fn slot(&self, op: Op) -> usize {
        (stage(op) * self.microbatches + microbatch(op)) * 4 + kind(op) as usize
    }

    #[inline]
    fn at(&self, op: Op) -> &Node {
        &self.nodes[self.slot(op)]
    }

    #[inline]
    fn at_mut(&mut self, op: Op) -> &mut Node {
        let slot = self.slot(op);
        &mut self.nodes[slot]
    }

    /// Where an instruction stands in its program.
    pub(crate) fn position(&self, op: Op) -> usize {
        self.at(op).position as usize
    }

    /// End of the last instruction.
    pub(crate) fn end_ns(&self) -> u64 {
        self.ends.iter().copied().max().unwrap_or(0)
    }

    /// Sum over the devices of the end of their last instruction.
    pub(crate) fn ends_sum(&self) -> f64 {
        self.ends.iter().map(|&ns| ns as f64).sum()
    }

    /// Times a program whose instruction at `from` has just gone to `to`; false if it would end after `deadline_ns` or
    /// can't run. Either way the move is open until [`Course::keep`] or [`Course::undo`].
    pub(crate) fn shift(
        &mut self,
        tables: &Tables,
        programs: &Programs,
        device: usize,
        (from, to): (usize, usize),
        deadline_ns: u64,
    ) -> bool {
        self.move_number += 1;
        self.journal.clear();
        self.waiting.clear();
        (self.visits, self.swept, self.is_swept) = (0, 0, false);
        self.open = Some((device, from, to));
        self.place(tables, &programs[device], (from, to));
        // Down the window first: each follows from the one before it. Elsewhere old times tell the order of visits.
        let (low, high) = (from.min(to), from.max(to));
        for &op in programs[device].iter().take(high + 2).skip(low) {
            if !self.visit(tables, programs, op, deadline_ns) {
                return false;
            }
        }
        while let Some((_, op)) = self.waiting.pop() {
            self.visits += 1;
            if !self.visit(tables, programs, op, deadline_ns) {
                return false;
            }
            if self.visits > VISITS_MAX && !self.waiting.is_empty() {
                self.restore();
                self.is_swept = true;
                let first = programs[device][if from < to { to } else { low + 1 }];
                return self.sweep(tables, programs, (device, low, self.at(first).start_ns), deadline_ns);
            }
        }
        true
    }

    /// What the last move cost, in visits.
    pub(crate) fn effort(&self) -> usize {
        self.visits + self.swept / SWEPT_PER_VISIT
    }

    /// A move that ended in time can run.
    pub(crate) fn is_sure(&self) -> bool {
        self.is_swept || !self.is_instant
    }

    /// Keeps the open move.
    pub(crate) fn keep(&mut self, programs: &Programs) {
        self.open = None;
        if self.is_swept {
            self.settle(programs);
        }
    }

    /// Takes back what visits wrote.
    fn restore(&mut self) {
        while let Some((op, start_ns, sent_ns)) = self.journal.pop() {
            let node = self.at_mut(op);
            (node.start_ns, node.sent_ns) = (start_ns, sent_ns);
        }
    }

    /// Undoes the open move; the program must already be back in its old order.
    pub(crate) fn undo(&mut self, tables: &Tables, programs: &Programs) {
        let Some((device, from, to)) = self.open.take() else { return };
        self.restore();
        self.place(tables, &programs[device], (to, from));
        for (device, program) in programs.iter().enumerate() {
            if let Some(&last) = program.last() {
                self.ends[device] = self.at(last).start_ns.saturating_add(tables.ns(last));
            }
        }
    }

    /// Positions, work to come and neighbours on the links in a window whose instruction went from `from` to `to`.
    fn place(&mut self, tables: &Tables, program: &[Op], (from, to): (usize, usize)) {
        let (low, high) = (from.min(to), from.max(to));
        let mut after_ns = match program.get(high + 1) {
            Some(&next) => self.at(next).after_ns.saturating_add(tables.ns(next)),
            None => 0,
        };
        for position in (low..=high).rev() {
            let op = program[position];
            let node = self.at_mut(op);
            node.position = position as u32;
            node.after_ns = after_ns;
            after_ns = after_ns.saturating_add(tables.ns(op));
        }
        let moved = program[to];
        if self.is_contended
            && let Some(hop) = crossing(tables, moved)
        {
            let same = |op: &&Op| crossing(tables, **op).is_some_and(|other| other.pair == hop.pair);
            let passed = if from < to { &program[low..high] } else { &program[low + 1..=high] };
            let (first, last) = (passed.iter().find(same).copied(), passed.iter().rfind(same).copied());
            match (first, last) {
                (Some(_), Some(last)) if from < to => self.relink(moved, last, true),
                (Some(first), Some(_)) => self.relink(moved, first, false),
                _ => {}
            }
        }
    }

    /// Takes a transfer out of its link's queue and puts it behind or before another of the same link.
    fn relink(&mut self, moved: Op, neighbour: Op, behind: bool) {
        let (before, next) = (self.at(moved).pair_before, self.at(moved).pair_next);
        self.join(before, next);
        if behind {
            let next = self.at(neighbour).pair_next;
            self.join(neighbour, moved);
            self.join(moved, next);
        } else {
            let before = self.at(neighbour).pair_before;
            self.join(moved, neighbour);
            self.join(before, moved);
        }
    }

    fn join(&mut self, before: Op, next: Op) {
        if before != NONE {
            self.at_mut(before).pair_next = next;
        }
        if next != NONE {
            self.at_mut(next).pair_before = before;
        }
    }

    #[inline]
    fn push(&mut self, op: Op, key_ns: u64) {
        let number = self.move_number;
        let node = self.at_mut(op);
        if node.queued != number {
            node.queued = number;
            let place = self.waiting.partition_point(|&(other_ns, _)| other_ns > key_ns);
            self.waiting.insert(place, (key_ns, op));
        }
    }

    /// When the input of an instruction arrives; 0 where its own program brings it.
    #[inline]
    fn arrival(&self, tables: &Tables, consumer: Op) -> u64 {
        match producer(tables, consumer) {
            None => 0,
            Some(producer) => {
                let hop = hop_of(tables, producer);
                let sent_ns = self.at(producer).sent_ns;
                if hop.pair == Hop::LOCAL { sent_ns } else { sent_ns.saturating_add(hop.latency_ns).min(u64::MAX - 1) }
            }
        }
    }

    /// Times an instruction anew, and queues what that changes; false if its device can't end in time.
    fn visit(&mut self, tables: &Tables, programs: &Programs, op: Op, deadline_ns: u64) -> bool {
        let device = tables.device[stage(op)] as usize;
        let program = &programs[device];
        let node = *self.at(op);
        self.at_mut(op).queued = 0;
        let position = node.position as usize;
        let free_ns = match position.checked_sub(1) {
            Some(before) => {
                let before = program[before];
                self.at(before).start_ns.saturating_add(tables.ns(before))
            }
            None => 0,
        };
        let start_ns = free_ns.max(self.arrival(tables, op));
        let end_ns = start_ns.saturating_add(tables.ns(op));
        if end_ns.saturating_add(node.after_ns) > deadline_ns {
            return false;
        }
        let hop = crossing(tables, op);
        let sent_ns = match hop {
            Some(hop) if self.is_contended => {
                let free_ns = if node.pair_before == NONE { 0 } else { self.at(node.pair_before).sent_ns };
                end_ns.max(free_ns).saturating_add(hop.transfer_ns)
            }
            _ => end_ns,
        };
        let is_last = position + 1 == program.len();
        if is_last {
            self.ends[device] = end_ns;
        }
        if (start_ns, sent_ns) == (node.start_ns, node.sent_ns) {
            return true;
        }
        if node.written != self.move_number {
            self.journal.push((op, node.start_ns, node.sent_ns));
        }
        let number = self.move_number;
        let now = self.at_mut(op);
        (now.start_ns, now.sent_ns, now.written) = (start_ns, sent_ns, number);
        if start_ns != node.start_ns && !is_last {
            let next = program[position + 1];
            self.push(next, end_ns.max(self.at(next).start_ns));
        }
        if sent_ns != node.sent_ns {
            if let Some(consumer) = consumer(tables, op) {
                self.push(consumer, sent_ns.max(self.at(consumer).start_ns));
            }
            if self.is_contended && hop.is_some() && node.pair_next != NONE {
                let next = node.pair_next;
                self.push(next, self.at(next).start_ns);
            }
        }
        true
    }

    /// Every instruction starts as in a replay.
    pub(crate) fn starts_as(&self, programs: &Programs, replay: &Replay) -> bool {
        let same = |(program, starts): (&Vec<Op>, &Vec<u64>)| {
            program.iter().zip(starts).all(|(&op, &start_ns)| self.at(op).start_ns == start_ns)
        };
        programs.iter().zip(&replay.start).all(same)
    }
}

/// How an instruction's result leaves its device; none for what stays.
#[inline]
fn crossing(tables: &Tables, op: Op) -> Option<&Hop> {
    if kind(op) == W {
        return None;
    }
    let hop = hop_of(tables, op);
    (hop.pair != Hop::LOCAL && hop.pair != Hop::END).then_some(hop)
}

#[inline]
fn hop_of(tables: &Tables, producer: Op) -> &Hop {
    if kind(producer) == F { &tables.onward[stage(producer)] } else { &tables.back[stage(producer)] }
}

/// What an instruction waits for beside its own program.
#[inline]
fn producer(tables: &Tables, consumer: Op) -> Option<Op> {
    let (stage, microbatch) = (stage(consumer), microbatch(consumer));
    match kind(consumer) {
        F => stage.checked_sub(1).map(|before| op(F, before, microbatch)),
        W => None,
        _ => (stage + 1 < tables.stages()).then(|| op(I, stage + 1, microbatch)),
    }
}

#[inline]
fn consumer(tables: &Tables, producer: Op) -> Option<Op> {
    let (stage, microbatch) = (stage(producer), microbatch(producer));
    match kind(producer) {
        F => (stage + 1 < tables.stages()).then(|| op(F, stage + 1, microbatch)),
        W => None,
        _ => stage.checked_sub(1).map(|before| op(I, before, microbatch)),
    }
}
