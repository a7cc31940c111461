//! A rank as a process: reads its emulation, meets the coordinator, trains, and leaves.

use crate::backend::cpu::Text;
use crate::backend::emulated::{Device, Late, links::Links, memory};
use crate::clock::Monotonic;
use crate::tape::Tape;
use crate::training::{Outcome, Parts, Training};
use crate::transport::{Mailbox, Peers, tcp};
use crate::{Emulation, ExecutorError, Halt};
use adaptis_link::{Client, Limits, Security};
use adaptis_plan::{Plan, Problem};
use adaptis_proto::message::{Bounds, Failure, Refusal};
use adaptis_proto::sample::Place;
use adaptis_proto::{DeviceIndex, Incarnation, Step};
use adaptis_ring::{CAPACITY_RECORDS_DEFAULT, Recorder};
use adaptis_session::{Compiler, Control, News, Room, Station};
use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How a rank is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// `tcp://HOST:PORT`.
    pub coordinator: String,
    /// Name of the device, one of the emulation's.
    pub device: String,
    /// The `adaptis.emulation/1` file.
    pub emulation: PathBuf,
    /// Where to put the ring that the agent reads: nothing, or an earlier process's ring, may lie there.
    pub ring: PathBuf,
    /// Of the links to the coordinator and to the peers.
    pub security: Security,
    /// Where to listen for peers, `tcp://127.0.0.1:*`.
    pub listen: String,
    /// A peer is waited for the larger one of this and of 5 predicted iterations, and as long as its work may take.
    pub patience: Duration,
    /// A rank that has finished stays until it is dismissed, since the digests of its layers would be lost with it; every
    /// so often it says that it waits.
    pub dismissal: Duration,
    /// How long a rank that has failed goes on telling so.
    pub farewell: Duration,
}

impl Options {
    /// The rest, with the deadlines of production.
    pub fn new(coordinator: String, device: String, emulation: PathBuf, ring: PathBuf) -> Options {
        Options {
            coordinator,
            device,
            emulation,
            ring,
            security: Security::Open,
            listen: "tcp://127.0.0.1:*".to_owned(),
            patience: Duration::from_secs(30),
            dismissal: Duration::from_secs(60),
            farewell: Duration::from_secs(3),
        }
    }
}

/// How a rank ended in good order.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// All iterations are done and recorded.
    Finished {
        /// Where training ended.
        place: Place,
        /// By how much the host was too slow for the device.
        late: Late,
        /// Samples lost because the ring was full.
        dropped: u64,
    },
    /// It was asked to stop.
    Stopped,
}

/// News that training has not taken yet. Full: what comes is a repetition, and dropped.
const NEWS_MAX: usize = 8;
/// How often a wait for news looks at the stop flag.
const SLICE: Duration = Duration::from_millis(100);

/// Runs a rank to its end. `stop` ends it at the next boundary or bounded wait.
///
/// # Errors
/// Wrong files, a link or a ring that can't be made, a coordinator that turns it away or is gone at the end, a failure
/// of training.
pub fn run(options: Options, stop: Arc<AtomicBool>) -> Result<Ended, ExecutorError> {
    let emulation = read_emulation(&options.emulation)?;
    let text = read_text(&emulation.text)?;
    let index = emulation.truth.device_index(&options.device).ok_or_else(|| ExecutorError::UnknownDevice {
        device: options.device.clone(),
        known: emulation.truth.devices.iter().map(|device| device.name.clone()).collect(),
    })?;
    let (truth, index) = (Arc::new(emulation.truth.clone()), DeviceIndex::from(index));
    let incarnation = Incarnation(RandomState::new().hash_one(std::process::id()));
    // Made only once this rank is let in: until then the place may be another's.
    Recorder::check(&options.ring, &options.device, incarnation, CAPACITY_RECORDS_DEFAULT)?;
    let listener = tcp::Listener::bind(&options.listen, &options.security)?;

    let room = EmulatedRoom { truth: Arc::clone(&truth), device: index };
    let compiler = Compiler::new(&emulation.job(), index, Box::new(room));
    let (station, events) = Station::new(&options.device, incarnation, compiler);
    let identity = format!("rank/{}/{incarnation}", options.device);
    let limits = Limits { outgoing_len: 64, per_peer_len: 64, ..Limits::default() };
    let (news_in, news) = sync_channel(NEWS_MAX);
    let leave = Arc::new(AtomicBool::new(false));
    let control = Control {
        coordinator: options.coordinator.clone(),
        client: Client::connect(&options.coordinator, &identity, &options.security, limits)?,
        station: Arc::clone(&station),
        incarnation,
        card: emulation.card(index.index()),
        job: emulation.job(),
        bounds: Bounds::default(),
        hosts: Vec::new(),
        mode: None,
        hello_again: None,
        endpoint: listener.endpoint().to_owned(),
        events,
        news: news_in,
        leave: Arc::clone(&leave),
    };
    let thread = std::thread::Builder::new().name("control".into()).spawn(move || control.run());
    let thread = thread.map_err(ExecutorError::Thread)?;

    let rank = Rank { options, incarnation, emulation, truth, index, text, station, stop, news };
    let ended = rank.live(listener);
    leave.store(true, Ordering::Relaxed);
    if thread.join().is_err() {
        tracing::error!("the control thread panicked");
    }
    ended
}

struct Rank {
    options: Options,
    incarnation: Incarnation,
    emulation: Emulation,
    truth: Arc<Problem>,
    index: DeviceIndex,
    text: Text,
    station: Arc<Station>,
    stop: Arc<AtomicBool>,
    news: Receiver<News>,
}

impl Rank {
    fn live(&self, listener: tcp::Listener) -> Result<Ended, ExecutorError> {
        let (begin, compiled) = match self.wait_for_news(None) {
            Some(News::Begin(begin, compiled)) => (begin, compiled),
            Some(News::Rejected(reason)) => {
                // What there is to say of it is said by the control thread; give it the time.
                self.wait_for_news(Some(self.options.farewell));
                return Err(ExecutorError::Rejected(reason));
            }
            Some(News::Dismissed) | None => return Ok(Ended::Stopped),
        };
        let recorder = Rc::new(RefCell::new(self.recorder()?));
        let tape = Tape::new(recorder.clone());
        let place = Place { step: Step(0), epoch: begin.epoch, generation: begin.generation };
        let wire = listener.connect(&begin.members, self.index).inspect_err(|error| self.bow_out(error.to_string()))?;
        let mailbox = Mailbox::new(wire, self.index, place, self.options.patience, Arc::clone(&self.stop));
        let links = Links::new(&self.truth, self.index);
        let peers = Peers::new(mailbox, links, tape.clone(), Arc::clone(&self.truth), self.index);
        let device = Device::new(
            &self.emulation,
            Arc::clone(&self.truth),
            self.index,
            self.text.clone(),
            Monotonic::new(),
            tape.clone(),
            Arc::clone(&self.stop),
        )
        .map_err(|source| ExecutorError::Emulation { path: self.options.emulation.clone(), source })?;
        let parts = Parts {
            station: Arc::clone(&self.station),
            device,
            peers,
            tape,
            index: self.index,
            truth: Arc::clone(&self.truth),
            compiled,
            place,
            patience_floor: self.options.patience,
        };
        let mut training = Training::new(&self.emulation, parts);
        let outcome = training.calibrate_and_train();
        let (late, (refused, malformed)) = training.counters();
        let dropped = recorder.borrow().dropped();
        let Late { ns: late_ns, count: late_count, absorbed_ns, hasty } = late;
        tracing::info!(late_ns, late_count, absorbed_ns, hasty, refused, malformed, dropped, "training ended");
        match outcome {
            Ok(outcome) => self.await_dismissal(&outcome, late, dropped),
            Err(Halt::Asked) => Ok(Ended::Stopped),
            Err(Halt::Failed(failure)) => {
                self.wait_for_news(Some(self.options.farewell));
                let devices = self.truth.devices.iter().map(|device| device.name.clone()).collect();
                Err(ExecutorError::Failed { failure, devices })
            }
        }
    }

    fn recorder(&self) -> Result<Recorder, ExecutorError> {
        let Options { ring, device, .. } = &self.options;
        let made = Recorder::create(ring, device, self.incarnation, CAPACITY_RECORDS_DEFAULT);
        made.inspect_err(|error| self.bow_out(format!("ring: {error}"))).map_err(ExecutorError::Ring)
    }

    /// Tells everyone that this rank can't begin.
    fn bow_out(&self, reason: String) {
        self.station.failed(Failure::Environment(reason));
        self.wait_for_news(Some(self.options.farewell));
    }

    fn await_dismissal(&self, outcome: &Outcome, late: Late, dropped: u64) -> Result<Ended, ExecutorError> {
        let (begun, mut told) = (Instant::now(), Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            match self.news.recv_timeout(SLICE) {
                Ok(News::Dismissed) => return Ok(Ended::Finished { place: outcome.place, late, dropped }),
                Ok(News::Begin(..) | News::Rejected(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ExecutorError::Unconfirmed),
            }
            if told.elapsed() >= self.options.dismissal {
                told = Instant::now();
                let (at, waited_s) = (&self.options.coordinator, begun.elapsed().as_secs());
                tracing::warn!("training is done; waiting for {at} to record it, for {waited_s} s so far");
            }
        }
        Ok(Ended::Stopped)
    }

    /// The next news; none at the deadline or the stop flag.
    fn wait_for_news(&self, limit: Option<Duration>) -> Option<News> {
        let begun = Instant::now();
        while !self.stop.load(Ordering::Relaxed) && limit.is_none_or(|limit| begun.elapsed() < limit) {
            match self.news.recv_timeout(SLICE) {
                Ok(news) => return Some(news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }
}

/// The emulated device's word on memory.
pub struct EmulatedRoom {
    /// Sizes in force.
    pub truth: Arc<Problem>,
    /// Which device.
    pub device: DeviceIndex,
}

impl Room for EmulatedRoom {
    fn grant(&self, current: Option<&Plan>, next: &Plan) -> Result<(), Refusal> {
        let available_bytes = self.truth.devices[self.device.index()].memory_bytes;
        let switch = current.map_or(0, |current| memory::switch_bytes(&self.truth, self.device, current, next));
        let needed_bytes = memory::peak_bytes(&self.truth, self.device, next).max(switch);
        match needed_bytes <= available_bytes {
            true => Ok(()),
            false => Err(Refusal::Memory { needed_bytes, available_bytes }),
        }
    }
}

/// The bytes of a regular file: another would be waited for with the signals unheard that ask for an end.
fn read(path: &Path) -> Result<Vec<u8>, ExecutorError> {
    let fail = |source| ExecutorError::File { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(fail)?.is_file() {
        return std::fs::read(path).map_err(fail);
    }
    Err(fail(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")))
}

fn read_emulation(path: &Path) -> Result<Emulation, ExecutorError> {
    let not_text = |_| std::io::Error::new(std::io::ErrorKind::InvalidData, "not a UTF-8 text");
    let text = String::from_utf8(read(path)?).map_err(not_text);
    let text = text.map_err(|source| ExecutorError::File { path: path.to_owned(), source })?;
    Emulation::read(&text).map_err(|source| ExecutorError::Emulation { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> Result<Text, ExecutorError> {
    let bytes = read(path)?;
    Text::from_bytes(bytes).map_err(|source| ExecutorError::Text { path: path.to_owned(), source })
}
