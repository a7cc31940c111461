//! Files of others as accounts.
//!
//! A file that lacks what a profile needs is refused with all that it lacks: the unit of its times, the kind of the card,
//! how a backward splits. Nothing of that is guessed.

use super::account::{Account, Collection, Distribution, Source, WorkKey};
use super::aceso::{self, AcesoError};
use super::exchange::{self, ExchangeError, SECONDS_MAX, nanoseconds, phase_of, split, split_text};
use super::kind::kind_of;
use super::measurement::MeasuredPhase;
use super::sailor::{self, Facts, SailorError};
use super::sketch::Sketch;
use super::source::{content_of, reading};
use super::text::{self, NoJson};
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
    /// What a trace is of, so that traces of one model are compared.
    pub model: Option<String>,
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
    /// It has no use for it.
    #[error("{what} has no use for {flag}: leave it out, or import it apart from the others")]
    NotItsOwn {
        /// What it is.
        what: &'static str,
        /// Which argument.
        flag: &'static str,
    },
    /// Nobody's format, as far as can be told.
    #[error("its format is not plain: say it with --format sailor, aceso, straggler or adaptis")]
    NotPlain,
    /// It begins as JSON does and is none.
    #[error(transparent)]
    Json(#[from] NoJson),
    /// There is nothing in it to keep.
    #[error("no time in it is above zero: zero says that nothing was measured, so there is nothing to keep")]
    Nothing,
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

/// Whose format a text is of.
///
/// # Errors
/// It begins as JSON does and is none, or nobody's format is plain.
pub fn detect(text: &str) -> Result<Format, ImportError> {
    if aceso::is_one(text) {
        return Ok(Format::Aceso);
    }
    if !text.trim_start().starts_with(['{', '[']) {
        return Err(ImportError::NotPlain);
    }
    let value = text::json(text)?;
    let object = value.as_object().ok_or(ImportError::NotPlain)?;
    let is_numbers = object.keys().next().is_some_and(|key| key.parse::<u64>().is_ok());
    match object.contains_key("format") {
        true => Ok(Format::Adaptis),
        false if is_numbers => Ok(Format::Sailor),
        false => Err(ImportError::NotPlain),
    }
}

/// A file that is being read.
struct Reading<'a> {
    name: &'a str,
    text: &'a str,
    given: &'a Given,
    now: u64,
}

/// Reads a file by its name and text; `now` is in seconds since 1970.
///
/// # Errors
/// Not of the format: the first such place; or what it does not say, or says itself; or it holds no profile.
pub fn import(name: &str, text: &str, format: Format, given: &Given, now: u64) -> Result<Collection, ImportError> {
    let reading = Reading { name, text, given, now };
    let mut collection = Collection::default();
    match format {
        Format::Adaptis => collection = reading.adaptis()?,
        Format::Sailor => collection.take(reading.sailor()?),
        Format::Aceso => collection.take(reading.aceso()?),
    }
    let has_told = |account: &Account| match format {
        Format::Adaptis => !account.is_empty(),
        Format::Sailor | Format::Aceso => !account.works.is_empty(),
    };
    let is_told = collection.accounts().any(has_told);
    if is_told { Ok(collection) } else { Err(ImportError::Nothing) }
}

impl Reading<'_> {
    fn adaptis(&self) -> Result<Collection, ImportError> {
        let given = self.given;
        let software = Some(&given.software).filter(|software| !software.is_empty());
        for (what, flag, is_given) in [
            ("the unit of its times", "--unit", given.unit.is_some_and(|unit| unit != Unit::Seconds)),
            ("the kind of GPU", "--kind", given.kind.is_some()),
            ("the software of its times, where it has one,", "--software", software.is_some()),
            ("the models of its signatures", "--model", given.model.is_some()),
        ] {
            if is_given {
                return Err(ImportError::Says { what, flag });
            }
        }
        given.no_facts("an export of profiles")?;
        exchange::read(self.name, self.text, given.split_backward, self.now).map_err(|error| match error {
            ExchangeError::Unsplit { .. } => ImportError::Lacks(vec![Lack::SplitBackward]),
            other => other.into(),
        })
    }

    fn sailor(&self) -> Result<Account, ImportError> {
        let given = self.given;
        if given.model.is_some() {
            return Err(ImportError::Says { what: "the model by its name", flag: "--model" });
        }
        let file = match (sailor::read(self.name, self.text, &given.facts), &given.kind) {
            // The name may lack the card where the user gives it.
            (Err(SailorError::Name), Some(kind)) => {
                let stem = self.name.rsplit(['/', '\\']).next().unwrap_or(self.name);
                let stem = stem.strip_suffix(".json").unwrap_or(stem);
                sailor::read(&format!("{stem}.{kind}.json"), self.text, &given.facts)?
            }
            (Err(SailorError::Name), None) => {
                let split = given.split_backward.is_none().then_some(Lack::SplitBackward);
                return Err(ImportError::Lacks([Lack::Kind].into_iter().chain(split).collect()));
            }
            (file, _) => file?,
        };
        let kind = given.kind.as_deref().map_or(file.kind, kind_of);
        let unit = given.unit.unwrap_or(Unit::Seconds);
        let has_backward = file.measurements.iter().any(|of| of.cell.phase == MeasuredPhase::Backward);
        let share = share(given, has_backward)?;
        let mut works = self.works(kind.clone(), unit, share);
        for of in &file.measurements {
            works.take(&of.cell.signature, of.cell.phase, of.seconds, of.count)?;
        }
        let facts = [("dtype", given.facts.dtype.clone()), ("sequence", given.facts.sequence.map(|of| of.to_string()))];
        let parts = [("model", Some(file.model)), ("kind", Some(kind))].into_iter().chain(facts);
        let source = self.source("sailor", parts, unit, has_backward.then_some(share));
        let mut account = Account { source, works: works.packed(), ..Account::default() };
        account.count_samples();
        Ok(account)
    }

    fn aceso(&self) -> Result<Account, ImportError> {
        let given = self.given;
        if given.model.is_some() {
            return Err(ImportError::Says { what: "the model by its name", flag: "--model" });
        }
        given.no_facts("a file of Aceso")?;
        let operators = aceso::read(self.name, self.text)?;
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
        let mut works = self.works(kind.clone(), unit, share);
        let setting = operators.first().and_then(|of| of.signature.split_once('/')).map(|(_, rest)| rest.to_owned());
        let parts = [("model", setting), ("kind", Some(kind.clone()))];
        let source = self.source("aceso", parts, unit, has_backward.then_some(share));
        let mut account = Account { source, ..Account::default() };
        for of in operators {
            for (phase, time) in [(MeasuredPhase::Forward, of.forward), (MeasuredPhase::Backward, of.backward)] {
                time.map_or(Ok(()), |time| works.take(&of.signature, phase, time, 1))?;
            }
            account.memories.insert((of.signature.clone(), kind.clone()), of.memory);
            account.sizes.insert(of.signature, of.sizes);
        }
        account.works = works.packed();
        account.count_samples();
        Ok(account)
    }

    fn works(&self, kind: String, unit: Unit, share: f64) -> Works<'_> {
        Works { kind, unit, share, software: &self.given.software, now: self.now, works: BTreeMap::new() }
    }

    fn source<'a>(
        &self,
        format: &str,
        parts: impl IntoIterator<Item = (&'a str, Option<String>)>,
        unit: Unit,
        share: Option<f64>,
    ) -> Source {
        let rest = [
            ("unit", Some(unit.to_string())),
            ("backward split", share.map(split_text)),
            ("software", self.given.software_text()),
        ];
        let how = reading(format, parts.into_iter().chain(rest));
        Source::of_file(&content_of(self.text.as_bytes()), self.name, &how, self.now)
    }
}

impl Given {
    /// The software, quoted, if there is one.
    pub(super) fn software_text(&self) -> Option<String> {
        (!self.software.is_empty()).then(|| format!("{:?}", self.software))
    }

    /// What only Sailor's files take.
    pub(super) fn no_facts(&self, what: &'static str) -> Result<(), ImportError> {
        for (flag, is_given) in [("--dtype", self.facts.dtype.is_some()), ("--sequence", self.facts.sequence.is_some())]
        {
            if is_given {
                return Err(ImportError::NotItsOwn { what, flag });
            }
        }
        Ok(())
    }
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
