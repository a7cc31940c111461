//! A cluster as the user describes it: `2xh100-80g,2xa100-40g`, or a TOML file.
//!
//! ```toml
//! # Every [[device]] is one GPU. Devices of one node share its fast link.
//! [[device]]
//! name = "gpu0"            # default: gpu and its number
//! kind = "h100-80g"        # from the table, or a [[kind]] below
//! node = "left"            # default: the kind
//! slowdown = 1.0           # factor on its times
//!
//! [[kind]]
//! name = "newcard-64g"
//! memory_gib = 64
//! tflops = 500.0           # dense, 16 bits
//! memory_gb_per_second = 2000.0
//!
//! [links]
//! within_node_gb_per_second = 200.0
//! between_nodes_gb_per_second = 20.0
//! ```

use super::card::Card;
use adaptis_plan::{Link, Links, Pair};
use serde::Deserialize;
use std::ops::RangeInclusive;

/// Fewest and most devices of an emulated cluster: all of them share this machine's cores.
pub const DEVICES: RangeInclusive<usize> = 2..=8;
/// Within a node, one direction of NVLink as NCCL's point-to-point test reaches it on an A100 board.
const WITHIN_NODE_GB_PER_SECOND: f64 = 200.0;
/// Between nodes, one 200 Gb/s InfiniBand port.
const BETWEEN_NODES_GB_PER_SECOND: f64 = 22.0;
const WITHIN_NODE_LATENCY_NS: u64 = 10_000;
const BETWEEN_NODES_LATENCY_NS: u64 = 30_000;

/// Devices and what joins them.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// In order of their index.
    pub machines: Vec<Machine>,
    within_node: Link,
    between_nodes: Link,
}

/// A device of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Unique.
    pub name: String,
    /// What it can do.
    pub card: Card,
    /// Where it stands.
    pub node: String,
    /// Factor on its times.
    pub slowdown: f64,
}

/// What is wrong with a description of devices.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Too few or too many.
    #[error("{found} devices are given; the demo emulates {} to {} on one machine", DEVICES.start(), DEVICES.end())]
    Count {
        /// How many were described.
        found: usize,
    },
    /// No such card.
    #[error(
        "kind `{kind}` is unknown{}; there are {known}",
        similar.as_ref().map_or(String::new(), |similar| format!(", did you mean `{similar}`?"))
    )]
    Kind {
        /// What was given.
        kind: String,
        /// A known one that looks like it.
        similar: Option<String>,
        /// All known ones.
        known: String,
    },
    /// A part of the list is not `COUNTxKIND`.
    #[error("`{part}` is not COUNTxKIND, as in 2xh100-80g,2xa100-40g")]
    Part {
        /// What was given.
        part: String,
    },
    /// Not the TOML we expect.
    #[error("{path}: {problem}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Not a value that makes sense.
    #[error("{field} of `{name}` is {value}; it must be {right}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Of what.
        name: String,
        /// What was given.
        value: String,
        /// What would be right.
        right: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<FileDevice>,
    #[serde(default)]
    kind: Vec<FileKind>,
    #[serde(default)]
    links: FileLinks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDevice {
    name: Option<String>,
    kind: String,
    node: Option<String>,
    slowdown: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKind {
    name: String,
    memory_gib: u64,
    tflops: f64,
    memory_gb_per_second: f64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLinks {
    within_node_gb_per_second: Option<f64>,
    between_nodes_gb_per_second: Option<f64>,
}

/// A number that may stand in a file: wider than any hardware, narrow enough that all that follows from it is a time.
struct Measure {
    field: &'static str,
    range: RangeInclusive<f64>,
    right: &'static str,
}

const SLOWDOWN: Measure = Measure { field: "slowdown", range: 0.01..=1000.0, right: "a number from 0.01 to 1000" };
const TFLOPS: Measure = Measure { field: "tflops", range: 0.1..=1e6, right: "a number from 0.1 to 1000000" };
const MEMORY: Measure =
    Measure { field: "memory_gb_per_second", range: 1.0..=1e6, right: "a number from 1 to 1000000" };
const WITHIN: Measure =
    Measure { field: "within_node_gb_per_second", range: 0.01..=1e6, right: "a number from 0.01 to 1000000" };
const BETWEEN: Measure =
    Measure { field: "between_nodes_gb_per_second", range: 0.01..=1e6, right: "a number from 0.01 to 1000000" };

impl Measure {
    fn check(&self, name: &str, value: f64) -> Result<f64, ClusterError> {
        match self.range.contains(&value) {
            true => Ok(value),
            false => {
                let (name, value) = (name.to_owned(), format!("{value:?}"));
                Err(ClusterError::Value { field: self.field, name, value, right: self.right })
            }
        }
    }
}

fn card(kind: &str, own: &[Card]) -> Result<Card, ClusterError> {
    let known = || Card::kinds().map(|kind| -> &str { kind }).chain(own.iter().map(|card| card.kind.as_str()));
    own.iter().find(|card| card.kind == kind).cloned().or_else(|| Card::known(kind)).ok_or_else(|| ClusterError::Kind {
        kind: kind.to_owned(),
        similar: adaptis_plan::json::similar(kind, known()).map(str::to_owned),
        known: known().collect::<Vec<_>>().join(", "),
    })
}

impl Cluster {
    /// From `2xh100-80g,2xa100-40g`.
    pub fn parse(text: &str) -> Result<Cluster, ClusterError> {
        let mut machines = Vec::new();
        for part in text.split(',').map(str::trim) {
            let wrong = || ClusterError::Part { part: part.to_owned() };
            let (count, kind) = match part.split_once('x') {
                Some((count, kind)) if !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()) => {
                    (count.parse::<usize>().map_err(|_| wrong())?, kind)
                }
                _ if !part.is_empty() => (1, part),
                _ => return Err(wrong()),
            };
            if count == 0 || count > *DEVICES.end() {
                return Err(ClusterError::Count { found: count });
            }
            let card = card(kind, &[])?;
            for _ in 0..count {
                let name = format!("gpu{}", machines.len());
                machines.push(Machine { name, card: card.clone(), node: kind.to_owned(), slowdown: 1.0 });
            }
        }
        Self::of(machines, FileLinks::default())
    }

    /// From the text of a TOML file; `path` is for messages.
    pub fn from_toml(path: &str, text: &str) -> Result<Cluster, ClusterError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ClusterError::File { path: path.to_owned(), problem: error.to_string() })?;
        let own = file
            .kind
            .iter()
            .enumerate()
            .map(|(index, kind)| {
                if file.kind[..index].iter().any(|other| other.name == kind.name) {
                    let (name, value) = (kind.name.clone(), format!("given to two [[kind]]: `{}`", kind.name));
                    return Err(ClusterError::Value { field: "name", name, value, right: "unique" });
                }
                if kind.name.trim().is_empty() {
                    let (name, value) = (format!("[[kind]] number {}", index + 1), format!("`{}`", kind.name));
                    return Err(ClusterError::Value {
                        field: "name",
                        name,
                        value,
                        right: "a name, to be given as `kind`",
                    });
                }
                if kind.memory_gib == 0 || kind.memory_gib > 4096 {
                    let value = kind.memory_gib.to_string();
                    let (field, right) = ("memory_gib", "1 to 4096");
                    return Err(ClusterError::Value { field, name: kind.name.clone(), value, right });
                }
                Ok(Card {
                    kind: kind.name.clone(),
                    memory_bytes: kind.memory_gib << 30,
                    flops_per_second: TFLOPS.check(&kind.name, kind.tflops)? * 1e12,
                    memory_bytes_per_second: MEMORY.check(&kind.name, kind.memory_gb_per_second)? * 1e9,
                    matrix_share: 0.5,
                    attention_share: 0.4,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut machines: Vec<Machine> = Vec::new();
        for (index, device) in file.device.into_iter().enumerate() {
            let name = device.name.unwrap_or_else(|| format!("gpu{index}"));
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let is_name = (1..=32).contains(&name.len()) && name.chars().all(fits) && !name.starts_with(['.', '-']);
            if !is_name || machines.iter().any(|m| m.name == name) {
                let right = "unique, of 1 to 32 letters, digits, `-`, `_` or `.`, not beginning with `.` or `-`";
                return Err(ClusterError::Value { field: "name", value: format!("`{name}`"), name, right });
            }
            let slowdown = SLOWDOWN.check(&name, device.slowdown.unwrap_or(1.0))?;
            let card = card(&device.kind, &own)?;
            machines.push(Machine { node: device.node.unwrap_or(device.kind), name, card, slowdown });
        }
        Self::of(machines, file.links)
    }

    fn of(machines: Vec<Machine>, links: FileLinks) -> Result<Cluster, ClusterError> {
        if !DEVICES.contains(&machines.len()) {
            return Err(ClusterError::Count { found: machines.len() });
        }
        let link = |latency_ns, measure: Measure, given: Option<f64>, default: f64| {
            let rate = measure.check("links", given.unwrap_or(default))?;
            Ok(Link { latency_ns, bytes_per_second: rate * 1e9, note: () })
        };
        Ok(Cluster {
            machines,
            within_node: link(
                WITHIN_NODE_LATENCY_NS,
                WITHIN,
                links.within_node_gb_per_second,
                WITHIN_NODE_GB_PER_SECOND,
            )?,
            between_nodes: link(
                BETWEEN_NODES_LATENCY_NS,
                BETWEEN,
                links.between_nodes_gb_per_second,
                BETWEEN_NODES_GB_PER_SECOND,
            )?,
        })
    }

    /// Every directed pair, listed.
    pub(super) fn links(&self) -> Links {
        let mut pairs = Vec::new();
        for from in &self.machines {
            for to in self.machines.iter().filter(|to| to.name != from.name && to.node == from.node) {
                pairs.push(Pair {
                    from: from.name.clone(),
                    to: to.name.clone(),
                    latency_ns: self.within_node.latency_ns,
                    bytes_per_second: self.within_node.bytes_per_second,
                    note: None,
                });
            }
        }
        Links { default: self.between_nodes, pairs, note: None }
    }
}
