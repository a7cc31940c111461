//! Files of others as accounts.
//!
//! A file that lacks what a profile needs is refused with all that it lacks: the unit of its times, the kind of the card,
//! how a backward splits. Nothing of that is guessed.

use super::account::Distribution;
use super::account::{Account, Collection, Source, WorkKey};
use super::aceso::{self, AcesoError};
use super::exchange::{self, ExchangeError, SECONDS_MAX, nanoseconds, phase_of, split, split_text};
use super::kind::kind_of;
use super::measurement::MeasuredPhase;
use super::sailor::{self, Facts, SailorError};
use super::sketch::Sketch;
use adaptis_proto::sample::Phase;
use std::collections::BTreeMap;
use std::fmt;

/// Whose format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `MODEL.GPU.json`.
    Sailor,
    /// `MODEL_mbs1_tp1_algo0.csv`.
    Aceso,
    /// `adaptis.profiles/1`.
    Adaptis,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// A thousand in a second.
    Milliseconds,
    /// A million in a second.
    Microseconds,
    /// A billion in a second.
    Nanoseconds,
}

impl Unit {
    fn seconds(self) -> f64 {
        match self {
            Unit::Seconds => 1.0,
            Unit::Milliseconds => 1e-3,
            Unit::Microseconds => 1e-6,
            Unit::Nanoseconds => 1e-9,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Seconds => "s",
            Unit::Milliseconds => "ms",
            Unit::Microseconds => "us",
            Unit::Nanoseconds => "ns",
        })
    }
}

/// What a user says of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Unit of its times.
    pub unit: Option<Unit>,
    /// Kind of the card.
    pub kind: Option<String>,
    /// The input gradient's share of a backward, 0 to 1.
    pub split_backward: Option<f64>,
    /// Driver, library versions, power limit.
    pub software: String,
    /// Number format and sequence length, for signatures.
    pub facts: Facts,
}

/// What a file does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The unit of its times.
    Unit,
    /// The kind of the card.
    Kind,
    /// How a backward splits into input and weight gradient.
    SplitBackward,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Unit => "the unit of its times (--unit us)",
            Lack::Kind => "the kind of GPU (--kind v100-32g)",
            Lack::SplitBackward => {
                "how its backward splits into input gradient and weight gradient (--split-backward 0.5:0.5)"
            }
        })
    }
}

/// Why a file was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It does not say all.
    #[error("the file does not say {}", listed(.0))]
    Lacks(Vec<Lack>),
    /// It says so itself.
    #[error("the file says {what} itself: leave out {flag}")]
    Says {
        /// What.
        what: &'static str,
        /// Which argument.
        flag: &'static str,
    },
    /// A time that is none.
    #[error("{signature}, {phase}: {seconds} s is no time of one layer; is {unit} the unit?")]
    Time {
        /// Whose.
        signature: String,
        /// Which.
        phase: MeasuredPhase,
        /// As found.
        seconds: f64,
        /// The unit that it was taken in.
        unit: Unit,
    },
    /// Not Sailor's.
    #[error(transparent)]
    Sailor(#[from] SailorError),
    /// Not Aceso's.
    #[error(transparent)]
    Aceso(#[from] AcesoError),
    /// No trace of StragglerAnalysis.
    #[error(transparent)]
    Straggler(#[from] crate::trace::TraceError),
    /// Not ours.
    #[error(transparent)]
    Adaptis(#[from] ExchangeError),
}

fn listed(lacks: &[Lack]) -> String {
    lacks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", nor ")
}

/// Whose format a text is of, where that is plain.
pub fn detect(text: &str) -> Option<Format> {
    if aceso::is_one(text) {
        return Some(Format::Aceso);
    }
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let object = value.as_object()?;
    match object.get("format") {
        Some(_) => Some(Format::Adaptis),
        None => object.keys().next().filter(|key| key.parse::<u64>().is_ok()).map(|_| Format::Sailor),
    }
}

/// Reads a file by its name and text; `now` is in seconds since 1970.
///
/// # Errors
/// Not of the format: the first such place; or what it does not say.
pub fn import(name: &str, text: &str, format: Format, given: &Given, now: u64) -> Result<Collection, ImportError> {
    let id = blake3::hash(text.as_bytes()).to_hex()[..32].to_owned();
    let source = |how: String| Source {
        id: id.clone(),
        name: name.to_owned(),
        how,
        first_seen: now,
        last_seen: now,
        ..Source::default()
    };
    let mut collection = Collection::default();
    match format {
        Format::Adaptis => {
            let says = |what, flag| Err(ImportError::Says { what, flag });
            if given.unit.is_some_and(|unit| unit != Unit::Seconds) {
                return says("the unit of its times", "--unit");
            }
            if given.kind.is_some() {
                return says("the kind of GPU", "--kind");
            }
            let read = exchange::read(name, text, given.split_backward, now);
            return read.map_err(|error| match error {
                ExchangeError::Unsplit { .. } => ImportError::Lacks(vec![Lack::SplitBackward]),
                other => other.into(),
            });
        }
        Format::Sailor => {
            let file = sailor::read(name, text, &given.facts);
            let file = match (file, &given.kind) {
                // The name may lack the card where the user gives it.
                (Err(SailorError::Name), Some(kind)) => {
                    let stem = name.rsplit(['/', '\\']).next().unwrap_or(name);
                    let stem = stem.strip_suffix(".json").unwrap_or(stem);
                    sailor::read(&format!("{stem}.{kind}.json"), text, &given.facts)?
                }
                (Err(SailorError::Name), None) => {
                    let split = given.split_backward.is_none().then_some(Lack::SplitBackward);
                    return Err(ImportError::Lacks([Lack::Kind].into_iter().chain(split).collect()));
                }
                (file, _) => file?,
            };
            let kind = given.kind.as_deref().map_or(file.kind, kind_of);
            let unit = given.unit.unwrap_or(Unit::Seconds);
            let share = share(given, file.measurements.iter().any(|of| of.cell.phase == MeasuredPhase::Backward))?;
            let how = format!("import sailor, unit {unit}{}", split_text(share));
            let mut works = Works { kind, unit, share, software: &given.software, now, works: BTreeMap::new() };
            for of in &file.measurements {
                works.take(&of.cell.signature, of.cell.phase, of.seconds, of.count)?;
            }
            let mut account = Account { source: source(how), works: works.packed(), ..Account::default() };
            account.count_samples();
            collection.take(account);
        }
        Format::Aceso => {
            let operators = aceso::read(name, text)?;
            let has_backward = operators.iter().any(|of| of.backward.is_some());
            let lacks = [
                (Lack::Unit, given.unit.is_none()),
                (Lack::Kind, given.kind.is_none()),
                (Lack::SplitBackward, has_backward && given.split_backward.is_none()),
            ];
            let lacks: Vec<Lack> = lacks.iter().filter(|(_, is_lacking)| *is_lacking).map(|(lack, _)| *lack).collect();
            let (Some(unit), Some(kind), []) = (given.unit, &given.kind, lacks.as_slice()) else {
                return Err(ImportError::Lacks(lacks));
            };
            let (kind, share) = (kind_of(kind), share(given, has_backward)?);
            let how = format!("import aceso, unit {unit}{}", split_text(share));
            let mut works =
                Works { kind: kind.clone(), unit, share, software: &given.software, now, works: BTreeMap::new() };
            let mut account = Account { source: source(how), ..Account::default() };
            for of in operators {
                for (phase, time) in [(MeasuredPhase::Forward, of.forward), (MeasuredPhase::Backward, of.backward)] {
                    time.map_or(Ok(()), |time| works.take(&of.signature, phase, time, 1))?;
                }
                account.memories.insert((of.signature.clone(), kind.clone()), of.memory);
                account.sizes.insert(of.signature, of.sizes);
            }
            account.works = works.packed();
            account.count_samples();
            collection.take(account);
        }
    }
    Ok(collection)
}

/// The input gradient's share of a backward, which must be given where there is one.
fn share(given: &Given, has_backward: bool) -> Result<f64, ImportError> {
    match given.split_backward {
        Some(share) => Ok(share),
        None if has_backward => Err(ImportError::Lacks(vec![Lack::SplitBackward])),
        None => Ok(0.5),
    }
}

/// Times of one card, as they are read.
struct Works<'a> {
    kind: String,
    unit: Unit,
    share: f64,
    software: &'a str,
    now: u64,
    works: BTreeMap<WorkKey, Sketch>,
}

impl Works<'_> {
    fn take(&mut self, signature: &str, phase: MeasuredPhase, time: f64, count: u64) -> Result<(), ImportError> {
        let seconds = time * self.unit.seconds();
        if !(seconds > 0.0 && seconds <= SECONDS_MAX) {
            return Err(ImportError::Time { signature: signature.to_owned(), phase, seconds, unit: self.unit });
        }
        match phase_of(phase) {
            Some(phase) => self.put(signature, phase, seconds, count),
            None => {
                for (phase, share) in split(signature, self.share) {
                    self.put(signature, phase, seconds * share, count);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, signature: &str, phase: Phase, seconds: f64, count: u64) {
        if seconds > 0.0 {
            let (signature, kind, software) = (signature.to_owned(), self.kind.clone(), self.software.to_owned());
            let key = WorkKey { signature, kind, phase, software };
            self.works.entry(key).or_default().record_n(nanoseconds(seconds), count);
        }
    }

    fn packed(self) -> BTreeMap<WorkKey, Distribution> {
        let now = self.now;
        self.works.into_iter().map(|(key, sketch)| (key, Distribution::new(&sketch, now, now))).collect()
    }
}
