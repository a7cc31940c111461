//! What waits for what in a recorded iteration, and how long it takes if operations take other times.
//!
//! Everyday picture: each worker is a queue of errands. An errand begins when those before it are done; a hand-over
//! needs both people at the counter, then takes its own time.
//!
//! ```text
//!   worker 0   |F0|send..............|B0|         post -\
//!   worker 1      ....recv|  F0  |send              >-- transfer -- done
//!                                                 post -/
//! ```
//!
//! 1. A worker's program is the order that it recorded: an operation waits for those of its worker that had ended when it
//!    began. So blocking and overlapping sends are told apart by what was seen, not by assumption.
//! 2. A transfer takes the earlier end less the later start of its two sides: waiting for the other side is no work.
//! 3. A worker begins its iteration when it was seen to begin. Between operations it loses no time: what it lost there
//!    is what the replay is off by.
//! 4. Where computes were seen to run while a send before them was under way, nobody waits for a send: one that happened to
//!    be over in time would else hold its worker up in a replay in which the other side is late.
//! 5. Nodes stand in an order in which each comes after all that it waits for.
//!
//! Left out on purpose: what comes before the first and after the last operation of the pipeline (the optimizer,
//! collectives among replicas), of which an iteration here consists of nothing.

use super::Refusal;
use super::recording::{Direction, Iteration, Operation, Recording, Work, Worker};
use std::collections::BTreeMap;

/// An operation that ends this much after the next one began, or half of what it took, has ended before it: recorders
/// are this exact.
const SLACK_NS: u64 = 100_000;
/// Operations of a worker that may overlap one another; those further back have ended.
const OVERLAP_MAX: usize = 256;
/// Ends of a send and its receive on one clock differ by no more than this, where they must be told from others.
const SAME_END_NS: i64 = 2_000_000;
/// Clocks that are no farther apart count as one.
const APART_NS: u64 = 5_000_000;
/// Share of the sends that computes run beside, from which on sends do not block.
const BESIDE_MIN: f64 = 0.1;

/// A directed pair of workers of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub dp_rank: u32,
    pub from: u32,
    pub to: u32,
    pub direction: Direction,
}

/// What a node of the graph stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Node {
    /// A worker begins.
    Begin,
    /// F or B: worker, direction, chunk, microbatch.
    Compute(Worker, Direction, u32, u32),
    /// A tensor on its way, by number of its link; the link of the one that goes the other way in the same batch. A batch is
    /// as slow as the slower of both.
    Transfer(usize, Option<usize>),
    /// All before it have happened.
    Join,
}

/// One iteration as a graph, of nodes that stand for something.
#[derive(Clone, Debug)]
pub(super) struct Graph<N = Node> {
    pub nodes: Vec<N>,
    /// What each took.
    pub ns: Vec<u64>,
    /// By node: end of its part of `before`.
    until: Vec<u32>,
    before: Vec<u32>,
}

impl<N: Copy> Graph<N> {
    /// When the last node ends if each takes `ns` of its number, kind and measured time. `ends` is a buffer.
    pub fn end_ns(&self, ends: &mut Vec<u64>, ns: impl Fn(N, u64) -> u64) -> u64 {
        ends.clear();
        let (mut from, mut last) = (0, 0);
        for (at, &until) in self.until.iter().enumerate() {
            let ready = self.before[from..until as usize].iter().map(|&node| ends[node as usize]).max().unwrap_or(0);
            let end = ready.saturating_add(ns(self.nodes[at], self.ns[at]));
            ends.push(end);
            last = last.max(end);
            from = until as usize;
        }
        last
    }
}

/// The pipeline as all iterations have it: which links there are, and the workers' clocks.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    stages: u32,
    /// More than one chunk of the model a worker: the last stage hands on to the first.
    is_ring: bool,
    /// A worker waits until what it sends has been taken.
    are_sends_blocking: bool,
    index: BTreeMap<Worker, usize>,
    pub links: Vec<Link>,
    /// By worker: what its clock is ahead of the first of its replica.
    ahead_ns: Vec<i64>,
    /// What the clocks of a replica's workers are apart at most.
    apart_ns: u64,
}

/// Number of a link, and a send and its receive on it by their places among the operations.
type Pair = (usize, usize, usize);

impl Pipeline {
    pub fn of(recording: &Recording) -> Pipeline {
        let stages = recording.stages() as u32;
        let chunk = |operation: &Operation| match operation.work {
            Work::Compute { chunk, .. } => chunk,
            Work::Exchange(_) => 0,
        };
        let chunks = recording.iterations.iter().flat_map(|of| &of.operations).map(chunk).max().unwrap_or(0);
        let (index, is_ring) = (recording.index(), chunks >= stages);
        let mut links = Vec::new();
        for worker in &recording.workers {
            for direction in Direction::ALL {
                if let Some(to) = neighbour(worker.stage, direction, stages, is_ring)
                    && index.contains_key(&Worker { dp_rank: worker.dp_rank, stage: to })
                {
                    links.push(Link { dp_rank: worker.dp_rank, from: worker.stage, to, direction });
                }
            }
        }
        links.sort_unstable();
        let (are_sends_blocking, ahead_ns) = (are_sends_blocking(recording), vec![0; recording.workers.len()]);
        let mut pipeline = Pipeline { stages, is_ring, are_sends_blocking, index, links, ahead_ns, apart_ns: 0 };
        pipeline.align(recording);
        let (low, high) = pipeline.ahead_ns.iter().fold((0, 0), |(low, high), &ns| (ns.min(low), ns.max(high)));
        pipeline.apart_ns = high.abs_diff(low);
        pipeline
    }

    /// Sides of sends and receives that have their other one.
    pub fn paired(&self, recording: &Recording) -> usize {
        recording.iterations.iter().map(|iteration| 2 * self.pairs(iteration, &in_order(iteration)).len()).sum()
    }

    /// A send and its receive end together: the median difference of what two clocks say is what they are apart.
    fn align(&mut self, recording: &Recording) {
        let mut apart: BTreeMap<(u32, u32), Vec<i64>> = BTreeMap::new();
        for iteration in &recording.iterations {
            let order = in_order(iteration);
            for (link, send, receive) in self.pairs(iteration, &order) {
                let Link { dp_rank, from, to, .. } = self.links[link];
                // In a ring of two, the way onward is the way back; both say the same of the clocks.
                let difference = iteration.operations[receive].end_ns() - iteration.operations[send].end_ns();
                let (low, sign) = if from < to { (from, 1) } else { (to, -1) };
                if from.abs_diff(to) == 1 {
                    apart.entry((dp_rank, low)).or_default().push(sign * difference);
                }
            }
        }
        for (worker, &at) in &self.index {
            let steps = (0..worker.stage).map(|low| {
                let mut of = apart.get(&(worker.dp_rank, low)).cloned().unwrap_or_default();
                let middle = of.len() / 2;
                if of.is_empty() { 0 } else { *of.select_nth_unstable(middle).1 }
            });
            self.ahead_ns[at] = steps.sum();
        }
    }

    /// Sends with their receives: the first of a link with the first, and so on. Where one side recorded more, those
    /// that end together.
    fn pairs(&self, iteration: &Iteration, order: &[usize]) -> Vec<Pair> {
        let mut sides: BTreeMap<Link, [Vec<usize>; 2]> = BTreeMap::new();
        let workers: Vec<&Worker> = self.index.keys().collect();
        for &at in order {
            let operation = &iteration.operations[at];
            let Work::Exchange(exchange) = operation.work else { continue };
            let &Worker { dp_rank, stage } = workers[operation.worker as usize];
            for direction in Direction::ALL {
                if exchange.sends[direction as usize]
                    && let Some(to) = neighbour(stage, direction, self.stages, self.is_ring)
                {
                    sides.entry(Link { dp_rank, from: stage, to, direction }).or_default()[0].push(at);
                }
                if exchange.receives[direction as usize]
                    && let Some(from) = neighbour(stage, opposite(direction), self.stages, self.is_ring)
                {
                    sides.entry(Link { dp_rank, from, to: stage, direction }).or_default()[1].push(at);
                }
            }
        }
        let mut pairs = Vec::new();
        for (link, [sends, receives]) in &sides {
            let Ok(number) = self.links.binary_search(link) else { continue };
            if sends.len() == receives.len() {
                pairs.extend(sends.iter().zip(receives).map(|(&send, &receive)| (number, send, receive)));
                continue;
            }
            let (mut sends, mut receives) = (sends.iter().peekable(), receives.iter().peekable());
            while let (Some(&&send), Some(&&receive)) = (sends.peek(), receives.peek()) {
                let apart = self.end_ns(iteration, receive) - self.end_ns(iteration, send);
                if apart.abs() <= SAME_END_NS {
                    pairs.push((number, send, receive));
                }
                if apart >= -SAME_END_NS {
                    sends.next();
                }
                if apart <= SAME_END_NS {
                    receives.next();
                }
            }
        }
        pairs
    }

    fn start_ns(&self, iteration: &Iteration, at: usize) -> i64 {
        let operation = &iteration.operations[at];
        operation.start_ns - self.ahead_ns[operation.worker as usize]
    }

    fn end_ns(&self, iteration: &Iteration, at: usize) -> i64 {
        let operation = &iteration.operations[at];
        operation.end_ns() - self.ahead_ns[operation.worker as usize]
    }

    fn first_ns(&self, iteration: &Iteration) -> i64 {
        (0..iteration.operations.len()).map(|at| self.begin_ns(iteration, at)).min().unwrap_or(0)
    }

    /// When an operation started, as its own clock has it where clocks are no farther apart than they can be told to be.
    fn begin_ns(&self, iteration: &Iteration, at: usize) -> i64 {
        if self.apart_ns <= APART_NS { iteration.operations[at].start_ns } else { self.start_ns(iteration, at) }
    }

    /// From the first start to the last end, on one clock.
    pub fn measured_ns(&self, iteration: &Iteration) -> u64 {
        let last = (0..iteration.operations.len()).map(|at| self.end_ns(iteration, at)).max().unwrap_or(0);
        last.saturating_sub(self.first_ns(iteration)).max(0).unsigned_abs()
    }

    /// What the clocks of a replica's workers are apart at most.
    pub fn apart_ns(&self) -> u64 {
        self.apart_ns
    }

    /// What waits for what in an iteration.
    ///
    /// # Errors
    /// Operations that wait for one another: the clocks or the order can't be as recorded.
    pub fn graph(&self, iteration: &Iteration) -> Result<Graph, Refusal> {
        // Operations shorter than what recorders are exact to may look as if they had waited both ways.
        let graph = self.ordered(iteration, SLACK_NS).or_else(|| self.ordered(iteration, 0));
        graph.ok_or(Refusal::Circle { iteration: iteration.number })
    }

    /// The graph if ends are exact to `slack_ns`; none if operations then wait for one another.
    fn ordered(&self, iteration: &Iteration, slack_ns: u64) -> Option<Graph> {
        let order = in_order(iteration);
        let pairs = self.pairs(iteration, &order);
        let workers: Vec<Worker> = self.index.keys().copied().collect();
        let origin_ns = self.first_ns(iteration);
        let mut draft = Draft::default();
        // Each operation is a post, where it begins, and an end; a compute is one node that is both.
        let mut post = vec![0; iteration.operations.len()];
        let mut end = vec![0; iteration.operations.len()];
        for (at, operation) in iteration.operations.iter().enumerate() {
            (post[at], end[at]) = match operation.work {
                Work::Compute { direction, chunk, microbatch } => {
                    let worker = workers[operation.worker as usize];
                    let node = Node::Compute(worker, direction, chunk, microbatch);
                    let node = draft.add(node, operation.duration_ns);
                    (node, node)
                }
                Work::Exchange(_) => (draft.add(Node::Join, 0), draft.add(Node::Join, 0)),
            };
            if post[at] != end[at] {
                draft.wait(end[at], post[at]);
            }
        }
        let partners = partners(iteration, &pairs);
        for ((link, send, receive), partner) in pairs.into_iter().zip(partners) {
            let start_ns = self.start_ns(iteration, send).max(self.start_ns(iteration, receive));
            let end_ns = self.end_ns(iteration, send).min(self.end_ns(iteration, receive));
            let transfer = draft.add(Node::Transfer(link, partner), (end_ns - start_ns).max(0).unsigned_abs());
            for side in [send, receive] {
                draft.wait(transfer, post[side]);
                draft.wait(end[side], transfer);
            }
        }
        let mut from = 0;
        while let Some(&first) = order.get(from) {
            let worker = iteration.operations[first].worker;
            let count = order[from..].iter().take_while(|&&at| iteration.operations[at].worker == worker).count();
            let own = &order[from..from + count];
            let begin = self.begin_ns(iteration, first).saturating_sub(origin_ns);
            let begin = draft.add(Node::Begin, begin.max(0).unsigned_abs());
            for (place, &at) in own.iter().enumerate() {
                let waits = before(iteration, own, place, slack_ns, self.are_sends_blocking);
                waits.iter().for_each(|&other| draft.wait(post[at], end[other]));
                if waits.is_empty() {
                    draft.wait(post[at], begin);
                }
            }
            from += count;
        }
        draft.sorted()
    }
}

/// By pair: the link of the pair that goes the other way between the same workers in the same batch.
fn partners(iteration: &Iteration, pairs: &[Pair]) -> Vec<Option<usize>> {
    let side = |at: usize| {
        let operation = &iteration.operations[at];
        (operation.worker, operation.start_ns, operation.duration_ns)
    };
    let sends: BTreeMap<_, Pair> = pairs.iter().map(|&pair| (side(pair.1), pair)).collect();
    let partner = |&(_, send, receive): &Pair| {
        let &(link, _, back) = sends.get(&side(receive))?;
        (side(back) == side(send)).then_some(link)
    };
    pairs.iter().map(partner).collect()
}

/// The worker that a tensor of a direction goes to; none at the ends of the pipeline.
fn neighbour(stage: u32, direction: Direction, stages: u32, is_ring: bool) -> Option<u32> {
    let next = match direction {
        Direction::Forward if stage + 1 < stages => stage + 1,
        Direction::Backward if stage > 0 => stage - 1,
        Direction::Forward if is_ring => 0,
        Direction::Backward if is_ring => stages - 1,
        _ => return None,
    };
    (next != stage).then_some(next)
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Forward => Direction::Backward,
        Direction::Backward => Direction::Forward,
    }
}

/// Places of the operations: by worker, each worker's as they began.
fn in_order(iteration: &Iteration) -> Vec<usize> {
    let mut order: Vec<usize> = (0..iteration.operations.len()).collect();
    let key = |at: &usize| {
        let operation = &iteration.operations[*at];
        (operation.worker, operation.start_ns, operation.end_ns(), *at)
    };
    order.sort_unstable_by_key(key);
    order
}

/// Those of a worker's operations that one waits for: they had ended when it began, and none between them and it had.
/// Computes run one at a time whatever the record says.
fn before(iteration: &Iteration, own: &[usize], place: usize, slack_ns: u64, are_sends_blocking: bool) -> Vec<usize> {
    let of = |at: usize| &iteration.operations[at];
    let (start_ns, computes) = (of(own[place]).start_ns, matches!(of(own[place]).work, Work::Compute { .. }));
    let is_before = |other: usize| {
        (are_sends_blocking || !only_sends(of(other)))
            && has_ended(of(other), start_ns, slack_ns)
            && of(other).start_ns < start_ns
            || computes && matches!(of(other).work, Work::Compute { .. })
    };
    let nearest = place.saturating_sub(OVERLAP_MAX);
    let candidates: Vec<usize> = own[nearest..place].iter().copied().filter(|&other| is_before(other)).collect();
    let Some(latest_ns) = candidates.iter().map(|&other| of(other).start_ns).max() else { return Vec::new() };
    let is_behind = |other: &usize| of(*other).start_ns < latest_ns && has_ended(of(*other), latest_ns, slack_ns);
    candidates.into_iter().filter(|other| !is_behind(other)).collect()
}

fn only_sends(operation: &Operation) -> bool {
    matches!(operation.work, Work::Exchange(of) if of.receives == [false; 2])
}

/// Whether workers wait for their sends: where they do, the next compute comes after it.
fn are_sends_blocking(recording: &Recording) -> bool {
    let (mut sends, mut beside) = (0_usize, 0_usize);
    for iteration in &recording.iterations {
        let order = in_order(iteration);
        for (place, &at) in order.iter().enumerate() {
            let send = &iteration.operations[at];
            if only_sends(send) {
                let next = order[place + 1..].iter().map(|&next| &iteration.operations[next]);
                let mut next = next.take(OVERLAP_MAX).take_while(|next| next.worker == send.worker);
                let next = next.find(|next| matches!(next.work, Work::Compute { .. }));
                sends += 1;
                beside += usize::from(next.is_some_and(|next| !has_ended(send, next.start_ns, SLACK_NS)));
            }
        }
    }
    beside as f64 <= BESIDE_MIN * sends as f64
}

fn has_ended(operation: &Operation, at_ns: i64, slack_ns: u64) -> bool {
    operation.end_ns() <= at_ns.saturating_add_unsigned(slack_ns.min(operation.duration_ns / 2))
}

/// A graph whose nodes stand in any order.
pub(super) struct Draft<N> {
    nodes: Vec<N>,
    ns: Vec<u64>,
    /// Who waits, for whom.
    waits: Vec<(u32, u32)>,
}

impl<N> Default for Draft<N> {
    fn default() -> Self {
        Self { nodes: Vec::new(), ns: Vec::new(), waits: Vec::new() }
    }
}

impl<N: Copy> Draft<N> {
    /// A node that takes some time, and its number.
    pub fn add(&mut self, node: N, ns: u64) -> u32 {
        self.nodes.push(node);
        self.ns.push(ns);
        u32::try_from(self.nodes.len() - 1).expect("a recording has far fewer operations")
    }

    /// One begins when another has ended.
    pub fn wait(&mut self, who: u32, whom: u32) {
        self.waits.push((who, whom));
    }

    /// None if nodes wait for one another.
    pub fn sorted(mut self) -> Option<Graph<N>> {
        let count = self.nodes.len();
        self.waits.sort_unstable();
        self.waits.dedup();
        let mut open = vec![0_u32; count];
        let mut first = vec![0_usize; count + 1];
        for &(who, whom) in &self.waits {
            open[who as usize] += 1;
            first[whom as usize + 1] += 1;
        }
        for at in 0..count {
            first[at + 1] += first[at];
        }
        let mut behind = vec![0_u32; self.waits.len()];
        let mut free = first.clone();
        for &(who, whom) in &self.waits {
            behind[free[whom as usize]] = who;
            free[whom as usize] += 1;
        }
        let mut ready: Vec<u32> = (0..count as u32).filter(|&node| open[node as usize] == 0).collect();
        let mut sorted = Vec::with_capacity(count);
        while let Some(node) = ready.pop() {
            sorted.push(node);
            for &who in &behind[first[node as usize]..first[node as usize + 1]] {
                open[who as usize] -= 1;
                if open[who as usize] == 0 {
                    ready.push(who);
                }
            }
        }
        if sorted.len() < count {
            return None;
        }
        let mut place = vec![0_u32; count];
        sorted.iter().enumerate().for_each(|(at, &node)| place[node as usize] = at as u32);
        let mut graph = Graph {
            nodes: sorted.iter().map(|&node| self.nodes[node as usize]).collect(),
            ns: sorted.iter().map(|&node| self.ns[node as usize]).collect(),
            until: Vec::with_capacity(count),
            before: Vec::with_capacity(self.waits.len()),
        };
        for &node in &sorted {
            let from = self.waits.partition_point(|&(who, _)| who < node);
            let own = self.waits[from..].iter().take_while(|&&(who, _)| who == node);
            graph.before.extend(own.map(|&(_, whom)| place[whom as usize]));
            graph.until.push(graph.before.len() as u32);
        }
        Some(graph)
    }
}
