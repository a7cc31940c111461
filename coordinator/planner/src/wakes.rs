//! Which of many devices wakes first: a tournament over their times.
//!
//! ```text
//!            3            a node holds the earlier of the two below it; a changed time is played
//!        3       5        again upwards, until a game ends as it did before
//!      9   3   5   7
//! ```

/// Devices up to which looking at all of them is faster.
const SCANNED_MAX: usize = 8;

/// A time per device, and who has the earliest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakes {
    /// A power of two, at least the number of devices; those beyond never wake.
    leaves: usize,
    /// The root is at 1, the two below `node` at `2 x node` and the one after it, device d at `leaves + d`.
    earliest: Vec<u64>,
}

impl Wakes {
    /// All wake at 0.
    pub(crate) fn reset(&mut self, devices: usize) {
        self.leaves = devices.next_power_of_two();
        self.earliest.clear();
        self.earliest.resize(2 * self.leaves, u64::MAX);
        self.earliest[self.leaves..][..devices].fill(0);
        for node in (1..self.leaves).rev() {
            self.earliest[node] = self.earliest[2 * node].min(self.earliest[2 * node + 1]);
        }
    }

    /// When a device wakes.
    #[inline]
    pub(crate) fn of(&self, device: usize) -> u64 {
        self.earliest[self.leaves + device]
    }

    /// A device wakes at another time.
    #[inline]
    pub(crate) fn set(&mut self, device: usize, at_ns: u64) {
        let mut node = self.leaves + device;
        if self.leaves <= SCANNED_MAX {
            self.earliest[node] = at_ns;
            return;
        }
        let mut earliest = at_ns;
        loop {
            if self.earliest[node] == earliest {
                return;
            }
            self.earliest[node] = earliest;
            if node == 1 {
                return;
            }
            earliest = earliest.min(self.earliest[node ^ 1]);
            node /= 2;
        }
    }

    /// Who wakes first: the first of them where several do.
    #[inline]
    pub(crate) fn first(&self) -> usize {
        if self.leaves <= SCANNED_MAX {
            let times = &self.earliest[self.leaves..];
            return (1..times.len()).fold(0, |first, device| if times[device] < times[first] { device } else { first });
        }
        let mut node = 1;
        while node < self.leaves {
            node = 2 * node + usize::from(self.earliest[2 * node] > self.earliest[2 * node + 1]);
        }
        node - self.leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn the_first_is_that_of_a_scan() {
        let mut random = Random::new(7);
        for devices in [1, 2, 3, 7, 8, 9, 64, 100] {
            let mut wakes = Wakes::default();
            wakes.reset(devices);
            let mut times = vec![0; devices];
            for _ in 0..2_000 {
                assert_eq!(Some(wakes.first()), (0..devices).min_by_key(|&device| times[device]));
                let device = random.below(devices);
                // Few times, so that many are equal, and some that never come.
                let at_ns = if random.chance(0.1) { u64::MAX } else { random.below(20) as u64 };
                times[device] = at_ns;
                wakes.set(device, at_ns);
                assert!((0..devices).all(|device| wakes.of(device) == times[device]));
            }
        }
    }
}
