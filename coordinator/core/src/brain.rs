//! One state machine for the coordinator: gathers ranks, follows their training, changes their plan, ends the run.
//!
//! ```text
//!   Gathering --all there--> Following --all finished--> Ended
//!                             |     ^ \--silence, failure--> Ended (failed)
//!                 samples ----+     |
//!                 estimate, change, search, decision, round: `adapt` and `commit`
//! ```
//!
//! 1. [`Brain::on_event`] is the only way in; the effects that it returns, in order, are the only way out.
//! 2. An order that names a plan or a generation leaves inside [`Effect::Persist`] with its record, or after it
//!    (NumbersOnce). If a write conflicts, the shell drops what hangs on it and stops (DeposedIsSilent).
//! 3. A plan is in force when a rank says that it runs it, whatever else was decided meanwhile (OneEpochPerStep is the
//!    ranks' vote to keep; the ledger follows it).
//! 4. Nothing here waits: what is to be repeated or to expire has an instant in [`Brain::deadline`].
//! 5. Silence counts only while we listen: not during the replay, not while we stood still, and not before everything
//!    that had arrived was read.
//!
//! Left out on purpose: a new generation after a loss. A lost rank ends the run with its reason.

mod adapt;
mod announce;
mod calibrations;
mod change;
mod commit;
mod config;
mod decide;
mod earlier;
mod follow;
mod history;
mod intake;
mod loads;
mod peaks;
mod start;
mod status;
#[cfg(test)]
mod tests;
mod wanted;

pub use announce::Announcement;
pub use config::{Config, Deadlines, Mode};
pub use history::{HISTORY_MAX, History};

use crate::admission::Policy;
use crate::estimate::earlier::Earlier;
use crate::ledger::{
    Decision, Durable, Finished, GenerationRecord, Head, PhaseRecord, PlanRecord, Recovered, RunFailure,
};
use crate::membership::{Peer, Roster};
use crate::round::Round;
use adapt::Adapt;
use adaptis_plan::{Plan, Problem};
use adaptis_planner::search::{Infeasible, Options, Outcome};
use adaptis_proto::message::{Bounds, CrowdedHost, RankEvent, RankOrder, Rejection};
use adaptis_proto::sample::Record;
use adaptis_proto::{DeviceIndex, Digest, Epoch, Incarnation, LayerIndex, Step, Term};
use calibrations::Calibrations;
use std::collections::{BTreeMap, BTreeSet};

/// Between two looks at who is silent, at most.
const LOOK_EVERY_NS: u64 = 1_000_000_000;
/// A longer gap between two events says that we stood still ourselves: it counts as nobody's silence.
const GAP_MAX_NS: u64 = 2_000_000_000;
/// A process that is silent for longer loses its place to another one, before the first generation.
const SEAT_NS: u64 = 10_000_000_000;
/// Devices whose last refusal is remembered. More: all are forgotten, and said once more.
const REFUSALS_MAX: usize = 1_024;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The reign began: the first event, once.
    Booted(Box<Recovered>),
    /// A rank spoke.
    RankSaid {
        /// Where it is reached.
        peer: Peer,
        /// What it said.
        event: Box<RankEvent>,
    },
    /// Records of a device are stored.
    Absorbed {
        /// Name of the device.
        device: String,
        /// The process that recorded them.
        ring: Incarnation,
        /// The records.
        records: Vec<Record>,
    },
    /// Records of a device that an earlier reign had acted on already.
    Replayed {
        /// Name of the device.
        device: String,
        /// The process that recorded them.
        ring: Incarnation,
        /// The records.
        records: Vec<Record>,
    },
    /// An agent said what it measured of its device before training, among other readings.
    Calibrated {
        /// Name of the device.
        device: String,
        /// The agent's process.
        agent: Incarnation,
        /// All its readings.
        readings: Vec<(String, f64)>,
    },
    /// What earlier jobs measured was read, for the kinds and layers of this one: in the place of what was known of it.
    Recalled(Box<Earlier>),
    /// A search is over.
    SearchEnded {
        /// Which one.
        ticket: u64,
        /// What it found.
        result: Box<Result<Outcome, Infeasible>>,
    },
    /// A search ended without a word: it panicked, or there was no thread for it.
    SearchLost {
        /// Which one.
        ticket: u64,
    },
    /// The operator changed the policy.
    PolicyChanged(Policy),
    /// A deadline passed, and everything that had arrived before was handed over.
    TimePassed,
}

/// A search to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchOrder {
    /// Its number.
    pub ticket: u64,
    /// What to plan for.
    pub problem: Problem,
    /// The plan in force.
    pub from: Plan,
    /// How.
    pub options: Options,
    /// For how long.
    pub budget_ns: u64,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Write the entries, all or none, to disk; only then do what follows. On a conflict do nothing of it, and stop.
    Persist {
        /// What to write.
        entries: Vec<Durable>,
        /// What may follow only then.
        then: Vec<Effect>,
    },
    /// Tell a rank.
    Send {
        /// Where it is reached.
        to: Peer,
        /// What to tell it.
        order: RankOrder,
    },
    /// Run a search beside training; at most one at a time.
    StartSearch(Box<SearchOrder>),
    /// End a search; its result is not awaited.
    CancelSearch {
        /// Which one.
        ticket: u64,
    },
    /// Let people know.
    Announce(Announcement),
    /// Let people have the plan that would be better, and the problem that it solves.
    Advise(Box<Advice>),
    /// The run is over and recorded.
    Done,
}

/// What would be better, for whoever plans a job by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// The plan.
    pub plan: Plan,
    /// The job as estimated.
    pub problem: Problem,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unborn,
    Gathering,
    Following,
    Ended,
}

/// Ranks have ended; their last samples are awaited.
#[derive(Clone, Debug)]
struct Closing {
    finished: Finished,
    deadline_ns: u64,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Brain {
    config: Config,
    stage: Stage,
    head: Head,
    roster: Roster,
    bounds: Bounds,
    crowded: Vec<CrowdedHost>,
    /// The mode that the job asks for, if it does.
    asked: Option<Mode>,
    generation: Option<GenerationRecord>,
    plans: BTreeMap<Epoch, PlanRecord>,
    aborted: BTreeSet<Epoch>,
    /// The plan in force, read.
    running: Option<Plan>,
    round: Option<Round>,
    start_next_ns: u64,
    decisions: Vec<Decision>,
    phases: Vec<PhaseRecord>,
    history: History,
    peaks: peaks::PeakMemories,
    adapt: Option<Adapt>,
    calibrations: Calibrations,
    earlier: Earlier,
    ended: BTreeMap<DeviceIndex, (Step, Vec<(LayerIndex, Digest)>)>,
    closing: Option<Closing>,
    absorbed_ns: u64,
    finished: Option<Finished>,
    failure: Option<RunFailure>,
    /// Why each rank was turned away last: said once, though it asks again and again. At most [`REFUSALS_MAX`].
    announced_refusals: BTreeMap<String, Rejection>,
    /// Hellos that were turned away under this reign.
    hellos_refused: u64,
    /// By how much each device's work overran its pace (emulated devices only).
    late_ns: BTreeMap<DeviceIndex, u64>,
    /// What a rank told of another one's failure, and until when that one may speak for itself.
    consequence: Option<(RunFailure, u64)>,
    /// When the last event came; none before the replay is over.
    listened_ns: Option<u64>,
    outbox: Vec<Effect>,
}

impl Brain {
    /// Knows nothing before [`Event::Booted`].
    pub fn new(config: Config) -> Self {
        Self {
            config,
            stage: Stage::Unborn,
            head: Head::default(),
            roster: Roster::default(),
            bounds: Bounds::default(),
            crowded: Vec::new(),
            asked: None,
            generation: None,
            plans: BTreeMap::new(),
            aborted: BTreeSet::new(),
            running: None,
            round: None,
            start_next_ns: 0,
            decisions: Vec::new(),
            phases: Vec::new(),
            history: History::default(),
            peaks: peaks::PeakMemories::default(),
            adapt: None,
            calibrations: Calibrations::default(),
            earlier: Earlier::default(),
            ended: BTreeMap::new(),
            closing: None,
            absorbed_ns: 0,
            finished: None,
            failure: None,
            announced_refusals: BTreeMap::new(),
            hellos_refused: 0,
            late_ns: BTreeMap::new(),
            consequence: None,
            listened_ns: None,
            outbox: Vec::new(),
        }
    }

    /// Takes an event at an instant of the coordinator's clock, which never goes back. Effects are to be carried out in
    /// order.
    ///
    /// # Panics
    /// If the first event is not [`Event::Booted`], or a later one is.
    pub fn on_event(&mut self, now_ns: u64, event: Event) -> Vec<Effect> {
        let is_boot = matches!(event, Event::Booted(_));
        assert_eq!(is_boot, self.stage == Stage::Unborn, "a reign begins once, with its records");
        let is_live = !is_boot && !matches!(event, Event::Replayed { .. });
        let is_silence_judged = matches!(event, Event::TimePassed);
        if is_live {
            self.listen(now_ns);
        }
        match event {
            Event::Booted(recovered) => self.boot(now_ns, *recovered),
            Event::RankSaid { peer, event } => self.on_rank(now_ns, peer, *event),
            Event::Absorbed { device, ring, records } => self.on_records(now_ns, &device, ring, &records),
            Event::Replayed { device, ring, records } => self.on_replayed(&device, ring, &records),
            Event::Calibrated { device, agent, readings } => self.on_calibrated(&device, agent, &readings),
            Event::Recalled(earlier) => self.on_recalled(*earlier),
            Event::SearchEnded { ticket, result } => self.on_search_ended(now_ns, ticket, *result),
            Event::SearchLost { ticket } => self.on_search_lost(ticket),
            Event::PolicyChanged(policy) => self.on_policy(policy),
            Event::TimePassed => {}
        }
        if is_live {
            self.on_time(now_ns, is_silence_judged);
        }
        std::mem::take(&mut self.outbox)
    }

    /// Notes that we listen; nobody was silent while we did not.
    fn listen(&mut self, now_ns: u64) {
        match self.listened_ns.replace(now_ns) {
            None => {
                self.roster.hear_all(now_ns);
                self.catch_up();
            }
            Some(before_ns) => {
                let gap_ns = now_ns.saturating_sub(before_ns);
                if gap_ns > GAP_MAX_NS {
                    self.roster.forgive(gap_ns);
                }
            }
        }
    }

    /// When [`Event::TimePassed`] is due, unless something else happens before.
    pub fn deadline(&self) -> Option<u64> {
        let heartbeat_ns = self.config.deadlines.heartbeat_ns;
        let following = self.stage == Stage::Following && self.closing.is_none();
        let looking = following || self.stage == Stage::Gathering;
        [
            looking.then(|| self.listened_ns.map_or(0, |listened_ns| listened_ns.saturating_add(LOOK_EVERY_NS))),
            following.then(|| self.roster.silence_deadline(heartbeat_ns)).flatten(),
            self.consequence.as_ref().filter(|_| following).map(|(_, deadline_ns)| *deadline_ns),
            (following && self.is_start_awaited()).then_some(self.start_next_ns),
            self.round.as_ref().map(Round::deadline),
            self.closing.as_ref().map(|closing| {
                let quiet_ns = self.absorbed_ns.saturating_add(self.config.deadlines.quiet_ns);
                if self.is_drained() { closing.deadline_ns.min(quiet_ns) } else { closing.deadline_ns }
            }),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What it may do to the job.
    pub fn mode(&self) -> Mode {
        self.asked.filter(|_| self.config.is_mode_open).unwrap_or(self.config.mode)
    }

    /// Number of the reign.
    pub fn term(&self) -> Term {
        self.head.term
    }

    /// Who reigns, over whom, under which plan.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The newest membership.
    pub fn generation(&self) -> Option<&GenerationRecord> {
        self.generation.as_ref()
    }

    /// The plan in force.
    pub fn running(&self) -> Option<&Plan> {
        self.running.as_ref()
    }

    /// The ranks.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// All decisions, in order.
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Why the run can't go on, if so.
    pub fn failure(&self) -> Option<&RunFailure> {
        self.failure.as_ref()
    }

    fn on_time(&mut self, now_ns: u64, is_silence_judged: bool) {
        if self.stage != Stage::Following {
            return;
        }
        if self.closing.is_some() {
            self.close_when_drained(now_ns);
            return;
        }
        let silent = self.roster.silent(now_ns, self.config.deadlines.heartbeat_ns);
        if let Some((device, waited_ns)) = silent.filter(|_| is_silence_judged) {
            let device = self.name_of(device);
            self.fail(RunFailure::Silent { device, waited_ns });
            return;
        }
        self.fail_without_cause(now_ns);
        if self.stage != Stage::Following {
            return;
        }
        self.repeat_start(now_ns);
        self.drive_round(now_ns);
    }

    fn persist(&mut self, entries: Vec<Durable>, then: Vec<Effect>) {
        self.outbox.push(Effect::Persist { entries, then });
    }

    fn announce(&mut self, announcement: Announcement) {
        self.outbox.push(Effect::Announce(announcement));
    }

    fn send(&mut self, device: DeviceIndex, order: RankOrder) {
        self.outbox.extend(self.order(device, order));
    }

    /// An order as an effect; none while we don't know where the rank is reached.
    fn order(&self, device: DeviceIndex, order: RankOrder) -> Option<Effect> {
        Some(Effect::Send { to: self.roster.rank(device)?.peer?, order })
    }

    fn to_all(&self, order: &RankOrder) -> Vec<Effect> {
        self.roster.ranks().filter_map(|(device, _)| self.order(device, order.clone())).collect()
    }

    fn name_of(&self, device: DeviceIndex) -> String {
        self.roster.rank(device).map_or_else(|| format!("device {device}"), |rank| rank.card.name.clone())
    }
}
