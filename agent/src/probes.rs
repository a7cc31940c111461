//! What the device and the host say of themselves: readings by name with the unit last.
//!
//! 1. What cannot be read is left out; there are no stand-in values.
//! 2. A probe that is absent says so once and is then silent.
//! 3. Drivers may hang: they are asked on a thread of their own, and nobody waits for it. What was read before the driver
//!    hung is left out as well.

pub(crate) mod cuda;
pub(crate) mod host;
pub(crate) mod inventory;
pub(crate) mod node;
pub(crate) mod nvml;
pub(crate) mod questions;
#[cfg(test)]
mod tests;

use crate::error::AgentError;
use adaptis_ring::now_ns;
use cuda::Card;
use host::Host;
use node::{Node, Snapshot};
use nvml::{CardReadings, Costs, Poller};
use nvml_wrapper::Nvml;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two looks at the GPUs.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks after which what another agent read is not believed any more.
const STALE_LOOKS: u32 = 3;
/// Looks after which a driver that says nothing is taken to hang.
const HUNG_LOOKS: u32 = 5;

/// Readings by name, unit last.
pub(crate) type Readings = Vec<(String, f64)>;

/// What the thread that asks the drivers last saw.
#[derive(Clone, Debug, Default)]
struct Seen {
    readings: Readings,
    card: Option<Card>,
    /// What this agent's own questions cost, if it puts any.
    costs: Option<Costs>,
    /// When it last had an answer.
    at_ns: u64,
    /// There is nothing to see, and nobody looks any more.
    is_over: bool,
}

/// The probes at work. Ends them when dropped, after the look they are at.
pub(crate) struct Probes {
    host: Host,
    seen: Arc<Mutex<Seen>>,
    every: Duration,
    is_hung: bool,
    hangs: u64,
    _alive: Sender<()>,
}

impl Probes {
    /// Looks at the host, and at a GPU if one is named, as `GPU-...` or by NVML's index.
    pub(crate) fn start(gpu: Option<String>) -> Result<Self, AgentError> {
        Self::start_looking(gpu, LOOK_EVERY)
    }

    fn start_looking(gpu: Option<String>, every: Duration) -> Result<Self, AgentError> {
        let seen = Seen { at_ns: now_ns(), is_over: gpu.is_none(), ..Seen::default() };
        let seen = Arc::new(Mutex::new(seen));
        let (alive, ended) = channel();
        if let Some(gpu) = gpu {
            let shared = seen.clone();
            let thread = std::thread::Builder::new().name("probes".into());
            thread.spawn(move || look(&gpu, every, &shared, &ended)).map_err(AgentError::Thread)?;
        }
        Ok(Self { host: Host::new(), seen, every, is_hung: false, hangs: 0, _alive: alive })
    }

    /// What the host says now, and what the GPU last said if that is not long ago.
    pub(crate) fn readings(&mut self) -> Readings {
        let mut readings = self.host.readings();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = Duration::from_nanos(now_ns().saturating_sub(seen.at_ns));
        let is_hung = !seen.is_over && silent > self.every * HUNG_LOOKS;
        match (self.is_hung, is_hung) {
            (false, true) => {
                self.hangs += 1;
                tracing::warn!(silent_s = silent.as_secs(), "the GPU's driver hangs; going on without its readings");
            }
            (true, false) => tracing::info!("the GPU's driver answers again"),
            (false, false) | (true, true) => {}
        }
        self.is_hung = is_hung;
        if !is_hung {
            readings.extend(seen.readings.iter().cloned());
        }
        readings
    }

    /// What asking the GPUs cost this agent; nothing where another one asks, or nobody.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let costs = self.seen.lock().unwrap_or_else(PoisonError::into_inner).costs;
        let of_calls = costs.into_iter().flat_map(|costs| {
            [
                ("nvml_calls", costs.calls),
                ("nvml_call_ns", costs.call_ns),
                ("nvml_call_ns_max", costs.call_ns_max),
                ("nvml_errors", costs.errors),
            ]
        });
        let hangs = (self.hangs > 0).then_some(("driver_hangs", self.hangs));
        of_calls.chain(hangs).map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// The GPU, if it was named and found.
    pub(crate) fn card(&self) -> Option<Card> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).card.clone()
    }
}

fn look(gpu: &str, every: Duration, seen: &Mutex<Seen>, ended: &Receiver<()>) {
    let update = |change: &dyn Fn(&mut Seen)| change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    let nvml = nvml::open();
    let uuid = nvml.as_ref().and_then(|nvml| nvml::uuid(nvml, gpu));
    let card = cuda::find(uuid.as_deref().unwrap_or(gpu));
    if let Some(card) = &card {
        tracing::info!(name = card.name, uuid = card.uuid, memory_bytes = card.memory_bytes, "found the GPU");
    }
    update(&|seen| (seen.card, seen.at_ns) = (card.clone(), now_ns()));
    let (Some(nvml), Some(uuid)) = (nvml, uuid) else { return update(&|seen| seen.is_over = true) };
    let mut watch = Watch::new(&nvml, uuid, Node::open(), every);
    loop {
        let readings = watch.look();
        let costs = watch.costs();
        update(&|seen| (seen.readings, seen.costs, seen.at_ns) = (readings.clone(), costs, now_ns()));
        match ended.recv_timeout(every) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Follows one GPU: by what the poller of the node wrote, or as that poller.
struct Watch<'nvml> {
    nvml: &'nvml Nvml,
    uuid: String,
    node: Option<Node>,
    poller: Option<Poller<'nvml>>,
    every: Duration,
    since_ns: u64,
}

impl<'nvml> Watch<'nvml> {
    fn new(nvml: &'nvml Nvml, uuid: String, node: Option<Node>, every: Duration) -> Self {
        Self { nvml, uuid, node, poller: None, every, since_ns: now_ns() }
    }

    fn look(&mut self) -> Readings {
        let leads = self.node.as_mut().is_some_and(Node::leads);
        if self.poller.is_none() {
            let shared = if leads { None } else { self.shared() };
            if let Some(CardReadings { readings, .. }) = shared.as_ref().and_then(|shared| shared.of(&self.uuid)) {
                return readings.clone();
            }
            if !leads && self.node.is_some() && shared.is_none() {
                // Whoever leads has not spoken yet, or hangs; to hang beside it helps nobody.
                return Readings::new();
            }
            let only = (!leads).then_some(self.uuid.as_str());
            self.poller = Poller::new(self.nvml, only, self.every);
            self.since_ns = now_ns();
        }
        let Some(poller) = &mut self.poller else { return Readings::new() };
        let cards = poller.look();
        let (at_ns, call_ns) = (now_ns(), poller.costs().call_ns);
        let mut readings: Readings =
            cards.iter().find(|card| card.uuid == self.uuid).map(|card| card.readings.clone()).unwrap_or_default();
        let elapsed_ns = (at_ns - self.since_ns).max(self.every.as_nanos() as u64);
        readings.push(("gpu_probe_core_share".to_owned(), call_ns as f64 / elapsed_ns as f64));
        if let Some(node) = self.node.as_ref().filter(|_| leads)
            && let Err(error) = node.publish(&Snapshot { at_ns, cards })
        {
            tracing::debug!(%error, "readings cannot be shared");
        }
        readings
    }

    /// What the poller of the node wrote, if that is not long ago.
    fn shared(&self) -> Option<Snapshot> {
        let snapshot = self.node.as_ref()?.read()?;
        let stale_ns = (self.every * STALE_LOOKS).as_nanos() as u64;
        (now_ns().saturating_sub(snapshot.at_ns) <= stale_ns).then_some(snapshot)
    }

    fn costs(&self) -> Option<Costs> {
        self.poller.as_ref().map(Poller::costs)
    }
}
