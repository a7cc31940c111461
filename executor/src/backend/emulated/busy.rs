//! A clock for tests that work moves on, one's own and that of others.

use crate::clock::Clock;
use std::cell::Cell;
use std::rc::Rc;

/// All clones show the same time.
#[derive(Clone, Default)]
pub(super) struct Busy {
    now_ns: Rc<Cell<u64>>,
    busy_ns: Rc<Cell<u64>>,
}

impl Busy {
    /// The host does something else for so long.
    pub fn pass(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get() + ns);
    }

    /// The thread works for so long.
    pub fn work(&self, ns: u64) {
        self.pass(ns);
        self.busy_ns.set(self.busy_ns.get() + ns);
    }
}

impl Clock for Busy {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn busy_ns(&self) -> u64 {
        self.busy_ns.get()
    }

    fn wait_until(&self, instant_ns: u64) {
        self.now_ns.set(self.now_ns.get().max(instant_ns));
    }
}
