//! A PyTorch rank's session: its conversation with the coordinator, and the ring that its agent reads.

use crate::plan::Plan;
use crate::timing::Timer;
use adaptis_link::keys::Keyring;
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{Bounds, CrowdedHost, DeviceCard, Failure, Job, JobLayer, Mode, Refusal};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{DeviceIndex, Digest, Epoch, Incarnation, LayerIndex, Microbatch, RunId, Step};
use adaptis_ring::{CAPACITY_RECORDS_DEFAULT, Recorder};
use adaptis_session::{Attendance, COLD_ITERATIONS, Compiled, Compiler, Control, Heard, Room, Standing, Station, Word};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pyfunction;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// News that training has not taken yet.
const NEWS_MAX: usize = 8;
/// How long a rank that was turned away waits before it introduces itself again.
const HELLO_AGAIN: Duration = Duration::from_secs(30);
/// How long START may take after a rank was introduced.
const START_MAY_COME: Duration = Duration::from_millis(300);
/// How often the end of a wait is looked for.
const SLICE: Duration = Duration::from_millis(5);

/// A layer as Python tells it: name, signature, bytes of parameters, of state, of its output, of what moves.
type Layer = (String, String, u64, u64, u64, u64);

/// A rank's conversation with the coordinator, and its samples.
#[pyclass(frozen, module = "adaptis")]
pub(crate) struct Session(Arc<Mutex<Inner>>);

pub(crate) struct Inner {
    attendance: Attendance,
    pub(crate) recorder: Recorder,
    /// Of layers on a CUDA device.
    pub(crate) timer: Option<adaptis_timer::Timer>,
    /// What became of its works, once it has ended.
    pub(crate) counted: adaptis_timer::Counters,
    pub(crate) microbatches: u32,
    /// Where training stands; none while it takes no part.
    pub(crate) place: Option<Place>,
    /// First iteration since the start or the last change.
    since: Step,
    /// Where the ring lies.
    ring: PathBuf,
    leave: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Inner {
    pub(crate) fn mark(&self, place: Place) -> Mark {
        match place.step.0 < self.since.0.saturating_add(COLD_ITERATIONS) {
            true => Mark::Cold,
            false => Mark::Warm,
        }
    }

    /// Records, if this rank takes part.
    fn record(&mut self, sample: impl FnOnce(Place, Mark) -> Sample) {
        if let Some(place) = self.place {
            let sample = sample(place, self.mark(place));
            self.recorder.record(sample);
        }
    }

    fn go_on(&mut self) {
        self.place = self.attendance.place();
        if let Some(place) = self.place {
            self.recorder.set_step(place.step);
        }
    }

    fn begin(&mut self) {
        self.go_on();
        self.since = self.place.map_or(Step(0), |place| place.step);
    }
}

impl Drop for Inner {
    /// Nobody attends any more: the conversation ends.
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
    }
}

/// Whether a plan fits: by what it was predicted to need, where the device has a memory of its own.
struct Memory {
    device: DeviceIndex,
    available_bytes: u64,
    /// The job goes by the plan that it has.
    is_fixed: bool,
}

impl Room for Memory {
    fn grant(&self, current: Option<&adaptis_plan::Plan>, next: &adaptis_plan::Plan) -> Result<(), Refusal> {
        if self.is_fixed && current.is_some() {
            return Err(Refusal::Invalid(vec!["this job is observed and does not change its plan".to_owned()]));
        }
        let peak = next.predicted.as_ref().and_then(|predicted| predicted.peak_bytes.get(self.device.index()));
        match peak {
            Some(&needed_bytes) if needed_bytes > self.available_bytes => {
                Err(Refusal::Memory { needed_bytes, available_bytes: self.available_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// A mode by its word.
fn asked(word: &str) -> PyResult<Mode> {
    let found = Mode::WORDS.iter().find(|(known, _)| *known == word).map(|(_, mode)| *mode);
    found.ok_or_else(|| {
        PyValueError::new_err(format!("mode: {word:?} is none of {:?}", Mode::WORDS.map(|(word, _)| word)))
    })
}

#[pymethods]
impl Session {
    /// Numbers in a word.
    #[classattr]
    const NUMBERS: usize = Word::NUMBERS;

    /// Makes the ring and begins to introduce this rank. `rank` is its place in `devices`; `card` is kind, memory and
    /// reserved bytes of its device; `hosts` has the places of devices that share the cores of a host, and how many of them
    /// work at their own speed at one time; `mode` is what the job asks to be followed for. A job that is only observed is fixed: it takes no plan but its first.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "each is a fact of its own, given by name from Python")]
    #[pyo3(signature = (*, coordinator, ring, run, rank, devices, card, layers, microbatches, plan, pinned, together, hosts=Vec::new(), mode=None, is_fixed=false, keys=None))]
    fn new(
        coordinator: String,
        ring: PathBuf,
        run: String,
        rank: usize,
        devices: Vec<String>,
        card: (String, u64, u64),
        layers: Vec<Layer>,
        microbatches: u32,
        plan: &Plan,
        pinned: Vec<(u32, u32)>,
        together: Vec<Vec<u32>>,
        hosts: Vec<(Vec<u32>, f64)>,
        mode: Option<&str>,
        is_fixed: bool,
        keys: Option<PathBuf>,
    ) -> PyResult<Session> {
        let device = devices.get(rank).cloned();
        let device =
            device.ok_or_else(|| PyValueError::new_err(format!("rank {rank} has no device in {devices:?}")))?;
        let (kind, memory_bytes, reserved_bytes) = card;
        let incarnation = Incarnation(RandomState::new().hash_one(std::process::id()));
        let job = job(run, devices, layers, microbatches, plan);
        let count = job.layers.len();
        let index = DeviceIndex::from(rank);
        let room = Memory { device: index, available_bytes: memory_bytes, is_fixed };
        let bounds = Bounds {
            pinned: pinned.into_iter().map(|(layer, device)| (LayerIndex(layer), DeviceIndex(device))).collect(),
            together: together.into_iter().map(|group| group.into_iter().map(LayerIndex).collect()).collect(),
        };
        let crowded = |(devices, at_once): (Vec<u32>, f64)| CrowdedHost {
            devices: devices.into_iter().map(DeviceIndex).collect(),
            at_once,
        };
        let hosts = hosts.into_iter().map(crowded).collect();
        let mode = mode.map(asked).transpose()?;
        let compiler = Compiler::new(&job, index, Box::new(room)).within(&bounds);
        let (station, events) = Station::new(&device, incarnation, compiler);
        let (news, told) = sync_channel(NEWS_MAX);
        let leave = Arc::new(AtomicBool::new(false));
        let security = security(keys.as_deref(), &device)?;
        let limits = Limits { outgoing_len: 64, per_peer_len: 64, ..Limits::default() };
        let identity = format!("rank/{device}/{incarnation}");
        let client = Client::connect(&coordinator, &identity, &security, limits).map_err(os_error)?;
        let recorder = Recorder::create(&ring, &device, incarnation, CAPACITY_RECORDS_DEFAULT).map_err(os_error)?;
        let control = Control {
            coordinator,
            client,
            station: Arc::clone(&station),
            incarnation,
            card: DeviceCard { name: device, kind, memory_bytes, reserved_bytes },
            job,
            bounds,
            hosts,
            mode,
            // Training goes on, whatever the coordinator said: a place may become free.
            hello_again: Some(HELLO_AGAIN),
            // Ranks reach one another by torch.distributed.
            endpoint: String::new(),
            events,
            news,
            leave: Arc::clone(&leave),
        };
        let thread = std::thread::Builder::new().name("adaptis".into()).spawn(move || control.run())?;
        let attendance = Attendance::new(station, told, count);
        let inner = Inner {
            attendance,
            recorder,
            timer: None,
            counted: adaptis_timer::Counters::default(),
            microbatches,
            place: None,
            since: Step(0),
            ring,
            leave,
            thread: Some(thread),
        };
        Ok(Session(Arc::new(Mutex::new(inner))))
    }

    /// Makes a timer with so many events, held to a share of an iteration, for the CUDA device whose context is current.
    fn time(&self, events: usize, budget_share: f64) -> PyResult<Timer> {
        Timer::start(Arc::clone(&self.0), events, budget_share)
    }

    /// What to tell all other ranks at a boundary. The answers go to `hear`.
    fn word(&self) -> Vec<i64> {
        self.lock().attendance.word(None).encode().to_vec()
    }

    /// What the words of all ranks come to before iteration `step`: `(what, plan, reason)`, where `what` is `nothing`,
    /// `begin` or `switch` with a plan, or `left` with the reason.
    fn hear(&self, words: Vec<Vec<i64>>, step: u64) -> PyResult<(&'static str, Option<Plan>, Option<String>)> {
        let words: Option<Vec<Word>> = words.iter().map(|numbers| Word::decode(numbers)).collect();
        let words = words.ok_or_else(|| PyValueError::new_err("a rank told what this version does not know"))?;
        let mut inner = self.lock();
        let plan = |compiled: Arc<Compiled>| Some(Plan(compiled.plan.clone()));
        Ok(match inner.attendance.hear(&words, Step(step)) {
            // A change whose step was refused is still to be made: until then the place is the old plan's.
            Heard::Nothing if inner.attendance.standing() == Standing::Moving => ("nothing", None, None),
            Heard::Nothing => {
                inner.go_on();
                ("nothing", None, inner.attendance.take_refusal())
            }
            Heard::Begin(compiled) => {
                inner.begin();
                ("begin", plan(compiled), None)
            }
            Heard::Switch(compiled) => ("switch", plan(compiled), None),
            Heard::Left(failure) => {
                inner.go_on();
                ("left", None, Some(failure.to_string()))
            }
        })
    }

    /// The layers of a switch have moved; from when to when, how many layers in all, and how many bytes came here.
    fn settled(&self, start_ns: u64, end_ns: u64, layers_moved: u32, bytes_received: u64) {
        let mut inner = self.lock();
        let from = inner.place.map_or(Epoch(0), |place| place.epoch);
        inner.attendance.settled();
        inner.begin();
        inner.record(|place, _| Sample::Switch {
            place,
            layers_moved,
            bytes_received,
            pause_ns: end_ns.saturating_sub(start_ns),
            from: from.0 as u32,
        });
    }

    /// Epoch of the plan in force, if this rank takes part.
    #[getter]
    fn epoch(&self) -> Option<u64> {
        self.lock().place.map(|place| place.epoch.0)
    }

    /// Whether this is the first iteration since the start or the last change.
    #[getter]
    fn is_first(&self) -> bool {
        let inner = self.lock();
        inner.place.is_some_and(|place| place.step == inner.since)
    }

    /// Records works of layers: `(layer, phase, microbatch, start_ns, duration_ns)`, phases in the order F, I, W,
    /// recomputation, optimizer.
    fn works(&self, works: Vec<(u32, u8, u32, u64, u64)>) -> PyResult<()> {
        let mut inner = self.lock();
        for (layer, phase, microbatch, start_ns, duration_ns) in works {
            let phase = Phase::ALL.get(usize::from(phase)).copied();
            let phase = phase.ok_or_else(|| PyValueError::new_err("there are five phases"))?;
            let (layer, microbatch) = (LayerIndex(layer), Microbatch(microbatch));
            inner.record(|place, mark| Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns });
        }
        Ok(())
    }

    /// Records what passed between so many instructions of the iteration that ends, waiting excluded, where so much was sent
    /// and received meanwhile.
    fn between(&self, instructions: u32, own_ns: u64, transfers: u64) {
        self.lock().record(|place, mark| Sample::Between { place, mark, instructions, own_ns, transfers });
    }

    /// Records how long bytes took from a device, in a measurement made on purpose.
    fn probed(&self, sender: u32, bytes: u64, start_ns: u64, duration_ns: u64) {
        let (from, microbatch, mark) = (DeviceIndex(sender), Microbatch(0), Mark::Calibration);
        self.lock().record(|place, _| Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns });
    }

    /// Records what a layer holds for one microbatch.
    fn layer_memory(&self, layer: u32, activation_bytes: u64, weight_gradient_bytes: u64) {
        self.lock().record(|place, _| Sample::LayerMemory {
            place,
            layer: LayerIndex(layer),
            activation_bytes,
            weight_gradient_bytes: weight_gradient_bytes.min(activation_bytes),
            workspace_bytes: 0,
        });
    }

    /// Records the device's memory in the iteration that ends.
    fn device_memory(&self, peak_bytes: u64, reserved_bytes: u64) {
        self.lock().record(|place, _| Sample::DeviceMemory { place, peak_bytes, reserved_bytes, late_ns: 0 });
    }

    /// Records the iteration that ends.
    fn iteration(&self, start_ns: u64, duration_ns: u64, loss: f32) {
        self.lock().record(|place, _| Sample::Iteration { place, start_ns, duration_ns, loss_bits: loss.to_bits() });
    }

    /// Training is over; `layers` are numbers and digests of the layers that this rank holds. Waits for the coordinator to
    /// record it, at most so long; whether it has, or had not to.
    fn finish(&self, py: Python<'_>, layers: Vec<(u32, String)>, seconds: f64) -> PyResult<bool> {
        let digests: Result<Vec<(LayerIndex, Digest)>, _> =
            layers.iter().map(|(layer, digest)| Ok((LayerIndex(*layer), digest.parse()?))).collect();
        let digests = digests.map_err(|error: adaptis_proto::BadDigest| PyValueError::new_err(error.to_string()))?;
        let told = self.tell(py, |attendance| attendance.finish(digests.clone()));
        Ok(self.part(py, told, seconds))
    }

    /// Training failed. As `finish`.
    fn fail(&self, py: Python<'_>, reason: String, seconds: f64) -> bool {
        let told = self.tell(py, |attendance| attendance.leave(Failure::Environment(reason.clone())));
        self.part(py, told, seconds)
    }
}

impl Session {
    /// Whether there is somebody to be told. Of a job that ends soon after it was declared START may be on its way.
    fn tell(&self, py: Python<'_>, tell: impl Fn(&mut Attendance) -> bool) -> bool {
        let deadline = Instant::now() + START_MAY_COME;
        loop {
            if tell(&mut self.lock().attendance) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            py.detach(|| std::thread::sleep(SLICE));
        }
    }

    fn part(&self, py: Python<'_>, told: bool, seconds: f64) -> bool {
        {
            let mut inner = self.lock();
            inner.end_timing();
            inner.place = None;
            inner.recorder.close();
        }
        let deadline = Duration::try_from_secs_f64(seconds).ok().map(|wait| Instant::now() + wait);
        let mut is_heard = !told;
        while !is_heard && deadline.is_some_and(|deadline| Instant::now() < deadline) {
            py.detach(|| std::thread::sleep(SLICE));
            is_heard = self.lock().attendance.is_dismissed();
        }
        let thread = {
            let mut inner = self.lock();
            inner.leave.store(true, Ordering::Relaxed);
            if told && is_heard {
                // All of it is recorded: nobody needs the ring.
                let _ = std::fs::remove_file(&inner.ring);
            }
            inner.thread.take()
        };
        if let Some(thread) = thread {
            py.detach(|| thread.join().is_ok());
        }
        is_heard
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn job(run: String, devices: Vec<String>, layers: Vec<Layer>, microbatches: u32, plan: &Plan) -> Job {
    let layer = |(name, signature, parameter_bytes, state_bytes, output_bytes, moved_bytes): Layer| JobLayer {
        name,
        signature,
        parameter_bytes,
        state_bytes,
        output_bytes,
        moved_bytes,
    };
    Job {
        run: RunId(run),
        devices,
        layers: layers.into_iter().map(layer).collect(),
        microbatches,
        iterations: 0,
        start_plan: Some(plan.0.write()),
    }
}

fn security(keys: Option<&Path>, device: &str) -> PyResult<Security> {
    match keys {
        None => Ok(Security::Open),
        Some(folder) => Keyring::load_as(folder, device).map(Security::Curve).map_err(os_error),
    }
}

fn os_error(error: impl std::fmt::Display) -> PyErr {
    PyOSError::new_err(error.to_string())
}

/// The kind of a GPU by its driver's name and the memory that the driver reports; none if it is not in the table.
#[pyfunction]
pub(crate) fn kind_of(name: &str, memory_bytes: u64) -> Option<&'static str> {
    adaptis_session::kind_of(name, memory_bytes)
}

/// Lets the conversation's warnings be read on standard error; how many of them is said as for the command. Once a
/// process.
#[pyfunction]
pub(crate) fn log(level: &str) -> PyResult<()> {
    let targets: Targets =
        level.parse().map_err(|error| PyValueError::new_err(format!("ADAPTIS_LOG={level}: {error}")))?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).log_internal_errors(false);
    // Where the process has a subscriber already, that one is the job's own.
    let _ = tracing_subscriber::registry().with(lines).with(targets).try_init();
    Ok(())
}
