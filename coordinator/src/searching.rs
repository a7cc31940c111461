//! Searches beside training: one thread each, of lower priority, ended by time or by a flag.

use adaptis_coordinator_core::brain::SearchOrder;
use adaptis_planner::search::{Control, Infeasible, Outcome, search};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much a search steps back from training, in units of `nice`.
const NICENESS: i32 = 10;
/// Results that wait to be read. Full: the search's thread waits; at most one search runs, and cancelled ones end soon.
const RESULTS_MAX: usize = 16;

/// What became of a search; no result if it panicked.
pub(crate) struct Found {
    pub(crate) ticket: u64,
    pub(crate) result: Option<Result<Outcome, Infeasible>>,
}

/// Starts searches and hands their results over.
pub(crate) struct Searches {
    results: Receiver<Found>,
    sender: Sender<Found>,
    running: Option<(u64, Arc<AtomicBool>)>,
}

impl Searches {
    pub(crate) fn new() -> Self {
        let (sender, results) = bounded(RESULTS_MAX);
        Self { results, sender, running: None }
    }

    /// Results, as they come.
    pub(crate) fn results(&self) -> &Receiver<Found> {
        &self.results
    }

    /// Starts a search and ends the one before.
    pub(crate) fn start(&mut self, order: SearchOrder) {
        self.cancel_running();
        let (ticket, cancelled) = (order.ticket, Arc::new(AtomicBool::new(false)));
        self.running = Some((ticket, Arc::clone(&cancelled)));
        let sender = self.sender.clone();
        let work = move || {
            let found = Found { ticket, result: find(&order, &cancelled) };
            // The coordinator may have ended meanwhile.
            let _ = sender.send(found);
        };
        if let Err(error) = std::thread::Builder::new().name(format!("search-{ticket}")).spawn(work) {
            tracing::error!(%error, "no thread for a search");
            let _ = self.sender.try_send(Found { ticket, result: None });
        }
    }

    /// Ends a search; its result, if it still comes, has a ticket that nobody waits for.
    pub(crate) fn cancel(&mut self, ticket: u64) {
        if self.running.as_ref().is_some_and(|(running, _)| *running == ticket) {
            self.cancel_running();
        }
    }

    fn cancel_running(&mut self) {
        if let Some((_, cancelled)) = self.running.take() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Searches {
    fn drop(&mut self) {
        self.cancel_running();
    }
}

fn find(order: &SearchOrder, cancelled: &AtomicBool) -> Option<Result<Outcome, Infeasible>> {
    // On Linux the nice value belongs to a thread, and "this process" is the calling thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a search runs with the priority of the coordinator");
    }
    let (begun, budget) = (Instant::now(), Duration::from_nanos(order.budget_ns));
    let mut tick = |_: &adaptis_planner::search::Progress| {
        let is_over = begun.elapsed() >= budget || cancelled.load(Ordering::Relaxed);
        if is_over { Control::Stop } else { Control::Go }
    };
    let searched =
        catch_unwind(AssertUnwindSafe(|| search(&order.problem, Some(&order.from), &order.options, &mut tick)));
    if searched.is_err() {
        tracing::error!(ticket = order.ticket, "a search panicked; the plan stays");
    }
    searched.ok()
}
