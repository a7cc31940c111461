//! What the types of a problem can't say: ranges, names, lengths, and sums that must fit.
//!
//! 1. Every index and name refers to something, every list has its length.
//! 2. No sum of times or bytes over a whole iteration, under any plan, exceeds `4 x` [`TOTAL_MAX`]: arithmetic in 64
//!    bits cannot overflow, signed or not.
//! 3. The constraints leave every layer a device. Whether a plan fits in memory is for the planner to find out.

use super::{Cost, Layer, Pair, Problem};
use crate::json::{FormatError, nearest};
use std::collections::{BTreeMap, BTreeSet};

/// Microbatches that a problem may have.
pub const MICROBATCHES_MAX: u32 = 1 << 20;
/// Layers that a problem may have.
pub const LAYERS_MAX: usize = 1 << 16;
/// Devices that a problem may have.
pub const DEVICES_MAX: usize = 1 << 16;
/// Limit in nanoseconds (36 years) on the work, the transfers and the fixed costs of one iteration, each, and in bytes
/// (an exbibyte) on what one iteration holds, if all of it were done and held on the worst device.
pub const TOTAL_MAX: u64 = 1 << 60;

type Checked = Result<(), FormatError>;

fn refuse<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError::value(path, problem))
}

impl Problem {
    /// Checks ranges, names, lengths and sums; [`Problem::read`] has done so.
    ///
    /// # Errors
    /// The path of the first value that makes no sense and what would be right.
    pub fn check(&self) -> Result<(), FormatError> {
        self.check_counts()?;
        self.check_layers()?;
        self.check_devices()?;
        self.check_costs()?;
        self.check_links()?;
        self.check_hosts()?;
        self.check_optimizer()?;
        self.check_pins()?;
        self.check_together()?;
        self.check_forbidden()?;
        self.check_time_sums()?;
        self.check_byte_sums()
    }

    fn check_counts(&self) -> Checked {
        if self.microbatches == 0 || self.microbatches > MICROBATCHES_MAX {
            return refuse("microbatches", format!("{} is not from 1 to {MICROBATCHES_MAX}", self.microbatches));
        }
        for (path, count, max) in
            [("layers", self.layers.len(), LAYERS_MAX), ("devices", self.devices.len(), DEVICES_MAX)]
        {
            if count == 0 {
                return refuse(path, "the list is empty, at least one is needed");
            }
            if count > max {
                return refuse(path, format!("{count} entries, at most {max} are possible"));
            }
        }
        within("boundary_ns", self.boundary_ns)?;
        within("stage_ns", self.stage_ns)?;
        within("crossing_ns", self.crossing_ns)
    }

    fn check_layers(&self) -> Checked {
        unique("layers", self.layers.iter().map(|layer| layer.name.as_str()))?;
        for (index, layer) in self.layers.iter().enumerate() {
            let Layer { parameter_bytes, state_bytes, output_bytes, moved_bytes, .. } = layer;
            within(format!("layers[{index}].parameter_bytes"), *parameter_bytes)?;
            within(format!("layers[{index}].state_bytes"), *state_bytes)?;
            within(format!("layers[{index}].output_bytes"), *output_bytes)?;
            within(format!("layers[{index}].moved_bytes"), moved_bytes.unwrap_or(0))?;
        }
        Ok(())
    }

    fn check_devices(&self) -> Checked {
        unique("devices", self.devices.iter().map(|device| device.name.as_str()))?;
        for (index, device) in self.devices.iter().enumerate() {
            positive(format!("devices[{index}].slowdown"), device.slowdown)?;
            within(format!("devices[{index}].reserved_bytes"), device.reserved_bytes)?;
            if !self.costs.contains_key(&device.kind) {
                let hint = hint(&device.kind, self.costs.keys());
                let problem = format!("kind \"{}\" of device \"{}\" has no costs{hint}", device.kind, device.name);
                return refuse(format!("devices[{index}].kind"), problem);
            }
        }
        Ok(())
    }

    fn check_hosts(&self) -> Checked {
        let mut host_of = BTreeMap::new();
        for (index, host) in self.hosts.iter().enumerate() {
            positive(format!("hosts[{index}].at_once"), host.at_once)?;
            if host.devices.is_empty() {
                return refuse(format!("hosts[{index}].devices"), "it is empty: a host has a device at least");
            }
            for (place, name) in host.devices.iter().enumerate() {
                let path = format!("hosts[{index}].devices[{place}]");
                if self.device_index(name).is_none() {
                    return self.unknown_device(path, name);
                }
                if let Some(before) = host_of.insert(name, index) {
                    return refuse(path, format!("device \"{name}\" is on hosts[{before}] already: it has one host"));
                }
            }
        }
        Ok(())
    }

    fn check_costs(&self) -> Checked {
        for (kind, costs) in &self.costs {
            self.one_per_layer(format!("costs.{kind}"), costs.len())?;
            for (index, cost) in costs.iter().enumerate() {
                check_cost(kind, index, cost)?;
            }
        }
        Ok(())
    }

    fn one_per_layer(&self, path: String, found: usize) -> Checked {
        match self.layers.len() {
            layers if layers == found => Ok(()),
            layers => refuse(path, format!("{found} entries for {layers} layers: one per layer is needed")),
        }
    }

    fn check_links(&self) -> Checked {
        check_link("links.default", self.links.default.latency_ns, self.links.default.bytes_per_second)?;
        let devices: BTreeSet<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
        let mut seen = BTreeSet::new();
        for (index, pair) in self.links.pairs.iter().enumerate() {
            let path = format!("links.pairs[{index}]");
            for (field, name) in [("from", &pair.from), ("to", &pair.to)] {
                if !devices.contains(name.as_str()) {
                    return self.unknown_device(format!("{path}.{field}"), name);
                }
            }
            if pair.from == pair.to {
                return refuse(path, format!("from and to are both \"{}\": a pair joins two devices", pair.from));
            }
            if !seen.insert((&pair.from, &pair.to)) {
                let problem = format!("from \"{}\" to \"{}\" is listed twice", pair.from, pair.to);
                return refuse(path, problem);
            }
            check_link(&path, pair.latency_ns, pair.bytes_per_second)?;
        }
        Ok(())
    }

    fn unknown_device<T>(&self, path: String, name: &str) -> Result<T, FormatError> {
        let hint = hint(name, self.devices.iter().map(|device| &device.name));
        refuse(path, format!("there is no device \"{name}\"{hint}"))
    }

    fn check_optimizer(&self) -> Checked {
        for (kind, times) in &self.optimizer_ns {
            let path = format!("optimizer_ns.{kind}");
            if !self.costs.contains_key(kind) {
                let hint = hint(kind, self.costs.keys());
                return refuse(path, format!("there is no kind \"{kind}\" among the costs{hint}"));
            }
            self.one_per_layer(path.clone(), times.len())?;
            for (index, time) in times.iter().enumerate() {
                within(format!("{path}[{index}]"), *time)?;
            }
        }
        Ok(())
    }

    fn check_layer_index(&self, path: String, layer: u32) -> Checked {
        match self.layers.len() {
            layers if (layer as usize) < layers => Ok(()),
            layers => refuse(path, format!("there is no layer {layer}, the last one is {}", layers - 1)),
        }
    }

    fn check_pins(&self) -> Checked {
        let mut device_of = BTreeMap::new();
        for (index, pin) in self.constraints.pinned.iter().enumerate() {
            let path = format!("constraints.pinned[{index}]");
            self.check_layer_index(format!("{path}.layer"), pin.layer)?;
            if self.device_index(&pin.device).is_none() {
                return self.unknown_device(format!("{path}.device"), &pin.device);
            }
            if self.constraints.forbidden.contains(&pin.device) {
                return refuse(
                    path,
                    format!("layer {} is pinned to \"{}\", a forbidden device", pin.layer, pin.device),
                );
            }
            let before = device_of.insert(pin.layer, &pin.device);
            if let Some(before) = before.filter(|before| **before != pin.device) {
                let problem = format!("layer {} is pinned to both \"{before}\" and \"{}\"", pin.layer, pin.device);
                return refuse(path, problem);
            }
        }
        Ok(())
    }

    /// Groups that share a layer are one group, and a group has at most one pinned device.
    fn check_together(&self) -> Checked {
        let mut leader: Vec<u32> = (0..).take(self.layers.len()).collect();
        for (index, group) in self.constraints.together.iter().enumerate() {
            for (place, layer) in group.iter().enumerate() {
                self.check_layer_index(format!("constraints.together[{index}][{place}]"), *layer)?;
                let (one, other) = (find(&mut leader, group[0]), find(&mut leader, *layer));
                leader[one as usize] = other;
            }
        }
        let mut pinned = BTreeMap::new();
        for pin in &self.constraints.pinned {
            let (layer, device) = pinned.entry(find(&mut leader, pin.layer)).or_insert((pin.layer, &pin.device));
            if **device != pin.device {
                let problem = format!(
                    "layers {layer} and {} must share a device, but are pinned to \"{device}\" and \"{}\"",
                    pin.layer, pin.device
                );
                return refuse("constraints.together", problem);
            }
        }
        Ok(())
    }

    fn check_forbidden(&self) -> Checked {
        for (index, name) in self.constraints.forbidden.iter().enumerate() {
            if self.device_index(name).is_none() {
                return self.unknown_device(format!("constraints.forbidden[{index}]"), name);
            }
        }
        if self.devices.iter().all(|device| self.constraints.forbidden.contains(&device.name)) {
            return refuse("constraints.forbidden", "every device is forbidden: at least one must be left");
        }
        Ok(())
    }

    fn check_time_sums(&self) -> Checked {
        // Sums are of floats: they can't overflow, and a rounding in the sixteenth digit does no harm to a limit.
        let microbatches = f64::from(self.microbatches);
        let mut slowest: BTreeMap<&str, f64> = BTreeMap::new();
        for device in &self.devices {
            let slowdown = slowest.entry(&device.kind).or_insert(0.0);
            *slowdown = slowdown.max(device.slowdown);
        }
        let (mut work_ns, mut optimizer_ns) = (0.0, 0.0);
        for layer in 0..self.layers.len() {
            let worst = |of: &dyn Fn(&str) -> f64| {
                slowest.iter().map(|(kind, slowdown)| of(kind) * slowdown).fold(0.0, f64::max)
            };
            work_ns += microbatches * worst(&|kind| layer_ns(&self.costs[kind][layer]));
            optimizer_ns += worst(&|kind| self.optimizer_ns.get(kind).map_or(0.0, |times| times[layer] as f64));
        }
        let instructions = microbatches * 3.0 * self.layers.len() as f64;
        let links = || std::iter::once(self.links.default).chain(self.links.pairs.iter().map(Pair::link));
        let slowest_link = links().map(|link| link.bytes_per_second).fold(f64::INFINITY, f64::min);
        let latency_ns = links().map(|link| link.latency_ns).max().unwrap_or(0) as f64;
        let output_bytes: f64 = self.layers.iter().map(|layer| layer.output_bytes as f64).sum();
        let transfers_ns =
            2.0 * microbatches * (output_bytes * 1e9 / slowest_link + latency_ns * self.layers.len() as f64);
        let each_ns = self.stage_ns as f64 + 2.0 * self.crossing_ns as f64;
        let fixed_ns = instructions * each_ns + self.boundary_ns as f64 + optimizer_ns;
        total("costs", "the work of an iteration", work_ns, "ns")?;
        total("links", "the transfers of an iteration", transfers_ns, "ns")?;
        for (index, host) in self.hosts.iter().enumerate() {
            let slower = (host.devices.len() as f64 / host.at_once).max(1.0);
            let what = format!("the work of an iteration, {slower:.1e} times as long with all of its devices at work,");
            let shared_ns = slower * (work_ns + instructions * each_ns);
            total(&format!("hosts[{index}].at_once"), &what, shared_ns, "ns")?;
        }
        total("stage_ns, crossing_ns, boundary_ns and optimizer_ns", "the fixed costs of an iteration", fixed_ns, "ns")
    }

    fn check_byte_sums(&self) -> Checked {
        let microbatches = f64::from(self.microbatches);
        let state: f64 = self.layers.iter().map(|layer| layer.state_bytes as f64 + layer.moved() as f64).sum();
        let reserved = self.devices.iter().map(|device| device.reserved_bytes).max().unwrap_or(0) as f64;
        total("layers", "state and reserved bytes together", state + reserved, "bytes")?;
        let output: f64 = self.layers.iter().map(|layer| layer.output_bytes as f64).sum();
        // Two receive buffers and a recomputed layer's kept input.
        total("layers", "outputs of all microbatches", 3.0 * microbatches * output, "bytes")?;
        for (kind, costs) in &self.costs {
            let held: f64 = costs
                .iter()
                .map(|cost| microbatches * cost.activation_bytes as f64 + cost.workspace_bytes as f64)
                .sum();
            total(&format!("costs.{kind}"), "activations of all microbatches", held, "bytes")?;
        }
        Ok(())
    }
}

fn layer_ns(cost: &Cost) -> f64 {
    // F twice: once more if it is recomputed.
    2.0 * cost.forward_ns as f64 + cost.input_gradient_ns as f64 + cost.weight_gradient_ns as f64 + cost.split_ns as f64
}

fn check_cost(kind: &str, index: usize, cost: &Cost) -> Checked {
    let path = |field: &str| format!("costs.{kind}[{index}].{field}");
    for (field, value) in [
        ("forward_ns", cost.forward_ns),
        ("input_gradient_ns", cost.input_gradient_ns),
        ("weight_gradient_ns", cost.weight_gradient_ns),
        ("split_ns", cost.split_ns),
        ("activation_bytes", cost.activation_bytes),
        ("workspace_bytes", cost.workspace_bytes),
    ] {
        if value > TOTAL_MAX {
            return within(path(field), value);
        }
    }
    if cost.weight_gradient_bytes > cost.activation_bytes {
        let problem = format!(
            "{} is more than activation_bytes, {}, of which it is a part",
            cost.weight_gradient_bytes, cost.activation_bytes
        );
        return refuse(path("weight_gradient_bytes"), problem);
    }
    Ok(())
}

fn check_link(path: &str, latency_ns: u64, bytes_per_second: f64) -> Checked {
    within(format!("{path}.latency_ns"), latency_ns)?;
    positive(format!("{path}.bytes_per_second"), bytes_per_second)
}

fn within(path: impl Into<String>, value: u64) -> Checked {
    match value {
        0..=TOTAL_MAX => Ok(()),
        _ => refuse(path, format!("{value} is more than {TOTAL_MAX}, the largest possible one")),
    }
}

fn positive(path: String, value: f64) -> Checked {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => refuse(path, format!("{value} is not a positive number")),
    }
}

fn total(path: &str, what: &str, sum: f64, unit: &str) -> Checked {
    match sum <= TOTAL_MAX as f64 {
        true => Ok(()),
        false => refuse(path, format!("{what} may come to {sum:.1e} {unit}, more than {TOTAL_MAX}")),
    }
}

fn unique<'a>(path: &str, names: impl Iterator<Item = &'a str>) -> Checked {
    let mut seen = BTreeMap::new();
    for (index, name) in names.enumerate() {
        if name.is_empty() {
            return refuse(format!("{path}[{index}].name"), "the name is empty");
        }
        if name.contains(char::is_control) {
            let problem = format!("{name:?} holds a control character: names are shown on terminals");
            return refuse(format!("{path}[{index}].name"), problem);
        }
        if let Some(first) = seen.insert(name, index) {
            let problem = format!("\"{name}\" is also the name of {path}[{first}]: names are unique");
            return refuse(format!("{path}[{index}].name"), problem);
        }
    }
    Ok(())
}

fn hint<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    match nearest(name, known.map(String::as_str)) {
        Some(nearest) => format!("; the nearest known one is \"{nearest}\""),
        None => String::new(),
    }
}

/// Leader of a layer's group, with the way to it halved.
fn find(leader: &mut [u32], mut layer: u32) -> u32 {
    while leader[layer as usize] != layer {
        let above = leader[layer as usize];
        leader[layer as usize] = leader[above as usize];
        layer = above;
    }
    layer
}
