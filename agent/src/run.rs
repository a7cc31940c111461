//! The loop: look at the ring, wait for the coordinator, do what the core says.

use crate::calibration::Calibration;
use crate::error::AgentError;
use crate::options::{Calibrating, Options};
use crate::probes::Probes;
use crate::source::Source;
use crate::spool::Spool;
use crate::summary::Summary;
use adaptis_agent_core::{Agent, Effect, Event, SpooledRange};
use adaptis_link::{Client, Silence};
use adaptis_proto::Incarnation;
use adaptis_proto::message::{AgentEvent, Batch, FromCoordinator, Health, ToCoordinator};
use adaptis_proto::wire;
use adaptis_ring::now_ns;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at the ring, at the stop flag and at the end of the ring.
const LOOK_EVERY_NS: u64 = 50_000_000;
/// How long acknowledgements are waited for after a stop.
const FLUSH_NS: u64 = 2_000_000_000;
/// Messages taken before the ring has its turn again.
const MESSAGES_MAX: usize = 256;

/// Runs the agent until `stop` is set, or, with [`Options::until_closed`], until the ring is closed and everything in
/// it acknowledged.
///
/// After a stop it waits a bounded time for acknowledgements, then leaves what is not acknowledged in the spool.
///
/// # Errors
/// Only what makes the whole task impossible; see [`AgentError`].
pub fn run(options: Options, stop: Arc<AtomicBool>) -> Result<Summary, AgentError> {
    let mut shell = Shell::start(options)?;
    let outcome = shell.work(&stop);
    // Also after a fault: what the ring holds may not outlive us.
    shell.tell(Event::Leaving);
    // The last word, so that the books of agent and coordinator can be compared.
    shell.report(shell.agent.sketches().readings(), shell.agent.counters().named());
    outcome.map(|()| shell.summary())
}

struct Shell {
    options: Options,
    incarnation: Incarnation,
    agent: Agent,
    client: Client,
    source: Source,
    spool: Spool,
    probes: Probes,
    calibration: Calibration,
    /// Of the coordinator, which answers pings.
    silence: Silence,
    /// Whether its last write failed, which is told once.
    is_spool_failing: bool,
    send_refusals: u64,
    unreadable_messages: u64,
}

impl Shell {
    fn start(options: Options) -> Result<Self, AgentError> {
        // Random per process: std keys its hashers so.
        let incarnation = Incarnation(RandomState::new().build_hasher().finish());
        let name = format!("agent/{}/{:016x}", options.device, incarnation.0);
        let limits = adaptis_link::Limits::default();
        // The address first: a wrong one leaves no folder behind.
        let client = Client::connect(&options.coordinator, &name, &options.security, limits)?;
        let spool = Spool::open(&options.spool, options.spool_bytes_max)?;
        let mut shell = Self {
            incarnation,
            agent: Agent::new(&options.device, options.limits.clone(), now_ns()),
            client,
            source: Source::new(&options.ring, &options.device),
            spool,
            probes: Probes::start(options.gpu_uuid_or_index.clone())?,
            calibration: Calibration::default(),
            silence: Silence::new(Instant::now()),
            is_spool_failing: false,
            send_refusals: 0,
            unreadable_messages: 0,
            options,
        };
        let found = shell.spool.ranges();
        shell.tell(Event::SpoolFound(found));
        Ok(shell)
    }

    fn work(&mut self, stop: &AtomicBool) -> Result<(), AgentError> {
        let mut leave_ns: Option<u64> = None;
        loop {
            let look_ns = now_ns() + LOOK_EVERY_NS;
            self.look()?;
            self.tell(Event::Ticked);
            if let Some(waited) = self.silence.due(Instant::now()) {
                let (at, waited_s) = (&self.options.coordinator, waited.as_secs());
                tracing::warn!("no answer from {at} for {waited_s} s: is a coordinator there, with the same keys?");
            }
            let is_told = stop.load(Ordering::Relaxed);
            if leave_ns.is_none() && is_told {
                tracing::info!(device = %self.options.device, "stopping");
                leave_ns = Some(now_ns() + FLUSH_NS);
                self.tell(Event::Stopping);
            }
            let is_over = self.options.until_closed && self.source.is_exhausted(self.agent.next_to_read());
            if (is_told || is_over) && self.agent.is_settled() {
                return Ok(());
            }
            if leave_ns.is_some_and(|leave| now_ns() >= leave) {
                return Ok(());
            }
            self.listen(look_ns)?;
        }
    }

    /// Takes in what the ring has.
    fn look(&mut self) -> Result<(), AgentError> {
        if let Some(opened) = self.source.open()? {
            self.tell(opened);
        }
        if self.options.calibrating == Calibrating::AtStart {
            self.calibration.look(self.options.gpu_uuid_or_index.as_deref(), || self.source.is_training());
        }
        if let Some(drained) = self.source.drain(self.agent.next_to_read()) {
            self.tell(drained);
        }
        for event in self.source.replace(self.agent.next_to_read())?.into_iter().flatten() {
            self.tell(event);
        }
        Ok(())
    }

    /// Takes in what the coordinator says until it is time to look at the ring.
    fn listen(&mut self, look_ns: u64) -> Result<(), AgentError> {
        for _ in 0..MESSAGES_MAX {
            let now = now_ns();
            let wait_ns = look_ns.min(self.agent.deadline()).saturating_sub(now);
            match self.client.receive(Duration::from_nanos(wait_ns))? {
                Some(bytes) => self.hear(&bytes),
                None if now_ns() >= look_ns => return Ok(()),
                None => self.tell(Event::Ticked),
            }
            if now >= look_ns {
                return Ok(());
            }
        }
        Ok(())
    }

    fn hear(&mut self, bytes: &[u8]) {
        if let Some(waited) = self.silence.heard(Instant::now()) {
            tracing::info!("{} answers after {} s", self.options.coordinator, waited.as_secs());
        }
        match wire::decode(bytes) {
            Ok(FromCoordinator::Agent(order)) => self.tell(Event::Ordered(order)),
            Ok(FromCoordinator::Rank(_) | FromCoordinator::Answer(_)) => self.unreadable_messages += 1,
            Err(error) => {
                if self.unreadable_messages == 0 {
                    tracing::warn!(%error, "the coordinator says what we cannot read; further ones are counted");
                }
                self.unreadable_messages += 1;
            }
        }
    }

    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.agent.on_event(now_ns(), event) {
                self.act(effect, &mut events);
            }
        }
    }

    fn act(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Send(event) => self.send(event),
            Effect::Report { readings, counters } => self.report(readings, counters),
            Effect::Spool(batch) => self.write_to_spool(&batch, events),
            Effect::Unspool { ring, first } => events.push_back(match self.spool.read(ring, first) {
                Some(batch) => Event::Unspooled(batch),
                None => Event::UnspoolFailed { ring, first },
            }),
            Effect::Release { ring, next } => self.spool.release(ring, next),
            Effect::Commit { ring, next } => self.source.commit(ring, next),
        }
    }

    fn write_to_spool(&mut self, batch: &Batch, events: &mut VecDeque<Event>) {
        let next = batch.first + batch.records.len() as u64;
        let range = SpooledRange { ring: batch.ring, first: batch.first, next };
        let (evicted, result) = self.spool.append(batch);
        events.extend(evicted.into_iter().map(Event::Evicted));
        if let Err(error) = &result
            && !self.is_spool_failing
        {
            let folder = self.options.spool.display();
            tracing::warn!(%folder, %error, "the spool cannot be written; records stay in the ring");
        }
        self.is_spool_failing = result.is_err();
        events.push_back(if result.is_ok() { Event::Spooled(range) } else { Event::SpoolRefused(range) });
    }

    fn send(&mut self, event: AgentEvent) {
        // A full queue is one more way for a message to be lost, and all of ours may be.
        if self.client.send(wire::encode(&ToCoordinator::Agent(event))).is_err() {
            self.send_refusals += 1;
        }
    }

    fn report(&mut self, mut readings: Vec<(String, f64)>, mut counters: Vec<(String, u64)>) {
        readings.extend(self.probes.readings());
        readings.extend(self.calibration.readings());
        counters.extend(self.own_counters());
        let (device, incarnation) = (self.options.device.clone(), self.incarnation);
        self.send(AgentEvent::Health(Health { device, incarnation, readings, counters }));
    }

    fn own_counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.spool.named();
        counters.push(("send_refusals".to_owned(), self.send_refusals));
        counters.push(("unreadable_messages".to_owned(), self.unreadable_messages));
        counters.extend(self.probes.counters());
        counters.extend(self.calibration.counters());
        counters
    }

    fn summary(&self) -> Summary {
        let mut counters = self.agent.counters().named();
        counters.extend(self.own_counters());
        Summary {
            counters,
            layers: self.agent.sketches().layers().collect(),
            clock: self.agent.clock().offset(now_ns()),
            card: self.probes.card(),
        }
    }
}
