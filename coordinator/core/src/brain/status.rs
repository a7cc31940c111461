//! What a display shows of the brain. The counters of links and queues are the shell's to add.

use super::history::Iteration;
use super::{Brain, History, Stage};
use crate::ledger::Finished;
use adaptis_proto::RunId;
use adaptis_proto::message::{DeviceStatus, State, Status};
use adaptis_proto::sample::Place;

impl Brain {
    /// Where things stand, with the counters of the devices.
    pub fn status(&self) -> Status {
        let job = self.roster.job();
        let last = self.history.last();
        // Before the first iteration is recorded, the plan in force is known all the same.
        let start = Place { epoch: self.head.epoch, generation: self.head.generation, ..Place::default() };
        let place = last.map_or(start, |iteration| Place {
            step: iteration.record.index,
            epoch: iteration.record.epoch,
            generation: iteration.record.generation,
        });
        let decision = self.decisions.last();
        Status {
            run: job.map_or_else(RunId::default, |job| job.run.clone()),
            state: self.state(),
            term: self.head.term,
            place,
            iterations: job.map_or(0, |job| job.iterations),
            // A job that is only observed never tells its loss; one that has come to no number has had one.
            loss: last
                .filter(|_| self.history.tells_losses())
                .map(|iteration| f32::from_bits(iteration.record.loss_bits)),
            duration_ns: last.map(|iteration| iteration.record.duration_ns),
            predicted_ns: self.predicted_ns(),
            lower_bound_ns: self.adapt.as_ref().and_then(|adapt| adapt.fit.as_ref()).map(|fit| fit.lower_bound_ns),
            devices: self.devices(),
            last_decision: decision.map(|decision| self.text_of(decision)),
            last_decision_step: decision.map(|decision| decision.iteration),
            switches: self.history.switches(),
            failure: self.failure.as_ref().map(ToString::to_string),
            counters: self
                .late_ns
                .iter()
                .map(|(&device, &late_ns)| (format!("{}.late_ns", self.name_of(device)), late_ns))
                .chain([("hellos_refused".to_owned(), self.hellos_refused)])
                .chain(self.counters_of_loads())
                .collect(),
        }
    }

    fn state(&self) -> State {
        let is_searching = self.adapt.as_ref().is_some_and(|adapt| adapt.searching.is_some());
        match self.stage {
            Stage::Unborn | Stage::Gathering => State::Waiting,
            Stage::Ended if self.failure.is_some() => State::Failed,
            Stage::Ended => State::Finished,
            Stage::Following if self.round.is_some() => State::Preparing,
            Stage::Following if is_searching => State::Searching,
            Stage::Following => State::Training,
        }
    }

    /// Iteration on the plan in force, as last predicted.
    pub fn predicted_ns(&self) -> Option<u64> {
        let fit = self.adapt.as_ref().and_then(|adapt| adapt.fit.as_ref());
        let fitted = fit.filter(|fit| fit.epoch == self.head.epoch).map(|fit| fit.predicted_ns);
        let written = self.phases.last().filter(|phase| phase.epoch == self.head.epoch);
        fitted.or_else(|| written.and_then(|phase| phase.predicted_ns)).or_else(|| self.prospect_ns())
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let stages_of = |device: usize| {
            let stages = self.running.iter().flat_map(|plan| &plan.stages);
            let own = stages.filter(|stage| stage.device as usize == device);
            own.map(|stage| (stage.layers[0], stage.layers[1])).collect()
        };
        let status = |(index, rank): (adaptis_proto::DeviceIndex, &crate::membership::Rank)| {
            let device = index.index();
            let stages: Vec<(u32, u32)> = stages_of(device);
            let bubble = |iteration: &Iteration| {
                let (busy_ns, duration_ns) = (*iteration.busy_ns.get(device)?, iteration.record.duration_ns);
                (busy_ns > 0 && duration_ns > 0).then(|| (1.0 - busy_ns as f64 / duration_ns as f64).max(0.0))
            };
            DeviceStatus {
                name: rank.card.name.clone(),
                kind: rank.card.kind.clone(),
                bubble: if stages.is_empty() { None } else { self.history.last_of(bubble) },
                stages,
                slowdown: self.slowdown(device),
                peak_bytes: self.history.last_of(|iteration| *iteration.peak_bytes.get(device)?),
                memory_bytes: rank.card.memory_bytes,
            }
        };
        self.roster.ranks().map(status).collect()
    }

    /// By how much slower than its kind a device is by the last fit; none before the first.
    pub fn slowdown(&self, device: usize) -> Option<f64> {
        let fit = self.adapt.as_ref()?.fit.as_ref()?;
        Some(fit.estimated.problem.devices.get(device)?.slowdown)
    }

    /// What iterations told.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How the run ended, if so.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }
}
