//! What the store does, without a disk.

use crate::ledger::{Durable, IterationRecord, Recovered};
use adaptis_proto::Term;
use adaptis_proto::sample::{Record, Sample};

/// The ledger and the samples.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub held: Recovered,
    pub records: Vec<(String, Record)>,
    pub refusals: usize,
}

impl Ledger {
    pub fn reign(&mut self) -> Recovered {
        self.held.head.term = self.held.head.term.next();
        self.held.clone()
    }

    /// All or none; false if the writer has been deposed.
    pub fn commit(&mut self, term: Term, entries: &[Durable]) -> bool {
        if self.held.head.term != term {
            self.refusals += 1;
            return false;
        }
        entries.iter().for_each(|entry| self.write(entry));
        true
    }

    fn write(&mut self, entry: &Durable) {
        let held = &mut self.held;
        match entry {
            Durable::Head { was, now } => {
                assert_eq!(held.head, *was, "a reign that holds knows the head");
                held.head = *now;
            }
            Durable::Plan(plan) => {
                assert!(held.plans.insert(plan.epoch, plan.clone()).is_none(), "NumbersOnce: plan {}", plan.epoch);
            }
            Durable::Aborted(epoch) => {
                if !held.aborted.contains(epoch) {
                    held.aborted.push(*epoch);
                }
            }
            Durable::Generation(record) => {
                let known = held.generation.as_ref().is_some_and(|known| known.generation >= record.generation);
                assert!(!known, "NumbersOnce: generation {}", record.generation);
                held.generation = Some(record.clone());
            }
            Durable::Decision(decision) => {
                assert_eq!(decision.number, held.decisions.len() as u64, "NumbersOnce: decisions follow one another");
                held.decisions.push(decision.clone());
            }
            Durable::Switch(switch) => {
                held.switches.retain(|known| known.to != switch.to);
                held.switches.push(*switch);
            }
            Durable::Phase(phase) => {
                let known = held.phases.iter().position(|known| (known.from, known.epoch) == (phase.from, phase.epoch));
                match known {
                    Some(at) => {
                        let written = held.phases[at].predicted_ns;
                        assert!(written.is_none_or(|_| held.phases[at] == *phase), "a prediction is written once");
                        held.phases[at] = *phase;
                    }
                    None => held.phases.push(*phase),
                }
            }
            Durable::Peak(peak) => {
                held.peaks.retain(|held| (held.epoch, &held.device) != (peak.epoch, &peak.device));
                held.peaks.push(peak.clone());
            }
            Durable::Finished(finished) => {
                assert!(held.finished.replace(finished.clone()).is_none(), "a run ends once");
            }
            Durable::Asked(mode) => held.asked = *mode,
            Durable::Failed(failure) => held.failed = Some(failure.clone()),
        }
    }

    pub fn store(&mut self, device: &str, samples: &[Sample]) -> Vec<Record> {
        let records: Vec<Record> = samples.iter().map(|&sample| sample.into()).collect();
        self.records.extend(records.iter().map(|&record| (device.to_owned(), record)));
        for sample in samples {
            if let Sample::Iteration { place, duration_ns, loss_bits, .. } = *sample
                && !self.held.iterations.iter().any(|known| known.index == place.step)
            {
                let (epoch, generation) = (place.epoch, place.generation);
                let record = IterationRecord { index: place.step, epoch, generation, duration_ns, loss_bits };
                self.held.iterations.push(record);
            }
        }
        records
    }
}
