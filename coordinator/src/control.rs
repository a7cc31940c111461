//! The loop: one thread that takes everything in turn, feeds the brain, and does what it says.
//!
//! A turn: wait for a message, a search or a deadline; take what else is there, up to [`TURN_MESSAGES_MAX`]; store the
//! batches in one commit and acknowledge them; hand everything to the brain; carry out its effects in order.

mod samples;

use crate::copies::Copies;
use crate::http::{Door, Pages};
use crate::ingest::{Ingest, Turn};
use crate::peers::Peers;
use crate::profiles::earlier::Wanted;
use crate::profiles::library;
use crate::recalling::Recalls;
use crate::report::{self, Fault};
use crate::searching::{Found, Searches};
use crate::snapshot::{Board, Snapshot};
use crate::store::{Profiles, Store};
use crate::{CoordinatorError, Ended, Options};
use adaptis_coordinator_core::crossings::Crossings;
use adaptis_coordinator_core::estimate::Estimated;
use adaptis_coordinator_core::{Brain, Durable, Effect, Event};
use adaptis_link::{Limits, PeerId, Server};
use adaptis_proto::message::{AgentOrder, Answer, Ask, FromCoordinator, Health, Status};
use adaptis_proto::rates::Rates;
use adaptis_proto::wire;
use crossbeam::channel::{RecvError, select};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Messages of one turn; more wait for the next, so that deadlines are met under any load.
const TURN_MESSAGES_MAX: usize = 256;
/// Longest wait before the stop flag is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two copies for those who look.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// Between two merges of profiles.
const MERGE_EVERY: Duration = Duration::from_secs(30);
/// How long the end waits for the last words of agents that are leaving, at most.
const LAST_WORDS_MAX: Duration = Duration::from_millis(1_500);
/// Messages that are taken in at the end, at most.
const LAST_MESSAGES_MAX: usize = 65_536;

/// A coordinator at work.
pub(crate) struct Control {
    options: Options,
    faults: Vec<Fault>,
    server: Server,
    store: Store,
    brain: Brain,
    ingest: Ingest,
    profiles: Profiles,
    crossings: Crossings,
    /// By kind: rates that were handed to the store.
    rates_kept: BTreeMap<String, Rates>,
    searches: Searches,
    recalls: Recalls,
    copies: Copies,
    board: Board,
    pages: Option<Pages>,
    peers: Peers,
    /// Counters of earlier reigns that this one adds to.
    before: BTreeMap<String, u64>,
    /// The run had ended before this reign, and its report is there: it stays, unless there is news.
    is_reported: bool,
    published: Instant,
    merged: Instant,
}

impl Control {
    /// Opens everything: address, folder, store, pages. Nothing is told to anyone yet.
    pub(crate) fn open(options: Options) -> Result<Self, CoordinatorError> {
        let faults = options.faults.as_deref().map(report::read_faults).transpose()?.unwrap_or_default();
        // The addresses first: a wrong one leaves no folder behind.
        let server = Server::bind(&options.listen, &options.security, Limits::default())?;
        let door = options.http.as_deref().map(Door::open).transpose()?;
        let store = Store::open(&options.dir, options.records_bytes_max)?;
        let board = Board::new();
        let pages = door.map(|door| Pages::serve(door, board.clone())).transpose()?;
        let now = Instant::now();
        tracing::info!(link = server.endpoint(), pages = ?options.http, dir = %options.dir.display(), "listening");
        Ok(Self {
            brain: Brain::new(options.config()),
            faults,
            server,
            store,
            ingest: Ingest::default(),
            profiles: Profiles::default(),
            crossings: Crossings::default(),
            rates_kept: BTreeMap::new(),
            searches: Searches::new(),
            recalls: Recalls::new(options.store.clone()),
            copies: Copies::new(options.dir.clone()),
            board,
            pages,
            peers: Peers::default(),
            before: BTreeMap::new(),
            is_reported: false,
            published: now,
            merged: now,
            options,
        })
    }

    /// Reigns until the flag is set.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Result<Ended, CoordinatorError> {
        self.boot()?;
        self.publish();
        while !stop.load(Ordering::Relaxed) {
            self.turn()?;
        }
        self.end()
    }

    fn boot(&mut self) -> Result<(), CoordinatorError> {
        let recovered = self.store.reign()?;
        tracing::info!(term = %recovered.head.term, "reigning");
        self.copies.catch_up(recovered.plans.values());
        let is_over = recovered.finished.is_some() || recovered.failed.is_some();
        self.is_reported = is_over && report::is_final(&self.options.dir);
        let (before, health) = self.store.kept()?;
        self.before = before;
        self.ingest.recover(self.store.dropped_by_device()?, health);
        self.feed(Event::Booted(Box::new(recovered)))?;
        let (brain, crossings, mut effects) = (&mut self.brain, &mut self.crossings, Vec::new());
        self.store.replay(|device, ring, records| {
            crossings.heed(&records);
            effects.extend(brain.on_event(now_ns(), Event::Replayed { device, ring, records }));
        })?;
        self.perform(effects)?;
        let (profiles, brain, ingest) = (&mut self.profiles, &self.brain, &self.ingest);
        self.store.unprofiled(|device, ring, records| {
            if brain.is_of_member(&device, ring) {
                samples::profile(profiles, brain, ingest, &device, &records, &samples::FreshLoads::default());
            }
        })?;
        Ok(())
    }

    fn turn(&mut self) -> Result<(), CoordinatorError> {
        let mut turn = Turn::default();
        let mut found = None;
        select! {
            recv(self.server.incoming()) -> message => match message {
                Ok(message) => self.ingest.sort(&mut turn, message),
                Err(RecvError) => return Err(adaptis_link::Error::Closed.into()),
            },
            recv(self.searches.results()) -> result => found = result.ok(),
            default(self.wait()) => {}
        }
        let mut is_drained = false;
        for _ in 1..TURN_MESSAGES_MAX {
            match self.server.try_receive()? {
                Some(message) => self.ingest.sort(&mut turn, message),
                None => {
                    is_drained = true;
                    break;
                }
            }
        }
        self.answer_pings(&turn);
        self.take_batches(std::mem::take(&mut turn.batches))?;
        for (peer, event) in std::mem::take(&mut turn.ranks) {
            let peer = self.peers.key(&peer, &self.brain);
            self.feed(Event::RankSaid { peer, event: Box::new(event) })?;
        }
        self.take_calibrations(std::mem::take(&mut turn.calibrated))?;
        match found {
            Some(Found { ticket, result: Some(result) }) => {
                self.feed(Event::SearchEnded { ticket, result: Box::new(result) })?;
            }
            Some(Found { ticket, result: None }) => self.feed(Event::SearchLost { ticket })?,
            None => {}
        }
        // Before the queue is empty nobody can be said to be silent; what else is due is looked at with every message.
        if is_drained && self.brain.deadline().is_some_and(|deadline_ns| deadline_ns <= now_ns()) {
            self.feed(Event::TimePassed)?;
        }
        for (peer, ask) in turn.asks {
            let answer = self.answer(&ask);
            self.tell(&peer, FromCoordinator::Answer(answer));
        }
        self.keep_house()
    }

    fn wait(&self) -> Duration {
        let deadline_ns = self.brain.deadline().map(|deadline_ns| deadline_ns.saturating_sub(now_ns()));
        deadline_ns.map_or(LOOK_EVERY, |wait_ns| Duration::from_nanos(wait_ns).min(LOOK_EVERY))
    }

    fn answer_pings(&mut self, turn: &Turn) {
        for (peer, sent_ns) in &turn.pings {
            let order = AgentOrder::Pong { sent_ns: *sent_ns, received_ns: now_ns() };
            self.tell(peer, FromCoordinator::Agent(order));
        }
    }

    fn take_calibrations(&mut self, calibrated: Vec<Health>) -> Result<(), CoordinatorError> {
        calibrated.into_iter().try_for_each(|Health { device, incarnation, readings, .. }| {
            self.feed(Event::Calibrated { device, agent: incarnation, readings })
        })
    }

    fn feed(&mut self, event: Event) -> Result<(), CoordinatorError> {
        let effects = self.brain.on_event(now_ns(), event);
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), CoordinatorError> {
        for effect in effects {
            match effect {
                Effect::Persist { entries, then } => {
                    self.store.commit(self.brain.term(), &entries)?;
                    self.write_plans(&entries);
                    self.perform(then)?;
                }
                Effect::Send { to, order } => {
                    if let Some(peer) = self.peers.name(to) {
                        let peer = peer.clone();
                        self.tell(&peer, FromCoordinator::Rank(order));
                    }
                }
                Effect::StartSearch(order) => self.searches.start(*order),
                Effect::CancelSearch { ticket } => self.searches.cancel(ticket),
                Effect::Announce(announcement) => tracing::info!("{announcement}"),
                Effect::Advise(advice) => match report::write_advice(&self.options.dir, &advice) {
                    Ok(folder) => tracing::info!("the better plan is in {}", folder.display()),
                    Err(error) => tracing::warn!(%error, "the better plan can't be written"),
                },
                Effect::Done => {
                    self.flush()?;
                    match self.write_report() {
                        // It only says what the ledger holds: whoever asks for it, or our end, has it written again.
                        Err(error @ CoordinatorError::File { .. }) => tracing::error!(%error, "no report was written"),
                        written => drop(written?),
                    }
                    self.publish();
                }
            }
        }
        Ok(())
    }

    fn write_plans(&mut self, entries: &[Durable]) {
        for entry in entries {
            if let Durable::Plan(plan) = entry {
                self.copies.write(plan);
            }
        }
    }

    /// Sends what may be lost: every order is repeated until it is answered.
    fn tell(&self, peer: &PeerId, message: FromCoordinator) {
        if let Err(error) = self.server.send(peer, wire::encode(&message)) {
            tracing::debug!(%peer, %error, "a message was not sent");
        }
    }

    fn answer(&mut self, ask: &Ask) -> Answer {
        match ask {
            Ask::Status => Answer::Status(Box::new(self.status())),
            Ask::Memory => Answer::Memory(self.brain.peaks()),
            Ask::Figures => Answer::Figures(self.figures()),
            Ask::Report => match self.write_report() {
                Ok(path) => Answer::Report { path },
                Err(error) => Answer::Failed { reason: error.to_string() },
            },
        }
    }

    /// Reads what earlier jobs measured of kinds and layers that are new here, and hands it on.
    fn recall(&mut self) -> Result<(), CoordinatorError> {
        if let Some(earlier) = self.recalls.take() {
            self.feed(Event::Recalled(Box::new(earlier)))?;
        }
        let (of, rates) = (self.brain.generation(), self.brain.rates());
        let Some(of) = of.filter(|of| self.recalls.is_due(of.generation, rates)) else { return Ok(()) };
        let wanted = Wanted {
            kinds: of.cards.iter().map(|card| card.kind.clone()).collect(),
            signatures: of.job.layers.iter().map(|layer| layer.signature.clone()).collect(),
            own: self.store.source()?.id,
            emulated: library::emulated(&self.options.dir),
            rates: rates.clone(),
        };
        self.recalls.ask(of.generation, wanted);
        Ok(())
    }

    fn keep_house(&mut self) -> Result<(), CoordinatorError> {
        self.recall()?;
        if self.published.elapsed() >= PUBLISH_EVERY {
            self.publish();
        }
        if self.merged.elapsed() >= MERGE_EVERY {
            self.flush()?;
            self.merged = Instant::now();
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        let health = self.ingest.health().cloned().collect();
        let (status, memory) = (self.status(), self.brain.peaks());
        let figures = self.figures();
        let iterations = self.brain.history().complete().copied().collect();
        self.board.publish(Snapshot { status, figures, memory, health, iterations, taken: self.published });
    }

    /// How many costs come from where: they move from one source to another, and so are no counters.
    fn figures(&self) -> Vec<(String, u64)> {
        self.brain.figures_by_source().map(|(source, count)| (source.to_owned(), count)).collect()
    }

    fn status(&self) -> Status {
        let mut counters: Vec<(String, u64)> =
            self.store.counts().named().map(|(name, count)| (name.to_owned(), count)).into();
        counters.extend(self.of_all_reigns());
        counters.extend(self.ingest.counters());
        counters.push(("link_incoming_queued".to_owned(), self.server.incoming().len() as u64));
        counters.push(("plan_copies_failed".to_owned(), self.copies.failed()));
        let status = self.brain.status();
        counters.extend(status.counters);
        Status { counters, ..status }
    }

    /// What this reign counts in memory, on top of what the ones before did.
    fn of_all_reigns(&self) -> Vec<(String, u64)> {
        let link = self.server.counters();
        let of_link = [
            ("link_received", link.received),
            ("link_accepted", link.accepted),
            ("link_sent", link.sent),
            ("link_unroutable", link.unroutable),
            ("link_dropped_full", link.dropped_full),
            ("link_dropped_peer_full", link.dropped_peer_full),
            ("link_refused", link.refused()),
            ("link_malformed", link.malformed),
            ("link_stalls", link.stalls),
            ("profiles_left_out", self.profiles.left_out()),
        ];
        let before = |name: &str| self.before.get(name).copied().unwrap_or(0);
        let sum = |(name, count): (&str, u64)| (name.to_owned(), count.saturating_add(before(name)));
        self.ingest.messages().into_iter().chain(of_link).map(sum).collect()
    }

    fn keep(&mut self) -> Result<(), CoordinatorError> {
        let counters = self.of_all_reigns();
        Ok(self.store.keep(&counters, self.ingest.health())?)
    }

    fn flush(&mut self) -> Result<(), CoordinatorError> {
        let known = self.brain.rates();
        if self.rates_kept != *known {
            known.iter().for_each(|(kind, rates)| self.profiles.record_rates(kind, *rates));
            self.rates_kept.clone_from(known);
        }
        self.store.merge(&mut self.profiles, crate::profiles::now())?;
        self.keep()?;
        if self.copies.is_behind() {
            self.copies.catch_up(self.store.recovered()?.plans.values());
        }
        Ok(())
    }

    fn write_report(&mut self) -> Result<String, CoordinatorError> {
        let has_news = self.ingest.take_news();
        if self.is_reported && !has_news {
            return Ok(self.options.dir.join(report::FILE).display().to_string());
        }
        self.is_reported = false;
        let sources = report::Sources {
            recovered: self.store.recovered()?,
            iterations: self.store.iterations()?,
            counters: self.status().counters,
            figures: self.brain.figures_by_source().collect(),
            costs: self.brain.estimated().map(Estimated::costs).unwrap_or_default(),
            faults: &self.faults,
            options: &self.options,
            mode: self.brain.mode(),
        };
        let path = report::write(&self.options.dir, &sources)?;
        Ok(path.display().to_string())
    }

    fn end(mut self) -> Result<Ended, CoordinatorError> {
        self.hear_last_words()?;
        self.flush()?;
        self.write_report()?;
        if let Some(pages) = self.pages.take() {
            pages.stop();
        }
        Ok(match (self.brain.finished(), self.brain.failure()) {
            (Some(_), _) => Ended::Finished,
            (None, Some(failure)) => Ended::Failed(failure.to_string()),
            (None, None) => Ended::Stopped,
        })
    }
}

impl Control {
    /// What has arrived is stored before we go, and agents that are leaving, too, are heard to their end; what does not
    /// come in time they keep.
    fn hear_last_words(&mut self) -> Result<(), CoordinatorError> {
        let deadline = Instant::now() + LAST_WORDS_MAX;
        let mut turn = Turn::default();
        for _ in 0..LAST_MESSAGES_MAX {
            let is_full = turn.batches.len() >= TURN_MESSAGES_MAX;
            let next = if is_full { None } else { self.server.try_receive()? };
            if let Some(message) = next {
                self.ingest.sort(&mut turn, message);
                continue;
            }
            self.take_batches(std::mem::take(&mut turn.batches))?;
            self.take_calibrations(std::mem::take(&mut turn.calibrated))?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (!is_full && self.ingest.is_balanced()) {
                break;
            }
            if let Some(message) = self.server.receive(left.min(LOOK_EVERY))? {
                self.ingest.sort(&mut turn, message);
            }
        }
        self.take_calibrations(turn.calibrated)?;
        self.take_batches(turn.batches)
    }
}

/// The coordinator's clock, which is its host's `CLOCK_MONOTONIC`: agents of this host need no offset.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}
