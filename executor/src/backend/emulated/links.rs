//! The links that leave a device: when a transfer starts and when it arrives.
//!
//! Each directed pair carries one transfer at a time, first in, first out: a transfer starts at the later of its
//! production and the end of the one before, takes `bytes x 1e9 / bytes_per_second`, and arrives `latency_ns` after its
//! end (DESIGN section 3.1).

use adaptis_plan::Problem;
use adaptis_proto::DeviceIndex;

/// When a transfer is on its link, in the sender's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Its start.
    pub start_ns: u64,
    /// Its arrival.
    pub due_ns: u64,
}

/// The links from one device to all others.
#[derive(Clone, Debug)]
pub struct Links {
    to: Vec<Direction>,
}

#[derive(Clone, Debug)]
struct Direction {
    latency_ns: u64,
    bytes_per_second: f64,
    /// Divides the bandwidth.
    slowdown: f64,
    free_at_ns: u64,
}

impl Links {
    /// The links from device `from`.
    pub fn new(truth: &Problem, from: DeviceIndex) -> Links {
        let to = (0..truth.devices.len())
            .map(|to| {
                let link = truth.link(from.index(), to);
                Direction {
                    latency_ns: link.latency_ns,
                    bytes_per_second: link.bytes_per_second,
                    slowdown: 1.0,
                    free_at_ns: 0,
                }
            })
            .collect();
        Links { to }
    }

    /// From now on, the bandwidth to a device is that of the truth divided by `factor`.
    pub fn slow(&mut self, to: DeviceIndex, factor: f64) {
        self.to[to.index()].slowdown = factor;
    }

    /// Puts a transfer on the link.
    pub fn carry(&mut self, to: DeviceIndex, produced_ns: u64, bytes: u64) -> Passage {
        let link = &mut self.to[to.index()];
        let start_ns = produced_ns.max(link.free_at_ns);
        // Whole numbers up to 2^53 and their quotients by 1.0 are exact: without a fault this is the truth's own time.
        let takes = (bytes as f64 * 1e9 / (link.bytes_per_second / link.slowdown)).round() as u64;
        link.free_at_ns = start_ns.saturating_add(takes);
        Passage { start_ns, due_ns: link.free_at_ns.saturating_add(link.latency_ns) }
    }
}
