//! What the end of the programs hangs on.

use super::{Course, crossing, producer};
use crate::program::{NONE, Op, Programs, stage};
use crate::shape::Tables;

impl Course {
    /// Follows what each instruction waited for, back from the last to end; `either` chooses where both held it up.
    pub(crate) fn critical(
        &self,
        tables: &Tables,
        programs: &Programs,
        path: &mut Vec<Op>,
        mut either: impl FnMut() -> bool,
    ) {
        path.clear();
        let Some(device) = (0..programs.len()).max_by_key(|&device| self.ends[device]) else { return };
        let Some(&last) = programs[device].last() else { return };
        let mut here = last;
        loop {
            path.push(here);
            let node = self.at(here);
            if node.start_ns == 0 || path.len() > self.nodes.len() {
                return;
            }
            let device = tables.device[stage(here)] as usize;
            let before = (node.position as usize).checked_sub(1).map(|before| programs[device][before]);
            let held = before.filter(|&op| self.at(op).start_ns.saturating_add(tables.ns(op)) == node.start_ns);
            let awaited = producer(tables, here).filter(|_| self.arrival(tables, here) == node.start_ns);
            here = match (held, awaited) {
                (Some(held), Some(awaited)) => {
                    if either() {
                        held
                    } else {
                        self.sender(tables, awaited)
                    }
                }
                (Some(held), None) => held,
                (None, Some(awaited)) => self.sender(tables, awaited),
                (None, None) => return,
            };
        }
    }

    /// The first of the transfers that queue without a gap before a producer's.
    fn sender(&self, tables: &Tables, mut producer: Op) -> Op {
        if !self.is_contended {
            return producer;
        }
        while let Some(hop) = crossing(tables, producer) {
            let node = self.at(producer);
            let end_ns = node.start_ns.saturating_add(tables.ns(producer));
            if node.pair_before == NONE || end_ns.saturating_add(hop.transfer_ns) >= node.sent_ns {
                break;
            }
            producer = node.pair_before;
        }
        producer
    }
}
