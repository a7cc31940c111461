//! A rank that keeps the rules of DESIGN section 7.

use adaptis_proto::message::{DeviceCard, Job, RankEvent, RankOrder, Refusal};
use adaptis_proto::sample::Place;
use adaptis_proto::{Digest, Epoch, Incarnation, LayerIndex, Step, Term};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Waiting,
    Running,
    Finished,
    Gone,
}

/// The rank.
#[derive(Clone, Debug)]
pub struct Rank {
    pub kind: &'static str,
    pub memory_bytes: u64,
    pub index: usize,
    pub incarnation: Incarnation,
    pub job: Job,
    pub doing: Doing,
    pub place: Place,
    pub seen: Term,
    pub floor: Epoch,
    pub armed: Option<(Epoch, Digest)>,
    pub refuses: Option<Refusal>,
    pub rejected: bool,
}

impl Rank {
    pub fn hello(&self) -> RankEvent {
        let card = DeviceCard {
            name: self.job.devices[self.index].clone(),
            kind: self.kind.into(),
            memory_bytes: self.memory_bytes,
            reserved_bytes: 0,
        };
        RankEvent::Hello {
            incarnation: self.incarnation,
            card,
            job: self.job.clone(),
            endpoint: format!("tcp://{}", self.index),
            place: (self.doing != Doing::Waiting).then_some(self.place),
            seen: self.seen,
        }
    }

    pub fn layers(&self) -> Vec<(LayerIndex, Digest)> {
        let (layers, devices) = (self.job.layers.len(), self.job.devices.len());
        (self.index * layers / devices..(self.index + 1) * layers / devices)
            .map(|layer| (layer.into(), Digest([layer as u8; 32])))
            .collect()
    }

    pub fn take(&mut self, order: RankOrder) -> Option<RankEvent> {
        let term = match &order {
            RankOrder::Start { term, .. }
            | RankOrder::Prepare { term, .. }
            | RankOrder::Abort { term, .. }
            | RankOrder::Dismissed { term }
            | RankOrder::Introduce { term }
            | RankOrder::Rejected { term, .. } => *term,
        };
        if term < self.seen || self.doing == Doing::Gone {
            return None;
        }
        self.seen = term;
        let incarnation = self.incarnation;
        match order {
            RankOrder::Start { generation, epoch, .. } => {
                if self.doing == Doing::Waiting {
                    self.doing = Doing::Running;
                    self.place = Place { step: Step(0), epoch, generation };
                }
                None
            }
            RankOrder::Prepare { generation, parent, epoch, digest, .. } => {
                let refused = |reason| Some(RankEvent::Refused { incarnation, generation, epoch, reason });
                match () {
                    () if self.doing != Doing::Running => refused(Refusal::Stopped),
                    () if generation != self.place.generation => {
                        refused(Refusal::Generation { own: self.place.generation })
                    }
                    () if epoch < self.floor => refused(Refusal::Aborted { floor: self.floor }),
                    () if parent != self.place.epoch => refused(Refusal::Parent { own: self.place.epoch }),
                    () => match self.refuses.clone() {
                        Some(reason) => refused(reason),
                        None => {
                            self.armed = Some((epoch, digest));
                            Some(RankEvent::Prepared { incarnation, generation, epoch })
                        }
                    },
                }
            }
            RankOrder::Abort { epoch, .. } => {
                self.floor = self.floor.max(epoch.next());
                self.armed = None;
                None
            }
            RankOrder::Dismissed { .. } => {
                self.doing = Doing::Gone;
                None
            }
            RankOrder::Introduce { .. } => Some(self.hello()),
            RankOrder::Rejected { .. } => {
                self.rejected = true;
                None
            }
        }
    }
}
