//! Where samples go: the ring, or a list in tests.

use adaptis_proto::Step;
use adaptis_proto::sample::Sample;
use adaptis_ring::Recorder;
use std::cell::RefCell;
use std::rc::Rc;

/// Takes samples.
pub trait Record {
    /// Takes one.
    fn record(&mut self, sample: Sample);
    /// The iteration that training is in.
    fn set_step(&mut self, step: Step);
}

impl Record for Recorder {
    fn record(&mut self, sample: Sample) {
        Recorder::record(self, sample);
    }

    fn set_step(&mut self, step: Step) {
        Recorder::set_step(self, step);
    }
}

impl Record for Vec<Sample> {
    fn record(&mut self, sample: Sample) {
        self.push(sample);
    }

    fn set_step(&mut self, _step: Step) {}
}

/// A recorder that the device and the transport of one training thread share.
#[derive(Clone)]
pub struct Tape(Rc<RefCell<dyn Record>>);

impl Tape {
    /// Samples go to `record`.
    pub fn new(record: Rc<RefCell<dyn Record>>) -> Tape {
        Tape(record)
    }

    /// Takes one.
    pub fn record(&self, sample: Sample) {
        self.0.borrow_mut().record(sample);
    }

    /// The iteration that training is in.
    pub fn set_step(&self, step: Step) {
        self.0.borrow_mut().set_step(step);
    }
}
