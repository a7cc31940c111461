//! What of a problem is no cost: devices with their memory, what layers hold, links. Measured in this job, else by earlier
//! ones, else taken for what is usual.

use super::figures::{Figure, LinkFigure, NotYet};
use super::source::Source;
use super::{Estimator, Memory, link, robust};
use crate::next_job::LayerMemory;
use adaptis_plan::{Device, Host, Link, Links, Pair};
use adaptis_proto::message::{CrowdedHost, DeviceCard};
use std::collections::{BTreeMap, BTreeSet};

/// Uncertainty of a link while none was measured.
const UNSEEN_LINK_SD: f64 = 0.7;
/// For a job whose devices never exchanged anything.
const UNSEEN_LINK: Link = Link { latency_ns: 0, bytes_per_second: 1e10, note: () };
/// Devices up to which every pair that exchanged nothing gets the link that earlier jobs measured; of more the default
/// stands for all: pairs grow with the square.
const EARLIER_LINK_DEVICES: usize = 128;
/// What links are compared by where the job's layers tell no sizes.
const UNKNOWN_BYTES: f64 = 1e6;
/// Slowdowns outside of it are not written.
const SLOWDOWN_RANGE: (f64, f64) = (1e-3, 1e3);

/// What a layer holds on a kind: measured on it, on another one, of another layer of the signature, or by earlier jobs, on
/// the kind or on another one.
pub(super) fn memory(estimator: &Estimator, kind: &str, layer: usize) -> Result<Memory, NotYet> {
    let measured = &estimator.memory;
    let signature = &estimator.job.layers[layer].signature;
    let same_signature = |at: usize| estimator.job.layers[at].signature == *signature;
    measured
        .get(&(kind.to_owned(), layer))
        .or_else(|| measured.iter().find(|((_, at), _)| *at == layer).map(|(_, memory)| memory))
        .or_else(|| {
            let of_kind = measured.iter().find(|((of, at), _)| of == kind && same_signature(*at));
            of_kind.or_else(|| measured.iter().find(|((_, at), _)| same_signature(*at))).map(|(_, memory)| memory)
        })
        .copied()
        .or_else(|| earlier_memory(estimator, kind, signature))
        .ok_or_else(|| NotYet::Memory { signature: signature.clone() })
}

fn earlier_memory(estimator: &Estimator, kind: &str, signature: &str) -> Option<Memory> {
    let kinds = &estimator.earlier.kinds;
    let own = kinds.get(kind).and_then(|of| of.memories.get(signature));
    let &LayerMemory { activation_bytes, weight_gradient_bytes, workspace_bytes } =
        own.or_else(|| kinds.values().find_map(|of| of.memories.get(signature)))?;
    let weight_gradient_bytes = weight_gradient_bytes.unwrap_or(activation_bytes);
    Some(Memory { activation_bytes, weight_gradient_bytes, workspace_bytes })
}

/// The devices of the problem, each with the logarithm of its slowdown.
pub(super) fn devices(estimator: &Estimator, slowdowns: &[(f64, f64)]) -> Vec<Device> {
    let reserved_bytes = |at: usize, card: &DeviceCard| {
        let earlier = || estimator.earlier.kinds.get(&card.kind)?.reserved_bytes;
        let own_bytes = estimator.reserved_bytes[at].or_else(earlier).unwrap_or(0).max(card.reserved_bytes);
        own_bytes.saturating_add(estimator.peaks[at].reserved_bytes())
    };
    let device = |(at, (card, slowdown)): (usize, (&DeviceCard, &(f64, f64)))| Device {
        name: card.name.clone(),
        kind: card.kind.clone(),
        memory_bytes: card.memory_bytes,
        slowdown: slowdown.0.exp().clamp(SLOWDOWN_RANGE.0, SLOWDOWN_RANGE.1),
        reserved_bytes: reserved_bytes(at, card),
        note: None,
    };
    estimator.job.devices.iter().zip(slowdowns).enumerate().map(device).collect()
}

/// The hosts whose cores devices share, as far as what was said of them makes sense.
pub(super) fn hosts(estimator: &Estimator) -> Vec<Host> {
    let mut named = BTreeSet::new();
    let host = |crowded: &CrowdedHost| {
        let own = crowded.devices.iter().filter_map(|device| estimator.job.devices.get(device.index()));
        let devices: Vec<String> =
            own.map(|card| card.name.clone()).filter(|name| named.insert(name.clone())).collect();
        Host { devices, at_once: crowded.at_once, note: None }
    };
    let is_sound = |crowded: &&CrowdedHost| crowded.at_once.is_finite() && crowded.at_once > 0.0;
    let hosts = estimator.crowded.iter().filter(is_sound).map(host);
    hosts.filter(|host| !host.devices.is_empty()).collect()
}

/// The links of the problem, how well each is known, and how well the default one is.
pub(super) fn links(estimator: &Estimator) -> (Links, Vec<LinkFigure>, f64) {
    let seen: Vec<((usize, usize), link::Fit)> =
        estimator.links.iter().filter_map(|(&pair, history)| Some((pair, history.fit()?))).collect();
    let middle = link::middle(&seen.iter().map(|(_, fit)| *fit).collect::<Vec<_>>());
    let measured = seen.iter().map(|&(pair, fit)| (pair, fit, Source::Measured));
    let known: Vec<((usize, usize), link::Fit, Source)> = measured.chain(earlier_links(estimator, &seen)).collect();
    let name = |at: usize| estimator.job.devices[at].name.clone();
    let pair = |((from, to), fit, _): &((usize, usize), link::Fit, Source)| Pair {
        from: name(*from),
        to: name(*to),
        latency_ns: fit.link.latency_ns,
        bytes_per_second: fit.link.bytes_per_second,
        note: None,
    };
    let figure = |&((from, to), fit, source): &((usize, usize), link::Fit, Source)| LinkFigure {
        from,
        to,
        figure: Figure { source, ln_sd: fit.ln_sd },
        separated: fit.separated,
    };
    let links = Links {
        default: middle.map_or(UNSEEN_LINK, |middle| middle.link),
        pairs: known.iter().map(pair).collect(),
        note: None,
    };
    (links, known.iter().map(figure).collect(), middle.map_or(UNSEEN_LINK_SD, |middle| middle.ln_sd))
}

/// Pairs that exchanged nothing yet, by what earlier jobs measured between their kinds; as much slower or faster as the
/// pairs are that did exchange something.
fn earlier_links(
    estimator: &Estimator,
    seen: &[((usize, usize), link::Fit)],
) -> Vec<((usize, usize), link::Fit, Source)> {
    let (known, devices) = (&estimator.earlier.links, &estimator.job.devices);
    if known.is_empty() || devices.len() > EARLIER_LINK_DEVICES {
        return Vec::new();
    }
    let is_seen: BTreeSet<(usize, usize)> = seen.iter().map(|(pair, _)| *pair).collect();
    let pairs = (0..devices.len()).flat_map(|from| (0..devices.len()).map(move |to| (from, to)));
    let unseen = pairs.filter(|pair| pair.0 != pair.1 && !is_seen.contains(pair));
    let mut network = Network::of(estimator, seen);
    let link = |(from, to): (usize, usize)| {
        let fit = earlier_link(estimator, (from, to))?;
        let (ln, scatter) = network.against_earlier(&devices[from].kind, &devices[to].kind);
        let fit = link::Fit { ln_sd: fit.ln_sd.hypot(scatter), ..fit.slower(ln.exp()) };
        Some(((from, to), fit, Source::EarlierJobs))
    };
    unseen.filter_map(link).collect()
}

fn earlier_link(estimator: &Estimator, (from, to): (usize, usize)) -> Option<link::Fit> {
    let devices = &estimator.job.devices;
    let of = estimator.earlier.links.get(&(devices[from].kind.clone(), devices[to].kind.clone()))?;
    Some(link::Fit { link: of.link, ln_sd: of.ln_sd, separated: of.separated })
}

/// How this network compares with that of earlier jobs, by the pairs that exchanged something: logarithms of how much
/// longer their transfers take.
struct Network<'a> {
    /// By the kinds of a pair, in either direction.
    between: BTreeMap<(&'a str, &'a str), Vec<f64>>,
    all: Vec<f64>,
}

impl<'a> Network<'a> {
    fn of(estimator: &'a Estimator, seen: &[((usize, usize), link::Fit)]) -> Self {
        let history = |pair: &(usize, usize)| estimator.links.get(pair);
        let changed = seen.iter().filter(|(pair, _)| history(pair).is_some_and(link::History::is_changed)).count();
        // A link that failed tells nothing of the others, unless most did.
        let is_common = 2 * changed > seen.len();
        let bytes = usual_bytes(estimator);
        let mut network = Self { between: BTreeMap::new(), all: Vec::new() };
        for (pair, fit) in seen {
            let Some(earlier) = earlier_link(estimator, *pair) else { continue };
            let unchanged = history(pair).and_then(link::History::unchanged).filter(|_| !is_common);
            let ln = (unchanged.unwrap_or(*fit).ns(bytes) / earlier.ns(bytes)).ln();
            if ln.is_finite() {
                let [from, to] = [pair.0, pair.1].map(|at| estimator.job.devices[at].kind.as_str());
                network.between.entry(either_way(from, to)).or_default().push(ln);
                network.all.push(ln);
            }
        }
        network
    }

    /// Their median and scatter: of pairs of these kinds if there are such, else of all; 0 while nothing was measured.
    fn against_earlier(&mut self, from: &'a str, to: &'a str) -> (f64, f64) {
        let values = self.between.get_mut(&either_way(from, to)).unwrap_or(&mut self.all);
        let Some(middle) = robust::median(values) else { return (0.0, 0.0) };
        (middle, robust::scale_around(values, middle).unwrap_or(0.0))
    }
}

fn either_way<'a>(from: &'a str, to: &'a str) -> (&'a str, &'a str) {
    (from.min(to), from.max(to))
}

/// What a transfer between two stages carries: the median of the layers' outputs.
fn usual_bytes(estimator: &Estimator) -> f64 {
    let outputs = estimator.job.layers.iter().map(|layer| layer.output_bytes as f64).filter(|bytes| *bytes > 0.0);
    robust::median(&mut outputs.collect::<Vec<_>>()).unwrap_or(UNKNOWN_BYTES)
}
