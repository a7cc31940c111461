//! How a record passes from writer to reader. Free of files, so that the model checker runs this very code.
//!
//! The writer owns head and its copy of it, the reader owns tail. `head - tail` is what the ring holds, at most its
//! capacity; the slot of record `n` is `n mod capacity`.

use crate::layout::{AT_DROPPED, AT_HEAD, AT_SLOTS, AT_TAIL, Word};
use adaptis_proto::sample::Record;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The writer's own view.
pub(crate) struct Producer {
    /// Number of the next record. Never read back from shared memory.
    head: u64,
    /// Highest tail seen; read anew only when the ring looks full.
    tail: u64,
    dropped: u64,
    capacity: u64,
}

impl Producer {
    /// Of a fresh ring: all words zero.
    pub(crate) fn new(capacity_records: usize) -> Self {
        assert!(capacity_records.is_power_of_two(), "capacity is a power of two");
        Self { head: 0, tail: 0, dropped: 0, capacity: capacity_records as u64 }
    }

    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    #[inline]
    pub(crate) fn push<W: Word>(&mut self, words: &[W], record: Record) {
        if self.head - self.tail >= self.capacity && !self.make_room(words) {
            return;
        }
        let at = slot(self.head, self.capacity);
        let slot: &[W] = &words[at..at + Record::WORDS];
        for (word, value) in slot.iter().zip(record.0) {
            word.set(value, Relaxed);
        }
        self.head += 1;
        words[AT_HEAD].set(self.head, Release);
    }

    /// The slow path: look at the reader's tail, and count a drop if it has not moved.
    #[cold]
    fn make_room<W: Word>(&mut self, words: &[W]) -> bool {
        // Acquire: the reader's loads of the slot come before our stores into it.
        let tail = words[AT_TAIL].get(Acquire);
        // A tail outside of what can be is a reader's fault; it must neither stop training nor free unread slots.
        if tail > self.tail && tail <= self.head {
            self.tail = tail;
            return true;
        }
        self.dropped += 1;
        words[AT_DROPPED].set(self.dropped, Relaxed);
        false
    }
}

#[inline]
fn slot(number: u64, capacity: u64) -> usize {
    AT_SLOTS + (number & (capacity - 1)) as usize * Record::WORDS
}

/// The range of numbers that can be read. Empty if the header contradicts itself.
pub(crate) fn readable<W: Word>(words: &[W], capacity: u64) -> std::ops::Range<u64> {
    let tail = words[AT_TAIL].get(Relaxed);
    let head = words[AT_HEAD].get(Acquire);
    if head < tail || head - tail > capacity { tail..tail } else { tail..head }
}

/// The record of a number within [`readable`].
#[inline]
pub(crate) fn load<W: Word>(words: &[W], capacity: u64, number: u64) -> Record {
    let at = slot(number, capacity);
    Record(std::array::from_fn(|word| words[at + word].get(Relaxed)))
}

/// Hands the slots below a number back to the writer. Never goes back, never passes the head.
pub(crate) fn commit<W: Word>(words: &[W], capacity: u64, next: u64) {
    let range = readable(words, capacity);
    if next > range.start {
        words[AT_TAIL].set(next.min(range.end), Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    impl Word for AtomicU64 {
        fn get(&self, order: Ordering) -> u64 {
            self.load(order)
        }

        fn set(&self, value: u64, order: Ordering) {
            self.store(value, order);
        }
    }

    fn record(number: u64) -> Record {
        Record([number + 1, 0, 0, 0, 0, number + 1])
    }

    /// A writer of three records and a reader, in a ring of two. Finds a head that is stored or loaded too weakly. The
    /// checker does not move loads behind later stores, so it cannot miss the ordering of the tail: that one stands on
    /// the argument in `make_room`.
    #[test]
    fn no_interleaving_shows_a_torn_or_wrong_record() {
        const CAPACITY: usize = 2;
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let words = (0..AT_SLOTS + CAPACITY * Record::WORDS).map(|_| AtomicU64::new(0));
            let words: Arc<Vec<AtomicU64>> = Arc::new(words.collect());
            let shared = words.clone();
            let writer = loom::thread::spawn(move || {
                let mut producer = Producer::new(CAPACITY);
                for _ in 0..3 {
                    let number = producer.head();
                    producer.push(&shared, record(number));
                }
                (producer.head(), producer.dropped())
            });
            let mut next = 0;
            for _ in 0..2 {
                for number in readable(&words, CAPACITY as u64) {
                    assert_eq!(number, next, "numbers go on without a gap");
                    assert_eq!(load(&words, CAPACITY as u64, number), record(number));
                    next = number + 1;
                }
                commit(&words, CAPACITY as u64, next);
            }
            let (recorded, dropped) = writer.join().expect("the writer does not panic");
            assert_eq!(recorded + dropped, 3);
        });
    }
}
