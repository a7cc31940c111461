//! What tensors take on their way where ranks can't tell: from the works at both ends.
//!
//! ```text
//!   sender    | work that produces |
//!                                  |-- on its way --|
//!   receiver  | its last work |  .... waits ........ | work that consumes |
//! ```
//!
//! A job that is only observed sends by itself. Where its receiver was done with its last work when the sender was with its
//! own, it waited for nothing but the tensor, and the time between the two works is what that takes: transfer, latency, and
//! the calls at both ends. Of a receiver that came later nothing is told.
//!
//! 1. Who records transfers, or probes, is believed: from the first one on nothing is told here.
//! 2. Bounded memory: a few iterations, of so many works at most; one that is not whole in time is dropped.

use adaptis_plan::{Action, Plan};
use adaptis_proto::message::Job;
use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{DeviceIndex, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Iterations that may be under way at a time: ranks are at most one apart, agents some more.
const STEPS_MAX: usize = 16;
/// Works of an iteration; one with more is not looked at.
const WORKS_MAX: usize = 200_000;

/// An instruction, as its works tell of it, on the coordinator's clock.
#[derive(Clone, Copy, Debug)]
struct Done {
    start_ns: i128,
    end_ns: i128,
    /// The first and the last layer that it runs were both measured.
    ends: [bool; 2],
}

/// What is known of an iteration.
#[derive(Clone, Debug, Default)]
struct Iteration {
    /// By device, stage, action and microbatch.
    done: BTreeMap<(usize, usize, Kind, u32), Done>,
    works: usize,
    /// How far each device's clock may be off.
    error_ns: u64,
    place: Option<Place>,
    /// Of the first ones since a start, or of a host that was held up.
    is_odd: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Forward,
    Backward,
}

/// Gathers works until both ends of a crossing are there.
#[derive(Clone, Debug, Default)]
pub struct Crossings {
    steps: BTreeMap<Step, Iteration>,
    /// Per device: the last iteration that has ended.
    ended: Vec<Option<Step>>,
    do_ranks_tell: bool,
}

/// Where a batch of samples comes from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Which device.
    pub device: DeviceIndex,
    /// What takes its clock to the coordinator's.
    pub offset_ns: i64,
    /// By how much that may be wrong.
    pub error_ns: u64,
}

impl Crossings {
    /// Learns from records, of this reign or of an earlier one, whether ranks tell of transfers themselves.
    pub fn heed(&mut self, records: &[Record]) {
        let mut samples = records.iter().filter_map(|&record| Sample::try_from(record).ok());
        if !self.do_ranks_tell && samples.any(|sample| matches!(sample, Sample::Transfer { .. })) {
            *self = Crossings { do_ranks_tell: true, ..Crossings::default() };
        }
    }

    /// Takes samples of a device under a plan. Gives transfers with the device that received them, once both of their ends
    /// are known. [`Crossings::heed`] has seen them.
    pub fn absorb(
        &mut self,
        job: &Job,
        plan: &Plan,
        source: Source,
        samples: impl Iterator<Item = Sample>,
    ) -> Vec<(DeviceIndex, Sample)> {
        if self.do_ranks_tell || plan.devices.len() < 2 {
            return Vec::new();
        }
        let at = source.device.index();
        let (stage_of, apart) = (stages_of(plan), weights_apart(plan));
        self.ended.resize(plan.devices.len(), None);
        for sample in samples {
            match sample {
                Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns } => {
                    let Some(&stage) = stage_of.get(layer.index()) else { continue };
                    let kind = match phase {
                        Phase::Forward => Kind::Forward,
                        Phase::InputGradient | Phase::WeightGradient => Kind::Backward,
                        _ => continue,
                    };
                    let is_mine = plan.stages[stage].device as usize == at && place.epoch == plan.epoch;
                    // A W that was put off sends nothing.
                    let is_late = phase == Phase::WeightGradient && apart.contains(&(stage, microbatch.0));
                    if !is_mine || is_late {
                        continue;
                    }
                    let start_ns = i128::from(start_ns) + i128::from(source.offset_ns);
                    let end_ns = start_ns + i128::from(duration_ns);
                    let range = plan.stages[stage].range();
                    let ends = [layer.index() == range.start, layer.index() + 1 == range.end];
                    let iteration = self.steps.entry(place.step).or_default();
                    iteration.works += 1;
                    iteration.error_ns = iteration.error_ns.max(source.error_ns);
                    iteration.place = Some(place);
                    iteration.is_odd |= mark != Mark::Warm;
                    if iteration.works > WORKS_MAX {
                        iteration.done.clear();
                        continue;
                    }
                    let done = iteration.done.entry((at, stage, kind, microbatch.0));
                    let done = done.or_insert(Done { start_ns, end_ns, ends: [false; 2] });
                    done.start_ns = done.start_ns.min(start_ns);
                    done.end_ns = done.end_ns.max(end_ns);
                    done.ends = [done.ends[0] || ends[0], done.ends[1] || ends[1]];
                }
                Sample::Iteration { place, .. } => {
                    self.ended[at] = self.ended[at].max(Some(place.step));
                }
                _ => {}
            }
        }
        while self.steps.len() > STEPS_MAX {
            self.steps.pop_first();
        }
        let Some(whole) = self.ended.iter().copied().min().flatten() else { return Vec::new() };
        let mut found = Vec::new();
        while let Some(entry) = self.steps.first_entry().filter(|entry| *entry.key() <= whole) {
            found.extend(crossed(job, plan, &entry.remove()));
        }
        found
    }
}

/// By layer.
fn stages_of(plan: &Plan) -> Vec<usize> {
    plan.stages.iter().enumerate().flat_map(|(stage, of)| of.range().map(move |_| stage)).collect()
}

/// Stages and microbatches whose weight gradients are an instruction of their own.
fn weights_apart(plan: &Plan) -> BTreeSet<(usize, u32)> {
    let all = plan.programs.iter().flatten().filter(|instruction| instruction.action == Action::WeightGradient);
    all.map(|instruction| (instruction.stage.index(), instruction.microbatch.0)).collect()
}

/// The transfers of an iteration whose receivers waited for them.
fn crossed(job: &Job, plan: &Plan, iteration: &Iteration) -> Vec<(DeviceIndex, Sample)> {
    let is_told = !iteration.is_odd && iteration.works <= WORKS_MAX;
    let Some(place) = iteration.place.filter(|_| is_told) else { return Vec::new() };
    let mut found = Vec::new();
    for (device, program) in plan.programs.iter().enumerate() {
        let mut before: Option<Option<Done>> = None;
        for instruction in program {
            let (stage, microbatch) = (instruction.stage.index(), instruction.microbatch.0);
            let (kind, producer, layer) = match instruction.action {
                Action::Forward => {
                    (Kind::Forward, stage.checked_sub(1), plan.stages[stage].range().start.checked_sub(1))
                }
                Action::InputGradient | Action::Backward => {
                    let next = Some(stage + 1).filter(|next| *next < plan.stages.len());
                    (Kind::Backward, next, plan.stages[stage].range().end.checked_sub(1))
                }
                // When it ended nobody noted.
                Action::WeightGradient => {
                    before = Some(None);
                    continue;
                }
            };
            let own = iteration.done.get(&(device, stage, kind, microbatch)).copied();
            let last = before.replace(own);
            let (Some(own), Some(producer), Some(layer)) = (own, producer, layer) else { continue };
            let from = plan.stages[producer].device as usize;
            let sent = iteration.done.get(&(from, producer, kind, microbatch)).filter(|_| from != device);
            // A forward begins with the first layer and ends with the last, a backward the other way round.
            let [first, end] = match kind {
                Kind::Forward => [0, 1],
                Kind::Backward => [1, 0],
            };
            let Some(sent) = sent.filter(|sent| sent.ends[end] && own.ends[first]) else { continue };
            let has_waited = match last {
                None => true,
                Some(last) => last.is_some_and(|last| last.ends == [true; 2] && last.end_ns <= sent.end_ns),
            };
            let took_ns = u64::try_from(own.start_ns - sent.end_ns).unwrap_or(0);
            // The clocks of both ends may be wrong.
            if !has_waited || took_ns <= iteration.error_ns.saturating_mul(2) {
                continue;
            }
            let Some(bytes) = job.layers.get(layer).map(|layer| layer.output_bytes) else { continue };
            let sample = Sample::Transfer {
                place,
                from: DeviceIndex::from(from),
                microbatch: instruction.microbatch,
                // As a probe: it comes by chance, and nothing is to be concluded from when it does not.
                mark: Mark::Calibration,
                bytes,
                start_ns: u64::try_from(sent.end_ns).unwrap_or(0),
                duration_ns: took_ns,
            };
            found.push((DeviceIndex::from(device), sample));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_plan::{Cost, Device, Layer, Links, Problem};
    use adaptis_planner::schedule::{Name, named};
    use adaptis_planner::simulate::simulate;
    use adaptis_proto::message::JobLayer;
    use adaptis_proto::{Epoch, Generation, LayerIndex, RunId};

    const BYTES: u64 = 1_000;
    /// What each takes on its way: a microsecond of transfer, and the latency.
    const WAY_NS: u64 = 1_000 + 500;

    /// Six layers on three devices, each slower than the one before it.
    fn pipeline() -> (Job, Problem) {
        let layer = |at: usize| Layer {
            name: format!("layer{at}"),
            signature: "block/1/f32/b1xs8".to_owned(),
            parameter_bytes: 0,
            state_bytes: 0,
            output_bytes: BYTES,
            moved_bytes: None,
            note: None,
        };
        let device = |at: usize| Device {
            name: format!("gpu{at}"),
            kind: "cpu".to_owned(),
            memory_bytes: 1 << 40,
            slowdown: 1.0 + at as f64 / 4.0,
            reserved_bytes: 0,
            note: None,
        };
        let cost =
            Cost { forward_ns: 40_000, input_gradient_ns: 40_000, weight_gradient_ns: 40_000, ..Cost::default() };
        let costs = [("cpu".to_owned(), vec![cost; 6])].into();
        let links = Links::all(500, 1e9);
        let problem = Problem::new(6, (0..6).map(layer).collect(), (0..3).map(device).collect(), costs, links);
        let layers = problem.layers.iter().map(|layer| JobLayer {
            name: layer.name.clone(),
            signature: layer.signature.clone(),
            parameter_bytes: 0,
            state_bytes: 0,
            output_bytes: BYTES,
            moved_bytes: 0,
        });
        let job = Job {
            run: RunId("run".to_owned()),
            devices: problem.devices.iter().map(|device| device.name.clone()).collect(),
            layers: layers.collect(),
            microbatches: 6,
            iterations: 0,
            start_plan: None,
        };
        (job, problem)
    }

    fn place(step: u64) -> Place {
        Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) }
    }

    /// What each device records of an iteration, each on a clock of its own.
    fn samples(problem: &Problem, plan: &Plan, step: u64, mark: Mark) -> Vec<Vec<Sample>> {
        let begun_ns = 1_000_000 + step * 10_000_000;
        let timeline = simulate(problem, plan).expect("the plan is whole");
        let of = |(device, spans): (usize, &Vec<adaptis_planner::simulate::Span>)| {
            let mut samples = Vec::new();
            for span in spans {
                let layers: Vec<usize> = plan.stages[span.instruction.stage.index()].range().collect();
                let works: Vec<(usize, Phase)> = match span.instruction.action {
                    Action::Forward => layers.iter().map(|&layer| (layer, Phase::Forward)).collect(),
                    Action::InputGradient => layers.iter().rev().map(|&layer| (layer, Phase::InputGradient)).collect(),
                    Action::WeightGradient => {
                        layers.iter().rev().map(|&layer| (layer, Phase::WeightGradient)).collect()
                    }
                    Action::Backward => {
                        let both = |&layer: &usize| [(layer, Phase::InputGradient), (layer, Phase::WeightGradient)];
                        layers.iter().rev().flat_map(both).collect()
                    }
                };
                let each_ns = (span.end_ns - span.start_ns) / works.len() as u64;
                for (at, &(layer, phase)) in works.iter().enumerate() {
                    let start_ns = begun_ns + clock_ns(device) + span.start_ns + at as u64 * each_ns;
                    let (layer, microbatch) = (LayerIndex::from(layer), span.instruction.microbatch);
                    let place = place(step);
                    samples.push(Sample::Work {
                        place,
                        layer,
                        microbatch,
                        phase,
                        mark,
                        start_ns,
                        duration_ns: each_ns,
                    });
                }
            }
            samples.push(Sample::Iteration { place: place(step), start_ns: begun_ns, duration_ns: 1, loss_bits: 0 });
            samples
        };
        timeline.spans.iter().enumerate().map(of).collect()
    }

    /// How far a device's clock is ahead of the coordinator's.
    fn clock_ns(device: usize) -> u64 {
        device as u64 * 123_456_789
    }

    fn source(device: usize, error_ns: u64) -> Source {
        Source { device: DeviceIndex::from(device), offset_ns: -(clock_ns(device) as i64), error_ns }
    }

    #[test]
    fn what_a_receiver_waited_for_is_told_to_the_nanosecond() {
        let (job, problem) = pipeline();
        for name in [Name::OneFOneB, Name::Gpipe, Name::ZbH1] {
            let plan = Plan { epoch: Epoch(1), ..named(&problem, name).expect("there is memory") };
            let mut crossings = Crossings::default();
            let mut found = Vec::new();
            for step in 0..3 {
                for (device, samples) in samples(&problem, &plan, step, Mark::Warm).into_iter().enumerate() {
                    let told = crossings.absorb(&job, &plan, source(device, 100), samples.into_iter());
                    assert!(told.is_empty() || device == 2, "when all have told of it");
                    found.extend(told);
                }
            }
            let mut pairs = BTreeSet::new();
            for (to, sample) in &found {
                let Sample::Transfer { from, bytes, duration_ns, mark, .. } = *sample else { panic!("{sample:?}") };
                assert_eq!((bytes, mark), (BYTES, Mark::Calibration));
                // Works are whole nanoseconds, which an instruction may not divide into.
                assert!(duration_ns.abs_diff(WAY_NS) <= 12, "{name:?} {from} -> {to}: {duration_ns}");
                pairs.insert((from.index(), to.index()));
            }
            let neighbours = plan.stages.windows(2).map(|two| (two[0].device as usize, two[1].device as usize));
            let both_ways = neighbours.flat_map(|(a, b)| [(a, b), (b, a)]);
            assert_eq!(pairs, both_ways.collect(), "{name:?}");
            assert_eq!(found.len() % 3, 0, "every iteration tells as much");
        }
    }

    #[test]
    fn what_is_not_sure_is_not_told() {
        let (job, problem) = pipeline();
        let plan = Plan { epoch: Epoch(1), ..named(&problem, Name::OneFOneB).expect("there is memory") };
        let told = |error_ns: u64, mark: Mark, change: &dyn Fn(usize, &mut Vec<Sample>)| {
            let mut crossings = Crossings::default();
            let mut found = Vec::new();
            for (device, mut samples) in samples(&problem, &plan, 0, mark).into_iter().enumerate() {
                change(device, &mut samples);
                crossings.heed(&samples.iter().copied().map(Record::from).collect::<Vec<_>>());
                found.extend(crossings.absorb(&job, &plan, source(device, error_ns), samples.into_iter()));
            }
            found.len()
        };
        let all = told(0, Mark::Warm, &|_, _| {});
        assert!(all > 8, "{all}");
        assert_eq!(told(2_000, Mark::Warm, &|_, _| {}), 0, "clocks are less sure than that");
        assert_eq!(told(0, Mark::Cold, &|_, _| {}), 0, "the first ones after a start");
        let first = |_: usize, samples: &mut Vec<Sample>| {
            samples.retain(|sample| !matches!(sample, Sample::Work { layer, .. } if layer.0 % 2 == 0));
        };
        assert_eq!(told(0, Mark::Warm, &first), 0, "where an instruction began nobody knows");
        let probed = |device: usize, samples: &mut Vec<Sample>| {
            let (place, from, microbatch) = (place(0), DeviceIndex(1), 0_usize.into());
            let mark = Mark::Calibration;
            let probe = Sample::Transfer { place, from, microbatch, mark, bytes: 8, start_ns: 0, duration_ns: 1 };
            samples.extend((device == 0).then_some(probe));
        };
        assert_eq!(told(0, Mark::Warm, &probed), 0, "ranks tell themselves");
        let mut restarted = Crossings::default();
        let mut earlier = Vec::new();
        probed(0, &mut earlier);
        restarted.heed(&earlier.into_iter().map(Record::from).collect::<Vec<_>>());
        for (device, samples) in samples(&problem, &plan, 0, Mark::Warm).into_iter().enumerate() {
            let told = restarted.absorb(&job, &plan, source(device, 0), samples.into_iter());
            assert!(told.is_empty(), "and so they did under an earlier reign");
        }
        let late = |device: usize, samples: &mut Vec<Sample>| {
            samples.retain(|sample| device != 2 || !matches!(sample, Sample::Iteration { .. }));
        };
        assert_eq!(told(0, Mark::Warm, &late), 0, "one has not told of all yet");
    }
}
