//! The control thread: the rank's conversation with the coordinator, beside training.
//!
//! 1. Everything that must arrive is repeated until something answers it: Hello until START, Failed and Finished until
//!    Dismissed. The rest (Beat, Prepared, Active) is said again on the next occasion.
//! 2. A queue that is full loses the newest message; repetition makes up for it.
//! 3. Nothing here holds up training.

use crate::compiled::Compiled;
use crate::station::{Errand, Station};
use adaptis_executor_core::Begin;
use adaptis_link::{Client, Silence};
use adaptis_proto::message::{
    Bounds, CrowdedHost, DeviceCard, FromCoordinator, Job, Mode, RankEvent, RankOrder, Rejection, ToCoordinator,
};
use adaptis_proto::{Incarnation, wire};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

/// How often Hello is said until START.
const HELLO_EVERY: Duration = Duration::from_millis(500);
/// How often a rank that trains says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How often the end of a rank is told until it is dismissed.
const END_EVERY: Duration = Duration::from_millis(200);
/// How long an order waits before it is seen, at most, and an event of training before it is told.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the control thread tells the training thread.
pub enum News {
    /// Begin.
    Begin(Begin, Arc<Compiled>),
    /// The coordinator turned this rank away.
    Rejected(Rejection),
    /// The coordinator has recorded the end.
    Dismissed,
}

/// The control thread's state.
pub struct Control {
    /// Where it is to be, for people.
    pub coordinator: String,
    /// To the coordinator.
    pub client: Client,
    /// Where it meets training.
    pub station: Arc<Station>,
    /// Which process.
    pub incarnation: Incarnation,
    /// Which device.
    pub card: DeviceCard,
    /// What it trains.
    pub job: Job,
    /// What any plan for it must obey.
    pub bounds: Bounds,
    /// Hosts whose cores its devices share.
    pub hosts: Vec<CrowdedHost>,
    /// What the job asks to be followed for.
    pub mode: Option<Mode>,
    /// Who was turned away and trains on introduces itself again after so long.
    pub hello_again: Option<Duration>,
    /// Where peers reach it.
    pub endpoint: String,
    /// What training tells.
    pub events: Receiver<RankEvent>,
    /// What training is told.
    pub news: SyncSender<News>,
    /// Set when training is over and nothing more is to be said.
    pub leave: Arc<AtomicBool>,
}

/// When to say what is said again and again.
struct Due {
    /// None after START.
    hello: Option<Instant>,
    beat: Instant,
    /// None once the coordinator has said anything: from then on it speaks only when there is something to say.
    complaint: Option<Silence>,
    /// Why a coordinator would not have this rank while it trains: said once, though it is told again and again.
    rejection: Option<Rejection>,
    /// Why it would not have this rank before it trains.
    turned_away: Option<Rejection>,
    /// The coordinator has recorded the end.
    is_dismissed: bool,
}

impl Control {
    /// Runs until the rank leaves.
    pub fn run(self) {
        let begun = Instant::now();
        let complaint = Some(Silence::new(begun));
        let mut due =
            Due { hello: Some(begun), beat: begun, complaint, rejection: None, turned_away: None, is_dismissed: false };
        let mut end: Option<(RankEvent, Instant)> = None;
        while !self.leave.load(Ordering::Relaxed) {
            let now = Instant::now();
            if due.hello.is_some_and(|at| now >= at) {
                self.introduce();
                // Who has a place, or had one, is known.
                due.hello = self.station.place().is_none().then(|| now + HELLO_EVERY);
            }
            if let Some(waited) = due.complaint.as_mut().and_then(|silence| silence.due(now)) {
                let (at, waited_s) = (&self.coordinator, waited.as_secs());
                tracing::warn!("no answer from {at} for {waited_s} s: is a coordinator there, with the same keys?");
            }
            if due.is_dismissed {
                end = None;
            }
            match &mut end {
                Some((event, at)) if now >= *at => {
                    self.tell(event.clone());
                    *at = now + END_EVERY;
                }
                Some(_) => {}
                None if now >= due.beat => {
                    self.station.beat().into_iter().for_each(|event| self.tell(event));
                    due.beat = now + BEAT_EVERY;
                }
                None => {}
            }
            for event in self.events.try_iter() {
                match event {
                    RankEvent::Failed { .. } | RankEvent::Finished { .. } => end = Some((event, now)),
                    event => self.tell(event),
                }
            }
            if self.listen(&mut due).is_err() {
                tracing::error!("the link to the coordinator is closed");
                return;
            }
        }
    }

    /// Takes all orders that are there; waits a moment for the first.
    fn listen(&self, due: &mut Due) -> Result<(), adaptis_link::Error> {
        let mut wait = LOOK_EVERY;
        while let Some(bytes) = self.client.receive(wait)? {
            wait = Duration::ZERO;
            if due.complaint.take().and_then(|mut silence| silence.heard(Instant::now())).is_some() {
                tracing::info!("the coordinator at {} answers", self.coordinator);
            }
            match wire::decode::<FromCoordinator>(&bytes) {
                Ok(FromCoordinator::Rank(order)) => {
                    self.note(&order, due);
                    for errand in self.station.order(order) {
                        match errand {
                            // The first beat tells the coordinator that START has arrived.
                            Errand::Begin(..) => (due.hello, due.beat) = (None, Instant::now()),
                            Errand::GiveUp(ref reason) => {
                                due.hello = self.hello_again.map(|wait| Instant::now() + wait);
                                // Training is told once: its queue is for what it has not heard.
                                if due.turned_away.replace(reason.clone()).as_ref() == Some(reason) {
                                    continue;
                                }
                            }
                            Errand::Leave => due.is_dismissed = true,
                            Errand::Tell(_) | Errand::Introduce => {}
                        }
                        self.run_errand(errand);
                    }
                }
                Ok(FromCoordinator::Agent(_) | FromCoordinator::Answer(_)) => {
                    tracing::warn!("the coordinator sent a rank what is not for ranks");
                }
                Err(error) => tracing::warn!(%error, "a message of the coordinator cannot be read"),
            }
        }
        Ok(())
    }

    /// Says why a coordinator turns away a rank that trains: it trains on, and the coordinator is likely the wrong one.
    fn note(&self, order: &RankOrder, due: &mut Due) {
        if let RankOrder::Rejected { reason, .. } = order
            && self.station.place().is_some()
            && due.rejection.as_ref() != Some(reason)
        {
            tracing::warn!("the coordinator at {} turns this rank away, which trains on: {reason}", self.coordinator);
            due.rejection = Some(reason.clone());
        }
    }

    fn run_errand(&self, errand: Errand) {
        let news = match errand {
            Errand::Tell(event) => return self.tell(event),
            Errand::Introduce => return self.introduce(),
            Errand::Begin(begin, compiled) => News::Begin(begin, compiled),
            Errand::Leave => News::Dismissed,
            Errand::GiveUp(reason) => News::Rejected(reason),
        };
        // Full or closed, training has as much news as it will ever take.
        let _ = self.news.try_send(news);
    }

    fn introduce(&self) {
        self.tell(RankEvent::Hello {
            incarnation: self.incarnation,
            card: self.card.clone(),
            job: self.job.clone(),
            endpoint: self.endpoint.clone(),
            place: self.station.place(),
            seen: self.station.seen(),
        });
        // Also where there is nothing: what the job said when it was started before is taken back.
        self.tell(RankEvent::Bound { incarnation: self.incarnation, bounds: self.bounds.clone() });
        self.tell(RankEvent::Crowded { incarnation: self.incarnation, hosts: self.hosts.clone() });
        self.tell(RankEvent::Asked { incarnation: self.incarnation, mode: self.mode });
    }

    fn tell(&self, event: RankEvent) {
        if let Err(error) = self.client.send(wire::encode(&ToCoordinator::Rank(event))) {
            tracing::debug!(%error, "the coordinator could not be told");
        }
    }
}
