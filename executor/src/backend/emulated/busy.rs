//! A clock for tests that somebody else's work moves on, too.

use crate::clock::Clock;
use std::cell::Cell;
use std::rc::Rc;

/// All clones show the same time.
#[derive(Clone, Default)]
pub(super) struct Busy(Rc<Cell<u64>>);

impl Busy {
    /// The host does something for so long.
    pub fn pass(&self, ns: u64) {
        self.0.set(self.0.get() + ns);
    }
}

impl Clock for Busy {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }

    fn wait_until(&self, instant_ns: u64) {
        self.0.set(self.0.get().max(instant_ns));
    }
}
