//! What the device and the host say of themselves: readings by name with the unit last.
//!
//! 1. What cannot be read is left out; there are no stand-in values.
//! 2. A probe that is absent says so once and is then silent.
//! 3. Drivers may hang: probes have a thread of their own, and nobody waits for it.

pub(crate) mod cuda;
pub(crate) mod host;
pub(crate) mod nvml;

use crate::error::AgentError;
use cuda::Card;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Readings by name, unit last.
pub(crate) type Readings = Vec<(String, f64)>;

/// What the probes last saw.
#[derive(Clone, Debug, Default)]
struct Seen {
    readings: Readings,
    card: Option<Card>,
}

/// The probes at work. Ends them when dropped, after the look they are at.
pub(crate) struct Probes {
    seen: Arc<Mutex<Seen>>,
    _alive: Sender<()>,
}

impl Probes {
    /// Starts looking at the host, and at a GPU if one is named, as `GPU-...` or by NVML's index.
    pub(crate) fn start(gpu: Option<String>) -> Result<Self, AgentError> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (alive, ended) = channel();
        let shared = seen.clone();
        let thread = std::thread::Builder::new().name("probes".into());
        thread.spawn(move || look(gpu.as_deref(), &shared, &ended)).map_err(AgentError::Thread)?;
        Ok(Self { seen, _alive: alive })
    }

    /// What was last read; nothing before the first look.
    pub(crate) fn readings(&self) -> Readings {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).readings.clone()
    }

    /// The GPU, if it was named and found.
    pub(crate) fn card(&self) -> Option<Card> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).card.clone()
    }
}

fn look(gpu: Option<&str>, seen: &Mutex<Seen>, ended: &Receiver<()>) {
    let mut host = host::Host::new();
    let nvml = gpu.and_then(nvml::Gpu::open);
    let card = gpu.and_then(|gpu| cuda::find(&nvml.as_ref().and_then(nvml::Gpu::uuid).unwrap_or(gpu.to_owned())));
    if let Some(card) = &card {
        tracing::info!(name = card.name, uuid = card.uuid, memory_bytes = card.memory_bytes, "found the GPU");
    }
    loop {
        let mut readings = host.readings();
        readings.extend(nvml.iter().flat_map(nvml::Gpu::readings));
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { readings, card: card.clone() };
        match ended.recv_timeout(LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
