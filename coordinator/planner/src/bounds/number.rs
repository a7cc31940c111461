//! Whole layers packed into devices: by number, and the largest classes of equal layers beside one another.

use super::{Bench, FLOAT_LOSS, FOREVER};
use crate::costs::Costs;
use adaptis_plan::Problem;

/// Classes of equal layers that are packed by number.
const CLASSES_MAX: usize = 4;
/// Devices up to which the packing by number matches devices and waits exactly.
const MATCHED_DEVICES_MAX: usize = 10;
/// Steps of one packing of classes beside one another: as many classes are looked at as that allows.
const STEPS_MAX: usize = 30_000;
/// How many times longer one packing of them may take, at a later time.
const LONGER: usize = 8;
/// Halvings of a step that the packing of classes searches: to a nanosecond in seconds.
const HALVINGS: usize = 24;

impl Bench {
    /// By number over all layers, and over those of each of the largest classes alone: the cheap layers of a model
    /// would else stand for as many heavy ones.
    pub(super) fn by_numbers(&self) -> f64 {
        let mut classes = self.classes();
        classes.sort_by_key(|class| std::cmp::Reverse(class.len()));
        classes.truncate(CLASSES_MAX);
        classes.push((0..self.layers).collect());
        classes.iter().map(|class| self.by_number(class)).fold(0.0, f64::max)
    }

    /// Layers that take the same time as one another on every device.
    fn classes(&self) -> Vec<Vec<usize>> {
        let mut classes: Vec<Vec<usize>> = Vec::new();
        for layer in 0..self.layers {
            let row = |layer: usize| self.times[layer * self.devices..][..self.devices].iter().map(|times| times.whole);
            match classes.iter_mut().find(|class| row(class[0]).eq(row(layer))) {
                Some(class) => class.push(layer),
                None => classes.push(vec![layer]),
            }
        }
        classes
    }

    /// By number over some layers, each device from when it can start with one of them.
    fn by_number(&self, members: &[usize]) -> f64 {
        let costs: Vec<Vec<f64>> = (0..self.devices)
            .map(|device| {
                let mut costs: Vec<f64> = members
                    .iter()
                    .map(|&layer| self.at(layer, device).whole)
                    .filter(|whole| whole.is_finite())
                    .collect();
                costs.sort_by(f64::total_cmp);
                costs
            })
            .collect();
        let holds = |device: usize, capacity: f64| {
            let mut left = capacity;
            costs[device]
                .iter()
                .take_while(|&&cost| {
                    left -= cost;
                    left >= -FLOAT_LOSS * capacity
                })
                .count()
        };
        let (_, idle) = self.waits(members);
        let enough = |time: f64| match self.devices <= MATCHED_DEVICES_MAX {
            true => self.matched(&holds, &idle, time) >= members.len(),
            false => {
                let most = |idle: f64| {
                    let capacity = self.capacity(time, idle);
                    self.groups.iter().map(|group| holds(group[0], capacity)).max()
                };
                let by_start: usize = idle.iter().map(|&idle| most(idle).unwrap_or(0)).sum();
                let all_at_once: usize = (0..self.devices).map(|device| holds(device, self.capacity(time, 0.0))).sum();
                by_start.min(all_at_once) >= members.len()
            }
        };
        self.bisect(enough)
    }

    /// Most layers over all assignments of devices to starts: a dynamic program over sets of devices.
    fn matched(&self, holds: &impl Fn(usize, f64) -> usize, idle: &[f64], time: f64) -> usize {
        let mut most = vec![0_usize; 1 << self.devices];
        for set in 1..most.len() {
            let capacity = self.capacity(time, idle[set.count_ones() as usize - 1]);
            let members = (0..self.devices).filter(|device| set & (1 << device) != 0);
            most[set] = members.map(|device| most[set & !(1 << device)] + holds(device, capacity)).max().unwrap_or(0);
        }
        most.last().copied().unwrap_or(0)
    }

    /// By whole layers of the largest classes at once, from a time that no plan beats. A device's layers must fit in its
    /// memory, too: their states, and what each holds at least when the last of them has run its F.
    pub(super) fn by_classes(&self, costs: &Costs, problem: &Problem, time: f64) -> f64 {
        let Some(packing) = Packing::new(self, costs, problem, time) else { return time };
        // What would take too long to look at may fit.
        let fits = |time: f64| packing.steps(self, time) > STEPS_MAX * LONGER || packing.fits(self, time);
        // Nothing is said of a problem whose layers fit nowhere.
        if fits(time * (1.0 + FLOAT_LOSS)) || !fits(FOREVER) {
            return time;
        }
        self.bisect_above(time, (time / 1024.0).max(1.0), HALVINGS, fits)
    }
}

/// Equal layers.
struct Class {
    count: usize,
    /// Per group of devices: of one layer, for a microbatch.
    whole: Vec<f64>,
    /// Per group of devices: what one layer holds at least.
    bytes: Vec<f64>,
}

/// Devices of equal times.
#[derive(Clone)]
struct Group {
    count: usize,
    /// Of the largest.
    memory_bytes: f64,
}

/// A share of the classes for one device; of the first class, as many as it then takes.
struct Share {
    /// Per class but the first.
    counts: Vec<usize>,
    first: usize,
}

/// The classes of a problem that are packed beside one another. Others are left out, which only makes the bound lower.
struct Packing {
    /// The first is the one with most layers: its number is the value of a state, those of the others are its place.
    classes: Vec<Class>,
    groups: Vec<Group>,
}

impl Packing {
    /// As many of the heaviest classes as can be packed in time.
    fn new(bench: &Bench, costs: &Costs, problem: &Problem, time: f64) -> Option<Self> {
        let room = |device: usize| costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) as f64;
        let group = |group: &Vec<usize>| Group {
            count: group.len(),
            memory_bytes: group.iter().map(|&device| room(device)).fold(0.0, f64::max),
        };
        let groups: Vec<Group> = bench.groups.iter().map(group).collect();
        let held = |layer: usize, device: usize| costs.least_held(problem, device, layer) as f64;
        let least_held = |layers: &[usize], group: &[usize]| {
            let of = |&layer: &usize| group.iter().map(|&device| held(layer, device)).fold(f64::INFINITY, f64::min);
            layers.iter().map(of).fold(f64::INFINITY, f64::min)
        };
        let class = |layers: &Vec<usize>| Class {
            count: layers.len(),
            whole: bench.groups.iter().map(|group| bench.at(layers[0], group[0]).whole).collect(),
            bytes: bench.groups.iter().map(|group| least_held(layers, group)).collect(),
        };
        let mut heaviest = bench.classes();
        let weight = |layers: &Vec<usize>| layers.len() as f64 * bench.least(layers[0], |times| times.whole);
        heaviest.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        let packing = |taken: usize| {
            let mut classes: Vec<Class> = heaviest[..taken].iter().map(&class).collect();
            classes.sort_by_key(|class| std::cmp::Reverse(class.count));
            Self { classes, groups: groups.clone() }
        };
        let sizes = 1..=heaviest.len().min(CLASSES_MAX);
        sizes.map(packing).take_while(|packing| packing.steps(bench, time) <= STEPS_MAX).last()
    }

    /// Shares that a device of a group can take.
    fn shares(&self, group: usize, capacity: f64) -> Vec<Share> {
        let memory = self.groups[group].memory_bytes;
        let (capacity, memory) = (capacity * (1.0 + FLOAT_LOSS), memory * (1.0 + FLOAT_LOSS));
        let mut shares = vec![(Share { counts: Vec::new(), first: 0 }, capacity, memory)];
        for class in &self.classes[1..] {
            let (whole, bytes) = (class.whole[group], class.bytes[group]);
            let extended = |(share, capacity, memory): (Share, f64, f64)| {
                (0..=most(capacity, whole, class.count).min(most(memory, bytes, class.count))).map(move |count| {
                    let taken = |left: f64, each: f64| if count == 0 { left } else { left - count as f64 * each };
                    let counts = share.counts.iter().copied().chain([count]).collect();
                    (Share { counts, first: 0 }, taken(capacity, whole), taken(memory, bytes))
                })
            };
            shares = shares.into_iter().flat_map(extended).collect();
        }
        let first = &self.classes[0];
        shares
            .into_iter()
            .map(|(share, capacity, memory)| {
                let of_time = most(capacity, first.whole[group], first.count);
                Share { first: of_time.min(most(memory, first.bytes[group], first.count)), ..share }
            })
            .collect()
    }

    /// Sizes of the places of a state: devices taken of each group but the last, layers taken of each class but the first.
    fn sizes(&self) -> Vec<usize> {
        let groups = self.groups[..self.groups.len() - 1].iter().map(|group| group.count + 1);
        groups.chain(self.classes[1..].iter().map(|class| class.count + 1)).collect()
    }

    /// Steps of a packing.
    fn steps(&self, bench: &Bench, time: f64) -> usize {
        let capacity = bench.capacity(time, 0.0);
        let shares = |group: usize| -> usize {
            let of = |class: &Class| most(capacity, class.whole[group], class.count).saturating_add(1);
            self.classes[1..].iter().map(of).fold(1, usize::saturating_mul)
        };
        let shares = (0..self.groups.len()).map(shares).fold(0, usize::saturating_add);
        let states = self.sizes().into_iter().fold(1, usize::saturating_mul);
        bench.devices.saturating_mul(states).saturating_mul(shares)
    }

    /// Whether all layers can be packed into devices that end at a time: device after device by what it waits, of
    /// whichever group is left, over the most layers of the first class for each number of the others.
    fn fits(&self, bench: &Bench, time: f64) -> bool {
        let sizes = self.sizes();
        let states: usize = sizes.iter().product();
        let groups = self.groups.len() - 1;
        let mut most = vec![None; states];
        most[0] = Some(0_usize);
        for rank in 0..bench.devices {
            let capacity = bench.capacity(time, bench.idle[rank]);
            let shares: Vec<Vec<Share>> = (0..=groups).map(|group| self.shares(group, capacity)).collect();
            let mut next = vec![None; states];
            let mut place = vec![0; sizes.len()];
            for &value in &most {
                if let Some(value) = value {
                    let of_last = rank - place[..groups].iter().sum::<usize>();
                    for (group, shares) in shares.iter().enumerate() {
                        let taken = if group < groups { place[group] } else { of_last };
                        if taken < self.groups[group].count {
                            self.take(shares, group, value, &place, &sizes, &mut next);
                        }
                    }
                }
                advance(&mut place, &sizes);
            }
            most = next;
        }
        most.last().copied().flatten().is_some_and(|number| number >= self.classes[0].count)
    }

    /// Adds the shares of a device to a state.
    fn take(
        &self,
        shares: &[Share],
        group: usize,
        value: usize,
        place: &[usize],
        sizes: &[usize],
        next: &mut [Option<usize>],
    ) {
        let groups = self.groups.len() - 1;
        for share in shares {
            let mut at = 0;
            let mut within = true;
            for (index, (&place, &size)) in place.iter().zip(sizes).enumerate().rev() {
                let taken = match index.checked_sub(groups) {
                    Some(class) => share.counts[class],
                    None => usize::from(index == group),
                };
                within &= place + taken < size;
                at = at * size + place + taken;
            }
            if within {
                next[at] = next[at].max(Some(value + share.first));
            }
        }
    }
}

/// How many of a size fit, of a number.
fn most(room: f64, each: f64, count: usize) -> usize {
    if each <= 0.0 {
        return count;
    }
    // Infinitely large ones do not.
    ((room.max(0.0) / each) as usize).min(count)
}

/// The next place, the first digit counting fastest.
fn advance(place: &mut [usize], sizes: &[usize]) {
    for (digit, &size) in place.iter_mut().zip(sizes) {
        *digit += 1;
        if *digit < size {
            return;
        }
        *digit = 0;
    }
}
