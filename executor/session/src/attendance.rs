//! How a trainer that waits for nobody takes part.
//!
//! ```text
//!   ALONE --START came--> CALLED --all called to the same--> PRESENT --vote: all armed--> MOVING --settled--> PRESENT
//! ```
//!
//! Training begins without the coordinator. Once in a while START comes, to each rank at another time; the ranks, which
//! tell one another a [`Word`] at every boundary anyway, take part from the first boundary at which all have it. From then
//! on the word is a vote.
//!
//! 1. All ranks conclude from the same words, so all take part, switch and leave at the same boundary.
//! 2. Nothing here stops training: where a vote fails, the rank leaves the coordinator and trains on by the plan in force.
//! 3. Whether a layer is there is what the plan says: the squares of the gradients, which need a pass over them, are not
//!    voted on, nor is a loss that is not finite, which is the job's affair.

use crate::compiled::Compiled;
use crate::control::News;
use crate::station::{Conclusion, Station};
use adaptis_executor_core::{Ballot, Begin, Rules};
use adaptis_proto::message::{Failure, Rejection, Vote};
use adaptis_proto::sample::Place;
use adaptis_proto::{DeviceIndex, Digest, Epoch, Generation, LayerIndex, Step, Term};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// What a rank is to the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// No START came, or it left.
    #[default]
    Alone,
    /// START came; some others may not have theirs.
    Called,
    /// It votes.
    Present,
    /// Layers move for a plan that all voted for.
    Moving,
}

/// What a rank tells all others at a boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Word {
    /// What it is to the coordinator.
    pub standing: Standing,
    /// Where it stands, or was called to.
    pub place: Place,
    /// Digest of the plan that it was called to.
    pub called: Digest,
    /// Highest term it has seen.
    pub term: Term,
    /// The plan it is armed with.
    pub armed: Option<(Epoch, Digest)>,
    /// Loss of the last iteration.
    pub loss: Option<f32>,
}

const DIGEST_NUMBERS: usize = 4;

impl Word {
    /// Numbers that it travels as.
    pub const NUMBERS: usize = 8 + 2 * DIGEST_NUMBERS;

    /// As numbers of 64 bits, which any all-gather carries.
    pub fn encode(&self) -> [i64; Word::NUMBERS] {
        let (armed, armed_digest) =
            self.armed.map_or((None, Digest::default()), |(epoch, digest)| (Some(epoch), digest));
        let mut numbers = [0; Word::NUMBERS];
        numbers[..8].copy_from_slice(&[
            self.standing as i64,
            self.place.step.0 as i64,
            self.place.epoch.0 as i64,
            self.place.generation.0 as i64,
            self.term.0 as i64,
            i64::from(armed.is_some()),
            armed.unwrap_or_default().0 as i64,
            self.loss.map_or(-1, |loss| i64::from(loss.to_bits())),
        ]);
        for (of, digest) in [self.called, armed_digest].iter().enumerate() {
            for (at, bytes) in digest.0.chunks_exact(8).enumerate() {
                let bytes: [u8; 8] = bytes.try_into().expect("a digest is four times eight bytes");
                numbers[8 + of * DIGEST_NUMBERS + at] = i64::from_le_bytes(bytes);
            }
        }
        numbers
    }

    /// The word that was encoded so; none if no version of this crate did.
    pub fn decode(numbers: &[i64]) -> Option<Word> {
        let numbers: &[i64; Word::NUMBERS] = numbers.try_into().ok()?;
        let digest = |of: usize| {
            let mut bytes = [0; 32];
            for (at, part) in bytes.chunks_exact_mut(8).enumerate() {
                part.copy_from_slice(&numbers[8 + of * DIGEST_NUMBERS + at].to_le_bytes());
            }
            Digest(bytes)
        };
        let standing = match numbers[0] {
            0 => Standing::Alone,
            1 => Standing::Called,
            2 => Standing::Present,
            3 => Standing::Moving,
            _ => return None,
        };
        Some(Word {
            standing,
            place: Place {
                step: Step(numbers[1] as u64),
                epoch: Epoch(numbers[2] as u64),
                generation: Generation(numbers[3] as u64),
            },
            called: digest(0),
            term: Term(numbers[4] as u64),
            armed: (numbers[5] != 0).then_some((Epoch(numbers[6] as u64), digest(1))),
            loss: u32::try_from(numbers[7]).ok().map(f32::from_bits),
        })
    }
}

/// What the words of all ranks come to.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Train on.
    Nothing,
    /// From this iteration on this rank takes part; the coordinator's plan may be another than the one in force.
    Begin(Arc<Compiled>),
    /// Go over to this plan, then say so by [`Attendance::settled`].
    Switch(Arc<Compiled>),
    /// From now on this rank trains by itself.
    Left(Failure),
}

/// A rank's part in a run.
pub struct Attendance {
    station: Arc<Station>,
    news: Receiver<News>,
    standing: Standing,
    called: Option<(Begin, Arc<Compiled>)>,
    current: Option<Arc<Compiled>>,
    layers: usize,
    /// Why the coordinator would not have it, and the same while it was not told.
    refusal: Option<Rejection>,
    turned_away: Option<String>,
}

impl Attendance {
    /// Before START. `layers` is how many the model has.
    pub fn new(station: Arc<Station>, news: Receiver<News>, layers: usize) -> Attendance {
        let (called, current, refusal, turned_away) = (None, None, None, None);
        Attendance { station, news, standing: Standing::Alone, called, current, layers, refusal, turned_away }
    }

    /// What this rank is to the coordinator.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Where its training stands, if it takes part.
    pub fn place(&self) -> Option<Place> {
        matches!(self.standing, Standing::Present | Standing::Moving).then(|| self.station.place()).flatten()
    }

    /// Why the coordinator turned it away, once.
    pub fn take_refusal(&mut self) -> Option<String> {
        self.turned_away.take()
    }

    /// What to tell all others now. It is to be followed by [`Attendance::hear`].
    pub fn word(&mut self, loss: Option<f32>) -> Word {
        self.take_news();
        let loss = loss.filter(|loss| loss.is_finite());
        match (self.standing, &self.called) {
            (Standing::Called, Some((begin, _))) => Word {
                standing: Standing::Called,
                place: Place { step: Step(0), epoch: begin.epoch, generation: begin.generation },
                called: begin.digest,
                ..Word::default()
            },
            (Standing::Present, _) => {
                let Vote { place, term, armed, .. } = self.station.cast(Ballot { loss, ..Ballot::default() });
                Word { standing: Standing::Present, place, term, armed, loss, called: Digest::default() }
            }
            (standing, _) => Word { standing, ..Word::default() },
        }
    }

    fn take_news(&mut self) {
        for news in self.news.try_iter() {
            match news {
                News::Begin(begin, compiled) => {
                    self.called = Some((begin, compiled));
                    self.standing = Standing::Called;
                }
                News::Rejected(reason) if self.refusal.as_ref() != Some(&reason) => {
                    self.turned_away = Some(reason.to_string());
                    self.refusal = Some(reason);
                }
                News::Rejected(_) => {}
                News::Dismissed => {}
            }
        }
    }

    /// The words of all ranks, in order of device index, before iteration `step`.
    pub fn hear(&mut self, words: &[Word], step: Step) -> Heard {
        match self.standing {
            Standing::Alone | Standing::Moving => Heard::Nothing,
            Standing::Called => self.begin(words, step),
            Standing::Present => self.conclude(words),
        }
    }

    fn begin(&mut self, words: &[Word], step: Step) -> Heard {
        let own = |word: &Word| (word.standing, word.place.generation, word.place.epoch, word.called);
        if words.is_empty() || words.iter().any(|word| own(word) != own(&words[0])) {
            return Heard::Nothing;
        }
        let Some((_, compiled)) = self.called.take() else { return Heard::Nothing };
        self.station.begin_at(step);
        self.standing = Standing::Present;
        self.current = Some(Arc::clone(&compiled));
        Heard::Begin(compiled)
    }

    fn conclude(&mut self, words: &[Word]) -> Heard {
        let of = self.current.as_ref().map(|current| current.plan.device_of_layers()).unwrap_or_default();
        let absent = words.iter().enumerate().filter(|(_, word)| word.standing != Standing::Present);
        let dissenters: Vec<DeviceIndex> = absent.map(|(device, _)| device.into()).collect();
        if !dissenters.is_empty() {
            let failure = Failure::VoteUnequal { dissenters };
            self.leave(failure.clone());
            return Heard::Left(failure);
        }
        let vote = |(device, word): (usize, &Word)| {
            let layers = of.iter().enumerate().filter(|(_, owner)| **owner as usize == device);
            Vote {
                place: word.place,
                term: word.term,
                armed: word.armed,
                rotated: true,
                drain: None,
                failure: None,
                squares: layers.map(|(layer, _)| (LayerIndex::from(layer), 0.0)).collect(),
                loss: word.loss,
                ready_ns: 0,
                apply_ns: 0,
            }
        };
        let votes: Vec<Vote> = words.iter().enumerate().map(vote).collect();
        let rules = Rules { layers: self.layers, max_norm: f64::INFINITY, boundary_ns: 0 };
        match self.station.conclude(&votes, &rules) {
            Conclusion::Stay(_) => Heard::Nothing,
            Conclusion::Switch(_, next) => {
                self.current = Some(Arc::clone(&next));
                self.standing = Standing::Moving;
                Heard::Switch(next)
            }
            Conclusion::Stop(failure) => {
                self.standing = Standing::Alone;
                Heard::Left(failure)
            }
        }
    }

    /// The layers of a switch have moved.
    pub fn settled(&mut self) {
        if self.standing == Standing::Moving {
            self.standing = Standing::Present;
            self.station.settled();
        }
    }

    /// Training is over; `layers` are the digests of the layers that this rank holds. Whether the coordinator is to be
    /// told, and its answer waited for.
    pub fn finish(&mut self, layers: Vec<(LayerIndex, Digest)>) -> bool {
        // START may have come since the last word.
        self.take_news();
        match std::mem::take(&mut self.standing) {
            Standing::Alone => return false,
            // Where START came to this rank alone, the coordinator counts on it all the same.
            Standing::Called | Standing::Present => self.station.finished(layers),
            Standing::Moving => {
                let reason = "training ended between two plans".to_owned();
                self.station.failed(Failure::Environment(reason));
            }
        }
        true
    }

    /// Training has failed, or this rank can't take part any longer. Whether the coordinator is to be told.
    pub fn leave(&mut self, failure: Failure) -> bool {
        self.take_news();
        let takes_part = self.standing != Standing::Alone;
        self.standing = Standing::Alone;
        if takes_part {
            self.station.failed(failure);
        }
        takes_part
    }

    /// The coordinator has recorded the end.
    pub fn is_dismissed(&self) -> bool {
        self.news.try_iter().any(|news| matches!(news, News::Dismissed))
    }
}

#[cfg(test)]
mod tests;
