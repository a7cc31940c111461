//! An agent between a ring, a spool and a coordinator that all misbehave: whatever happens, the books balance, nothing
//! is freed too early, and once the coordinator is back everything is there exactly once but for what was counted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use adaptis_agent_core::{Agent, Effect, Event, Limits, SpooledRange};
use adaptis_proto::Incarnation;
use adaptis_proto::message::{AgentEvent, AgentOrder, Batch};
use adaptis_proto::sample::Record;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const MS: u64 = 1_000_000;
const CAPACITY: u64 = 64;
const SPOOL_BATCHES: usize = 12;

fn limits() -> Limits {
    Limits { batch_records_max: 10, in_flight_max: 3, orphan_records_max: 40, ..Limits::default() }
}

/// A number of a ring.
type Number = (u64, u64);

#[derive(Default)]
struct Ring {
    id: u64,
    head: u64,
    tail: u64,
    dropped: u64,
}

/// Takes records in order of their numbers, or from the floor that an empty batch names.
#[derive(Default)]
struct Coordinator {
    next: BTreeMap<u64, u64>,
    stored: BTreeSet<Number>,
    doubled: u64,
}

impl Coordinator {
    fn take(&mut self, batch: &Batch) -> AgentOrder {
        let next = self.next.entry(batch.ring.0).or_insert(0);
        let end = batch.first + batch.records.len() as u64;
        if batch.records.is_empty() {
            *next = (*next).max(batch.first);
        } else if batch.first <= *next && end > *next {
            for (number, record) in (batch.first..).zip(&batch.records) {
                assert_eq!((record.0[3], record.0[4]), (batch.ring.0, number), "a record keeps its number");
                if number >= *next {
                    self.doubled += u64::from(!self.stored.insert((batch.ring.0, number)));
                }
            }
            *next = end;
        }
        AgentOrder::Stored { ring: batch.ring, next: *next }
    }
}

struct World {
    now: u64,
    agent: Agent,
    ring: Ring,
    spool: VecDeque<Batch>,
    spool_works: bool,
    to_coordinator: VecDeque<Batch>,
    to_agent: VecDeque<AgentOrder>,
    coordinator: Coordinator,
    /// Everything recorded, and of it what may be missing in the end.
    recorded: BTreeSet<Number>,
    evicted: BTreeSet<Number>,
    /// Records that were counted as dropped by agents that crashed since.
    crashed_drops: u64,
    /// What a new agent cannot know of: damage that the one before had not met yet, and what the spool refused of rings
    /// that have ended. The coordinator sees it as a gap in the numbers.
    lost_in_crash: BTreeSet<Number>,
    damaged: BTreeSet<Number>,
    batches_max: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: 1_000 * MS,
            agent: Agent::new("gpu0", limits(), 1_000 * MS),
            ring: Ring { id: 1, ..Ring::default() },
            spool: VecDeque::new(),
            spool_works: true,
            to_coordinator: VecDeque::new(),
            to_agent: VecDeque::new(),
            coordinator: Coordinator::default(),
            recorded: BTreeSet::new(),
            evicted: BTreeSet::new(),
            crashed_drops: 0,
            lost_in_crash: BTreeSet::new(),
            damaged: BTreeSet::new(),
            batches_max: 0,
        };
        world.open();
        world
    }

    fn numbers(batch: &Batch) -> impl Iterator<Item = Number> + '_ {
        (batch.first..).take(batch.records.len()).map(|number| (batch.ring.0, number))
    }

    fn range(batch: &Batch) -> SpooledRange {
        SpooledRange { ring: batch.ring, first: batch.first, next: batch.first + batch.records.len() as u64 }
    }

    fn open(&mut self) {
        let ring = Incarnation(self.ring.id);
        self.tell(Event::RingOpened { ring, committed: self.ring.tail, capacity_records: CAPACITY });
    }

    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.agent.on_event(self.now, event) {
                self.act(effect, &mut events);
            }
            assert!(self.agent.counters().add_up());
        }
    }

    fn act(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Send(AgentEvent::Batch(batch)) => {
                assert!(batch.records.len() <= 10);
                self.to_coordinator.push_back(batch);
                self.batches_max = self.batches_max.max(self.to_coordinator.len());
            }
            Effect::Send(_) | Effect::Report { .. } => {}
            Effect::Spool(batch) if !self.spool_works => events.push_back(Event::SpoolRefused(Self::range(&batch))),
            Effect::Spool(batch) => {
                if self.spool.len() == SPOOL_BATCHES {
                    let oldest = self.spool.pop_front().unwrap();
                    self.evicted.extend(Self::numbers(&oldest));
                    events.push_back(Event::Evicted(Self::range(&oldest)));
                }
                events.push_back(Event::Spooled(Self::range(&batch)));
                self.spool.push_back(batch);
            }
            Effect::Unspool { ring, first } => {
                let holds = |batch: &&Batch| Self::numbers(batch).any(|number| number == (ring.0, first));
                events.push_back(match self.spool.iter().find(holds) {
                    Some(batch) => Event::Unspooled(batch.clone()),
                    None => Event::UnspoolFailed { ring, first },
                });
            }
            Effect::Release { ring, next } => {
                self.spool.retain(|batch| batch.ring != ring || Self::range(batch).next > next);
            }
            Effect::Commit { ring, next } => {
                if ring.0 == self.ring.id {
                    assert!(next <= self.ring.head);
                    self.check_safe(next);
                    self.ring.tail = self.ring.tail.max(next);
                }
            }
        }
    }

    /// What the ring is about to free is stored, spooled or was evicted.
    fn check_safe(&self, next: u64) {
        let spooled: BTreeSet<Number> = self.spool.iter().flat_map(Self::numbers).collect();
        for number in (self.ring.tail..next).map(|number| (self.ring.id, number)) {
            let is_safe = [&self.coordinator.stored, &spooled, &self.evicted].iter().any(|set| set.contains(&number));
            assert!(is_safe, "{number:?} is freed and nowhere safe");
        }
    }

    fn record(&mut self, count: u64) {
        for _ in 0..count {
            if self.ring.head - self.ring.tail == CAPACITY {
                self.ring.dropped += 1;
            } else {
                self.recorded.insert((self.ring.id, self.ring.head));
                self.ring.head += 1;
            }
        }
    }

    fn drain(&mut self) {
        let first = self.agent.next_to_read();
        let record = |number| Record([5 << 56, 0, 0, self.ring.id, number, 0]);
        let records = (first..self.ring.head).map(record).collect();
        self.tell(Event::Drained { first, records, dropped: self.ring.dropped });
    }

    fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(batch) = self.to_coordinator.pop_front() {
                let order = self.coordinator.take(&batch);
                self.to_agent.push_back(order);
            }
        }
    }

    fn answer(&mut self, count: usize, doubled: bool) {
        for _ in 0..count {
            if let Some(order) = self.to_agent.pop_front() {
                self.tell(Event::Ordered(order.clone()));
                if doubled {
                    self.tell(Event::Ordered(order));
                }
            }
        }
    }

    fn replace_ring(&mut self) {
        self.drain();
        self.tell(Event::RingEnded);
        self.ring = Ring { id: self.ring.id + 1, ..Ring::default() };
        self.open();
    }

    fn crash(&mut self) {
        let spooled: BTreeSet<Number> = self.spool.iter().flat_map(Self::numbers).collect();
        let dead = self.recorded.iter().filter(|number| number.0 < self.ring.id);
        self.lost_in_crash.extend(dead.filter(|number| !spooled.contains(number)));
        self.lost_in_crash.append(&mut self.damaged);
        self.crashed_drops += self.agent.counters().dropped_spool_full + self.agent.counters().dropped_unreadable;
        self.agent = Agent::new("gpu0", limits(), self.now);
        let found = self.spool.iter().map(Self::range).collect();
        self.tell(Event::SpoolFound(found));
        self.open();
    }

    fn tick(&mut self, ms: u64) {
        self.now += ms * MS;
        self.tell(Event::Ticked);
        assert!(self.agent.deadline() > self.now, "a deadline that has passed would be waited for without end");
    }

    /// The coordinator is there and answers, until nothing is left to do.
    fn heal(&mut self) {
        self.spool_works = true;
        self.drain();
        for _ in 0..500 {
            self.tick(150);
            self.deliver(100);
            self.answer(100, false);
            if self.agent.is_settled() {
                return;
            }
        }
        panic!("everything is stored once the coordinator answers: {:?}", self.agent.counters());
    }

    fn check_end(&self) {
        assert_eq!(self.coordinator.doubled, 0, "each number is stored once");
        let missing: BTreeSet<Number> = self.recorded.difference(&self.coordinator.stored).copied().collect();
        let counters = self.agent.counters();
        let counted = counters.dropped_spool_full + counters.dropped_unreadable + self.crashed_drops;
        let missing_alive = missing.difference(&self.lost_in_crash).count() as u64;
        assert!(missing_alive <= counted, "{missing_alive} are missing, {counted} counted: {missing:?}");
        assert!(self.coordinator.stored.is_subset(&self.recorded), "nothing is made up");
        assert_eq!(counters.queued, 0);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Record(u64),
    Drain,
    Tick(u64),
    Deliver(usize),
    LoseToCoordinator,
    Answer(usize, bool),
    LoseAnswers,
    ForgedAcknowledgement(u64, u64),
    ReplaceRing,
    Crash,
    SpoolWorks(bool),
    DamageSpool,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u64..40).prop_map(Step::Record),
        6 => Just(Step::Drain),
        5 => (1_u64..900).prop_map(Step::Tick),
        4 => (1_usize..6).prop_map(Step::Deliver),
        2 => Just(Step::LoseToCoordinator),
        4 => (1_usize..6, any::<bool>()).prop_map(|(count, doubled)| Step::Answer(count, doubled)),
        2 => Just(Step::LoseAnswers),
        1 => (1_u64..4, 0_u64..50).prop_map(|(ring, next)| Step::ForgedAcknowledgement(ring, next)),
        1 => Just(Step::ReplaceRing),
        1 => Just(Step::Crash),
        1 => any::<bool>().prop_map(Step::SpoolWorks),
        1 => Just(Step::DamageSpool),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_is_lost_uncounted(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Record(count) => world.record(count),
                Step::Drain => world.drain(),
                Step::Tick(ms) => world.tick(ms),
                Step::Deliver(count) => world.deliver(count),
                Step::LoseToCoordinator => world.to_coordinator.clear(),
                Step::Answer(count, doubled) => world.answer(count, doubled),
                Step::LoseAnswers => world.to_agent.clear(),
                // An old acknowledgement that comes late: true, but stale.
                Step::ForgedAcknowledgement(ring, next) => {
                    let next = next.min(world.coordinator.next.get(&ring).copied().unwrap_or(0));
                    world.tell(Event::Ordered(AgentOrder::Stored { ring: Incarnation(ring), next }));
                }
                Step::ReplaceRing => world.replace_ring(),
                Step::Crash => world.crash(),
                Step::SpoolWorks(works) => world.spool_works = works,
                Step::DamageSpool => {
                    if let Some(batch) = world.spool.pop_back() {
                        world.evicted.extend(World::numbers(&batch));
                        world.damaged.extend(World::numbers(&batch));
                    }
                }
            }
        }
        world.heal();
        world.check_end();
        prop_assert!(world.batches_max <= 4_000);
    }
}

#[test]
fn with_the_coordinator_there_nothing_is_spooled() {
    let mut world = World::new();
    for _ in 0..50 {
        world.record(17);
        world.drain();
        world.tick(50);
        world.deliver(10);
        world.answer(10, false);
    }
    world.heal();
    world.check_end();
    let counters = *world.agent.counters();
    assert_eq!((counters.stored, counters.taken, counters.resends, counters.dropped()), (850, 850, 0, 0));
    assert!(world.spool.is_empty());
    assert_eq!(world.ring.tail, 850);
}

#[test]
fn an_absent_coordinator_is_asked_ever_more_rarely_with_one_batch() {
    let mut world = World::new();
    world.record(35);
    world.drain();
    let start = world.now;
    let mut sent = vec![(0, world.to_coordinator.drain(..).count())];
    for _ in 0..200 {
        world.tick(100);
        if !world.to_coordinator.is_empty() {
            sent.push(((world.now - start) / MS, world.to_coordinator.drain(..).count()));
        }
    }
    let gaps: Vec<_> = sent.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let counts: Vec<_> = sent.iter().map(|sent| sent.1).collect();
    assert!(counts[0] == 3 && counts[1..].iter().all(|count| *count == 1), "{sent:?}");
    assert!(gaps.windows(2).all(|pair| pair[0] <= pair[1]) && gaps.last() == Some(&4_000), "{gaps:?}");
}

#[test]
fn a_full_spool_drops_the_oldest_and_says_where_the_numbers_go_on() {
    let mut world = World::new();
    for _ in 0..30 {
        world.record(10);
        world.drain();
        world.tick(110);
    }
    let dropped = world.agent.counters().dropped_spool_full;
    assert!(dropped > 0 && world.ring.dropped == 0);
    world.to_coordinator.clear();
    world.heal();
    world.check_end();
    assert_eq!(world.agent.counters().stored + dropped, 300);
    assert!(world.spool.is_empty(), "what is stored is released");
}

#[test]
fn a_refusing_spool_leaves_the_records_in_the_ring_until_it_is_full() {
    let mut world = World::new();
    world.spool_works = false;
    for _ in 0..10 {
        world.record(10);
        world.drain();
        world.tick(110);
    }
    let counters = *world.agent.counters();
    assert_eq!((counters.queued, counters.dropped_ring_full, world.ring.tail), (64, 36, 0));
    world.to_coordinator.clear();
    world.heal();
    world.check_end();
    assert_eq!(world.agent.counters().stored, 64);
}

#[test]
fn leaving_saves_what_is_not_acknowledged() {
    let mut world = World::new();
    world.record(25);
    world.drain();
    world.tell(Event::Stopping);
    assert_eq!(world.ring.tail, 0);
    world.tell(Event::Leaving);
    assert_eq!((world.ring.tail, world.spool.len()), (25, 3));
    world.to_coordinator.clear();
    world.crash();
    world.heal();
    world.check_end();
    assert_eq!(world.coordinator.stored.len(), 25);
}

#[test]
fn leaving_with_a_refusing_spool_ends() {
    let mut world = World::new();
    world.spool_works = false;
    world.record(25);
    world.drain();
    world.tell(Event::Leaving);
    assert_eq!((world.ring.tail, world.spool.len()), (0, 0));
    assert_eq!(world.agent.counters().spool_refusals, 3);
}

#[test]
fn a_coordinator_that_knows_more_than_we_sent_is_believed_up_to_what_we_took() {
    let mut world = World::new();
    world.record(20);
    world.drain();
    world.coordinator.stored.extend((0..20).map(|number| (1, number)));
    world.tell(Event::Ordered(AgentOrder::Stored { ring: Incarnation(1), next: 1_000 }));
    assert_eq!((world.agent.counters().stored, world.agent.counters().queued), (20, 0));
}
