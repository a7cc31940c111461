//! The GPUs as their driver's management library sees them. Makes no context and so costs the GPUs nothing.
//!
//! 1. What a card does not support is found out once, told once, and not asked again.
//! 2. A value that could not be read is left out, and so is one that was not renewed in time; there is no stand-in value.
//! 3. A card that is lost answers nothing, is asked for now and then, and both its end and its return are told.
//! 4. The calls of all cards together keep within a share of one core, by what each of them was measured to take.

use super::Readings;
use super::questions::{Meters, Question, ask};
use adaptis_agent_core::Rota;
use adaptis_ring::now_ns;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::time::Duration;

/// Share of one core that the calls may take.
const BUDGET_SHARE: f64 = 0.001;
/// Looks between two tries to find a card again.
const LOST_LOOKS: u64 = 15;
const QUESTIONS: usize = Question::ALL.len();

/// What asking costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Costs {
    pub calls: u64,
    pub call_ns: u64,
    pub errors: u64,
    /// Of the dearest call so far.
    pub call_ns_max: u64,
}

/// What one question costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallCost {
    /// Which one.
    pub question: &'static str,
    /// Median time of asking; none where the card does not know it.
    pub ns_p50: Option<u64>,
    /// Looks, of two seconds each, between two askings under the budget.
    pub every_looks: u64,
}

/// Asks a GPU everything so many times: what that costs. None without the library or such a GPU.
pub fn call_costs(uuid_or_index: &str, times: usize) -> Option<Vec<CallCost>> {
    let nvml = open()?;
    let device = nvml.device_by_uuid(uuid(&nvml, uuid_or_index)?).ok()?;
    let mut rota = Rota::new(QUESTIONS, super::LOOK_EVERY.as_nanos() as f64 * BUDGET_SHARE);
    let mut meters = Meters::default();
    let mut medians = Vec::new();
    for (at, question) in Question::ALL.into_iter().enumerate() {
        let mut time = || {
            let from_ns = now_ns();
            ask(question, &device, &mut meters, from_ns).ok().map(|_| now_ns() - from_ns)
        };
        let mut durations: Vec<u64> = (0..times.max(1)).map_while(|_| time()).collect();
        durations.sort_unstable();
        let median = durations.get(durations.len() / 2).copied();
        match median {
            Some(ns) => rota.took(at, ns),
            None => rota.retire(at),
        }
        medians.push(median);
    }
    let cost = |at: usize, question: Question| CallCost {
        question: question.name(),
        ns_p50: medians[at],
        every_looks: rota.every_looks(at).unwrap_or(1),
    };
    Some(Question::ALL.into_iter().enumerate().map(|(at, question)| cost(at, question)).collect())
}

/// A GPU by its UUID and what it last said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CardReadings {
    pub uuid: String,
    pub readings: Readings,
}

/// The management library; none without it or the driver, which is logged.
pub(crate) fn open() -> Option<Nvml> {
    Nvml::init().inspect_err(|error| tracing::info!(%error, "no readings by NVML")).ok()
}

/// The UUID of a GPU that is named by it, or by NVML's index.
pub(crate) fn uuid(nvml: &Nvml, uuid_or_index: &str) -> Option<String> {
    let found = match uuid_or_index.parse() {
        Ok(index) => nvml.device_by_index(index).and_then(|device| device.uuid()),
        Err(_) => nvml.device_by_uuid(uuid_or_index).and_then(|device| device.uuid()),
    };
    found.inspect_err(|error| tracing::info!(gpu = uuid_or_index, %error, "no such GPU for NVML")).ok()
}

struct Card<'nvml> {
    device: Device<'nvml>,
    uuid: String,
    meters: Meters,
    /// By name: the value, and until when it is believed.
    values: BTreeMap<&'static str, (f64, u64)>,
    /// At which look it was found lost.
    lost_at: Option<u64>,
}

/// Asks all GPUs of this host that the process may see.
pub(crate) struct Poller<'nvml> {
    nvml: &'nvml Nvml,
    cards: Vec<Card<'nvml>>,
    rota: Rota,
    looks: u64,
    every_ns: u64,
    costs: Costs,
}

impl<'nvml> Poller<'nvml> {
    /// Of all GPUs, or of one. None if there is none.
    pub fn new(nvml: &'nvml Nvml, only: Option<&str>, every: Duration) -> Option<Self> {
        let count = nvml.device_count().inspect_err(|error| tracing::info!(%error, "NVML counts no GPUs")).ok()?;
        let known = |index| {
            let device = nvml.device_by_index(index).ok()?;
            let uuid = device.uuid().ok()?;
            Some(Card { device, uuid, meters: Meters::default(), values: BTreeMap::new(), lost_at: None })
        };
        let cards: Vec<Card<'_>> =
            (0..count).filter_map(known).filter(|card| only.is_none_or(|uuid| uuid == card.uuid)).collect();
        let every_ns = every.as_nanos() as u64;
        let rota = Rota::new(cards.len() * QUESTIONS, every_ns as f64 * BUDGET_SHARE);
        (!cards.is_empty()).then_some(Self { nvml, cards, rota, looks: 0, every_ns, costs: Costs::default() })
    }

    /// Asks what is due, and says what is known now.
    pub fn look(&mut self) -> Vec<CardReadings> {
        self.looks += 1;
        self.find_lost();
        let mut unsupported: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
        for at in self.rota.next_look() {
            let (card, question) = (at / QUESTIONS, Question::ALL[at % QUESTIONS]);
            // It may have been lost or spared since the look began.
            let is_asked = self.cards[card].lost_at.is_none() && self.rota.every_looks(at).is_some();
            if is_asked && self.put(at, card, question) {
                unsupported.entry(card).or_default().push(question.name());
            }
        }
        for (card, questions) in unsupported {
            tracing::info!(gpu = self.cards[card].uuid, questions = questions.join(", "), "the GPU does not answer");
        }
        let now = now_ns();
        self.cards.iter_mut().map(|card| card.readings(now)).collect()
    }

    /// Puts a question; true if it was found that the card does not know it.
    fn put(&mut self, at: usize, card: usize, question: Question) -> bool {
        let of = &mut self.cards[card];
        let from_ns = now_ns();
        let answer = ask(question, &of.device, &mut of.meters, from_ns);
        let ns = now_ns() - from_ns;
        self.rota.took(at, ns);
        self.costs.calls += 1;
        self.costs.call_ns += ns;
        self.costs.call_ns_max = self.costs.call_ns_max.max(ns);
        match answer {
            Ok(answer) => {
                // Until twice its turn is over.
                let looks = self.rota.every_looks(at).unwrap_or(1);
                let until_ns = from_ns + self.every_ns * (2 * looks + 1);
                let has_both = answer.len() == 2;
                of.values.extend(answer.into_iter().map(|(name, value)| (name, (value, until_ns))));
                if question == Question::PcieCounters && has_both {
                    self.rota.retire(card * QUESTIONS + place(Question::PcieSampled));
                }
                false
            }
            Err(error) if is_lost(&error) => {
                tracing::warn!(gpu = of.uuid, %error, "the GPU does not answer any more");
                of.lose(self.looks);
                self.costs.errors += 1;
                false
            }
            Err(error) if is_unknown(&error) => {
                self.rota.retire(at);
                true
            }
            Err(error) => {
                tracing::debug!(gpu = of.uuid, question = question.name(), %error, "no answer this time");
                self.costs.errors += 1;
                false
            }
        }
    }

    fn find_lost(&mut self) {
        let looks = self.looks;
        let is_due = |lost_at: u64| (looks - lost_at).is_multiple_of(LOST_LOOKS) && looks > lost_at;
        for card in self.cards.iter_mut().filter(|card| card.lost_at.is_some_and(is_due)) {
            let found = self.nvml.device_by_uuid(card.uuid.as_str());
            let Ok(device) = found.and_then(|device| device.index().map(|_| device)) else { continue };
            tracing::info!(gpu = card.uuid, "the GPU answers again");
            (card.device, card.lost_at) = (device, None);
        }
    }

    /// What asking cost so far.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// Share of a core that the calls take in the long run.
    #[cfg(test)]
    pub fn core_share(&self) -> f64 {
        self.rota.use_share() * BUDGET_SHARE
    }

    /// Looks between two askings of a question of a card; none if it is not asked.
    #[cfg(test)]
    pub fn every_looks(&self, card: usize, question: Question) -> Option<u64> {
        self.rota.every_looks(card * QUESTIONS + place(question))
    }
}

impl Card<'_> {
    /// Nothing it said before is true any more.
    fn lose(&mut self, look: u64) {
        self.lost_at = Some(look);
        self.values.clear();
        self.meters = Meters::default();
    }

    fn readings(&mut self, now: u64) -> CardReadings {
        self.values.retain(|_, (_, until_ns)| now <= *until_ns);
        let readings = self.values.iter().map(|(name, (value, _))| ((*name).to_owned(), *value)).collect();
        CardReadings { uuid: self.uuid.clone(), readings }
    }
}

fn place(question: Question) -> usize {
    Question::ALL.iter().position(|known| *known == question).expect("all questions are among all")
}

/// The whole card is gone, for now.
fn is_lost(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized)
}

/// It will never be answered: the driver, the card or the user's rights do not allow it.
fn is_unknown(error: &NvmlError) -> bool {
    use NvmlError::{
        FailedToLoadSymbol, FunctionNotFound, InvalidArg, NoPermission, NotFound, NotSupported, UnexpectedVariant,
        VgpuEccNotSupported,
    };
    matches!(
        error,
        NotSupported
            | FailedToLoadSymbol(_)
            | FunctionNotFound
            | InvalidArg
            | NoPermission
            | NotFound
            | UnexpectedVariant(_)
            | VgpuEccNotSupported
    )
}
