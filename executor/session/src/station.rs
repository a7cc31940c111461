//! Where the control thread and the training thread meet: the gate, and the plans made ready for it.
//!
//! 1. The lock is held for a state change only, never across an audit, a send or a wait.
//! 2. A plan made ready stays until the gate forgets it or another one takes effect: what a vote named is still there
//!    when its result comes.

use crate::compiled::{Compiled, Compiler};
use adaptis_executor_core::{Apply, Ballot, Begin, Effect, Gate, Next, Proposal, Rules, Verdict};
use adaptis_proto::message::{Failure, RankEvent, RankOrder, Refusal, Rejection, Vote};
use adaptis_proto::sample::Place;
use adaptis_proto::{Digest, Epoch, Incarnation, LayerIndex, Step, Term};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What remains to be done for an order, after the station has done its part.
#[derive(Clone, Debug, PartialEq)]
pub enum Errand {
    /// Tell the coordinator.
    Tell(RankEvent),
    /// Say Hello.
    Introduce,
    /// Begin to train.
    Begin(Begin, Arc<Compiled>),
    /// The end is recorded.
    Leave,
    /// The coordinator turns this rank away.
    GiveUp(Rejection),
}

/// What a rank concludes from a vote.
#[derive(Clone, Debug, PartialEq)]
pub enum Conclusion {
    /// Apply, and go on.
    Stay(Apply),
    /// Apply, and switch to this plan.
    Switch(Apply, Arc<Compiled>),
    /// Stop.
    Stop(Failure),
}

/// Events on their way to the control thread, which looks every few milliseconds: there is one at a switch and one at
/// the end. Full means that it is gone, and the event is lost with it.
const EVENTS_MAX: usize = 64;

/// A rank's meeting point.
pub struct Station {
    compiler: Compiler,
    /// To the control thread, at most [`EVENTS_MAX`].
    events: SyncSender<RankEvent>,
    inner: Mutex<Inner>,
}

struct Inner {
    gate: Gate,
    current: Option<Arc<Compiled>>,
    ready: BTreeMap<Epoch, Arc<Compiled>>,
}

impl Station {
    /// A rank before its START, and the events that its training will tell.
    pub fn new(device: &str, incarnation: Incarnation, compiler: Compiler) -> (Arc<Station>, Receiver<RankEvent>) {
        let (events, told) = sync_channel(EVENTS_MAX);
        let gate = Gate::new(device, incarnation);
        let inner = Mutex::new(Inner { gate, current: None, ready: BTreeMap::new() });
        (Arc::new(Station { compiler, events, inner }), told)
    }

    /// Carries out an order. Audits and compiles in the caller's thread, without the lock.
    pub fn order(&self, order: RankOrder) -> Vec<Errand> {
        let effects = self.lock().gate.on_order(order);
        self.errands(effects)
    }

    /// Where training stands.
    pub fn place(&self) -> Option<Place> {
        self.lock().gate.place()
    }

    /// Highest term seen.
    pub fn seen(&self) -> Term {
        self.lock().gate.seen()
    }

    /// Training, which did not wait for START, takes part from this iteration on.
    pub fn begin_at(&self, step: Step) {
        self.lock().gate.begin_at(step);
    }

    /// What is said every second.
    pub fn beat(&self) -> Option<RankEvent> {
        self.lock().gate.beat()
    }

    /// The vote of an iteration whose gradients are final.
    pub fn cast(&self, ballot: Ballot) -> Vote {
        self.lock().gate.cast(ballot)
    }

    /// What the votes of all ranks mean.
    pub fn conclude(&self, votes: &[Vote], rules: &Rules) -> Conclusion {
        let mut inner = self.lock();
        let (verdict, effects) = inner.gate.on_votes(votes, rules);
        let conclusion = match verdict {
            Verdict::Stop(failure) => Conclusion::Stop(failure),
            Verdict::Apply(apply) => match apply.next {
                Next::Switch { epoch, .. } => {
                    let next = inner.ready.remove(&epoch).expect("what a vote named is kept until its result");
                    inner.current = Some(Arc::clone(&next));
                    Conclusion::Switch(apply, next)
                }
                Next::Stay | Next::Drain(_) => Conclusion::Stay(apply),
            },
        };
        drop(inner);
        self.tell(effects);
        conclusion
    }

    /// The moves of a switch are done on all ranks.
    pub fn settled(&self) {
        let effects = self.lock().gate.on_settled();
        self.tell(effects);
    }

    /// This rank can't go on.
    pub fn failed(&self, failure: Failure) {
        let effects = self.lock().gate.on_failure(failure);
        self.tell(effects);
    }

    /// All iterations are done.
    pub fn finished(&self, layers: Vec<(LayerIndex, Digest)>) {
        let event = self.lock().gate.on_finished(layers);
        self.tell(vec![Effect::Tell(event)]);
    }

    fn errands(&self, effects: Vec<Effect>) -> Vec<Errand> {
        let mut errands = Vec::new();
        for effect in effects {
            match effect {
                Effect::Tell(event) => errands.push(Errand::Tell(event)),
                Effect::Introduce => errands.push(Errand::Introduce),
                Effect::Leave => errands.push(Errand::Leave),
                Effect::GiveUp(reason) => errands.push(Errand::GiveUp(reason)),
                Effect::Forget(epoch) => drop(self.lock().ready.remove(&epoch)),
                Effect::Check(proposal) => {
                    let effects = self.check(&proposal);
                    errands.extend(self.errands(effects));
                }
                Effect::Begin(begin) => {
                    let errand = self.start(begin);
                    errands.push(errand);
                }
            }
        }
        errands
    }

    fn check(&self, proposal: &Proposal) -> Vec<Effect> {
        let current = self.lock().current.clone();
        let current = current.as_ref().map(|compiled| &compiled.plan);
        let compiled = self.compiler.compile(&proposal.plan, proposal.digest, proposal.epoch, current);
        let mut inner = self.lock();
        match compiled {
            Ok(compiled) => {
                // Before the gate is armed with it: a vote may name it from then on.
                inner.ready.insert(proposal.epoch, Arc::new(compiled));
                inner.gate.on_prepared(proposal)
            }
            Err(reason) => inner.gate.on_refused(proposal, reason),
        }
    }

    fn start(&self, begin: Begin) -> Errand {
        match self.compiler.compile(&begin.plan, begin.digest, begin.epoch, None) {
            Ok(compiled) => {
                let compiled = Arc::new(compiled);
                self.lock().current = Some(Arc::clone(&compiled));
                Errand::Begin(begin, compiled)
            }
            Err(refusal) => {
                let failure = match refusal {
                    Refusal::Memory { needed_bytes, available_bytes } => Failure::OutOfMemory {
                        device: begin.members[begin.device.index()].device.clone(),
                        needed_bytes,
                        limit_bytes: available_bytes,
                    },
                    other => Failure::Environment(format!("the start plan can't run here: {other}")),
                };
                self.failed(failure.clone());
                Errand::GiveUp(Rejection::StartPlan(vec![failure.to_string()]))
            }
        }
    }

    fn tell(&self, effects: Vec<Effect>) {
        for errand in self.errands(effects) {
            if let Errand::Tell(event) = errand
                && let Err(error) = self.events.try_send(event)
            {
                tracing::error!(%error, "the control thread does not take an event");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The gate's methods leave it whole or panic before they change it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
