//! The GPU's clock of a session: times of layers by events in the stream that they run in.

use crate::session::Inner;
use adaptis_agent_core::GovernorLimits;
use adaptis_proto::sample::Phase;
use adaptis_proto::{LayerIndex, Microbatch, Step};
use adaptis_timer::{Next, Options, Share, Stream, Ticket, What};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stands for a work that is not timed.
const NOT_TIMED: u64 = 0;

/// Times works of a CUDA device for the ring of its session. A stream is the number that PyTorch has for it
/// (`torch.cuda.Stream.cuda_stream`): one of the device, which exists.
#[pyclass(frozen, module = "adaptis")]
pub(crate) struct Timer(Arc<Mutex<Inner>>);

impl Timer {
    /// Makes the events. The context of the device must be current.
    pub fn start(inner: Arc<Mutex<Inner>>, events: usize, budget_share: f64) -> PyResult<Self> {
        if !(budget_share > 0.0 && budget_share <= 1.0) {
            return Err(PyValueError::new_err(format!("a budget is a share, not {budget_share}")));
        }
        let timer = Self(inner);
        let mut session = timer.lock();
        let governor = GovernorLimits { budget_share, ..GovernorLimits::default() };
        let options = Options { work_events: events, governor, ..Options::default() };
        let next = session.next();
        let started = adaptis_timer::Timer::start(&options, next);
        session.timer = Some(started.map_err(|error| PyOSError::new_err(error.to_string()))?);
        drop(session);
        Ok(timer)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream by PyTorch's number.
fn stream(number: usize) -> Stream {
    // SAFETY: the contract of the class, which the package's own callers keep: they ask PyTorch for the number each time.
    unsafe { Stream::from_raw(number) }
}

fn number(ticket: Option<Ticket>) -> u64 {
    ticket.map_or(NOT_TIMED, |ticket| ticket.number())
}

#[pymethods]
impl Timer {
    /// Names works that share intervals: `(layer, phase, weight)` each, phases in the order F, I, W, recomputation,
    /// optimizer. None where there is no room for more.
    fn share(&self, parts: Vec<(u32, u8, u64)>) -> PyResult<Option<u32>> {
        let part = |(layer, phase, weight): (u32, u8, u64)| {
            let phase = Phase::ALL.get(usize::from(phase)).copied()?;
            Some(Share { layer: LayerIndex(layer), phase, weight })
        };
        let parts: Option<Vec<Share>> = parts.into_iter().map(part).collect();
        let parts = parts.ok_or_else(|| PyValueError::new_err("there are five phases"))?;
        Ok(self.lock().timer.as_mut().and_then(|timer| timer.share(&parts)).map(adaptis_timer::Shares::number))
    }

    /// Begins to time works; 0 if they are not timed now.
    fn begin(&self, on: usize, shares: u32, microbatch: u32) -> u64 {
        self.lock().timed(|timer| {
            let what = What::Shared { shares: timer.shares(shares)?, microbatch: Microbatch(microbatch) };
            timer.begin(stream(on), what)
        })
    }

    /// The same where nothing was sent or received since works ended in the stream, whose number is `ended`.
    fn begin_after(&self, on: usize, ended: u64, shares: u32, microbatch: u32) -> u64 {
        self.lock().timed(|timer| {
            let what = What::Shared { shares: timer.shares(shares)?, microbatch: Microbatch(microbatch) };
            timer.begin_after(stream(on), &Ticket::from_number(ended), what)
        })
    }

    /// Ends them.
    fn end(&self, on: usize, number: u64) {
        if let Some(timer) = &mut self.lock().timer {
            timer.end(stream(on), Ticket::from_number(number));
        }
    }

    /// Ends works and begins others that follow at once; 0 if these are not timed.
    fn pass_on(&self, on: usize, number: u64, shares: u32, microbatch: u32) -> u64 {
        let ticket = (number != NOT_TIMED).then(|| Ticket::from_number(number));
        self.lock().timed(|timer| match timer.shares(shares) {
            Some(shares) => timer.pass(stream(on), ticket, What::Shared { shares, microbatch: Microbatch(microbatch) }),
            None => None,
        })
    }

    /// Begins works that interrupt others; if those are timed, these are as well.
    fn begin_within(&self, on: usize, outer: u64, shares: u32, microbatch: u32) -> u64 {
        self.lock().timed(|timer| {
            let what = What::Shared { shares: timer.shares(shares)?, microbatch: Microbatch(microbatch) };
            timer.begin_within(stream(on), &Ticket::from_number(outer), what)
        })
    }

    /// Nothing is recorded of what began.
    fn forget(&self, number: u64) {
        if let Some(timer) = &mut self.lock().timer {
            timer.forget(&Ticket::from_number(number));
        }
    }

    /// Ends works that interrupted others, whose time is then without theirs.
    fn end_within(&self, on: usize, number: u64, outer: u64) {
        if let Some(timer) = &mut self.lock().timer {
            timer.end_within(stream(on), Ticket::from_number(number), &Ticket::from_number(outer));
        }
    }

    /// After the session has heard that another iteration begins: asks for what was timed before, and times the iteration,
    /// which ends in this stream.
    fn boundary(&self, on: usize) {
        let mut session = self.lock();
        session.resolve();
        if session.place.is_some()
            && let Some(timer) = &mut session.timer
        {
            timer.turn(stream(on));
        }
    }

    /// The loss of an iteration has come from the device; from the first one on, iterations are recorded with theirs.
    fn knows(&self, step: u64, loss: f32) {
        if let Some(timer) = &mut self.lock().timer {
            timer.knows(Step(step), loss);
        }
    }

    /// Nothing of the iteration under way is recorded as one.
    fn forget_iteration(&self) {
        if let Some(timer) = &mut self.lock().timer {
            timer.forget_iteration();
        }
    }

    /// What became of the works so far: `begun = recorded + given_up + abandoned + unplaced + lost + pending`.
    #[getter]
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let counters = self.lock().counters();
        BTreeMap::from([
            ("begun", counters.begun),
            ("recorded", counters.recorded),
            ("given_up", counters.given_up),
            ("abandoned", counters.abandoned),
            ("unplaced", counters.unplaced),
            ("lost", counters.lost),
            ("pending", counters.pending),
            ("pool_empty", counters.pool_empty),
            ("capturing", counters.capturing),
        ])
    }
}

impl Inner {
    /// The iteration that begins.
    fn next(&self) -> Next {
        let place = self.place.unwrap_or_default();
        Next { place, mark: self.mark(place), microbatches: self.microbatches }
    }

    /// Begins something, if this rank takes part.
    fn timed(&mut self, begin: impl FnOnce(&mut adaptis_timer::Timer) -> Option<Ticket>) -> u64 {
        match (&mut self.timer, self.place) {
            (Some(timer), Some(_)) => number(begin(timer)),
            _ => NOT_TIMED,
        }
    }

    fn resolve(&mut self) {
        let next = self.next();
        if let Some(timer) = &mut self.timer {
            timer.boundary(next, &mut self.recorder);
        }
    }

    /// What became of the works, also after the end.
    fn counters(&self) -> adaptis_timer::Counters {
        self.timer.as_ref().map_or(self.counted, adaptis_timer::Timer::counters)
    }

    /// Asks for all that was timed, which takes two boundaries, and lets go of the events.
    pub(crate) fn end_timing(&mut self) {
        self.resolve();
        self.resolve();
        self.counted = self.counters();
        self.timer = None;
    }
}
