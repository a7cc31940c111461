//! What of a problem is no cost: devices with their memory, what layers hold, links. Measured in this job, else by earlier
//! ones, else taken for what is usual.

use super::figures::{Figure, LinkFigure, NotYet};
use super::source::Source;
use super::{Estimator, Memory, link};
use crate::next_job::LayerMemory;
use adaptis_plan::{Device, Link, Links, Pair};
use adaptis_proto::message::DeviceCard;

/// Uncertainty of a link while none was measured.
const UNSEEN_LINK_SD: f64 = 0.7;
/// For a job whose devices never exchanged anything.
const UNSEEN_LINK: Link = Link { latency_ns: 0, bytes_per_second: 1e10, note: () };
/// Devices up to which every pair that exchanged nothing gets the link that earlier jobs measured; of more the default
/// stands for all: pairs grow with the square.
const EARLIER_LINK_DEVICES: usize = 128;
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

/// The links of the problem, how well each is known, and how well the default one is.
pub(super) fn links(estimator: &Estimator) -> (Links, Vec<LinkFigure>, f64) {
    let seen: Vec<((usize, usize), link::Fit)> =
        estimator.links.iter().filter_map(|(&pair, history)| Some((pair, history.fit()?))).collect();
    let middle = link::middle(&seen.iter().map(|(_, fit)| *fit).collect::<Vec<_>>());
    let measured = seen.into_iter().map(|(pair, fit)| (pair, fit, Source::Measured));
    let known: Vec<((usize, usize), link::Fit, Source)> = measured.chain(earlier_links(estimator)).collect();
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

/// Pairs that exchanged nothing yet, by what earlier jobs measured between their kinds.
fn earlier_links(estimator: &Estimator) -> Vec<((usize, usize), link::Fit, Source)> {
    let (known, devices) = (&estimator.earlier.links, &estimator.job.devices);
    if known.is_empty() || devices.len() > EARLIER_LINK_DEVICES {
        return Vec::new();
    }
    let is_seen = |pair: &(usize, usize)| estimator.links.get(pair).is_some_and(|history| history.fit().is_some());
    let pairs = (0..devices.len()).flat_map(|from| (0..devices.len()).map(move |to| (from, to)));
    let unseen = pairs.filter(|pair| pair.0 != pair.1 && !is_seen(pair));
    let link = |(from, to): (usize, usize)| {
        let of = known.get(&(devices[from].kind.clone(), devices[to].kind.clone()))?;
        let fit = link::Fit { link: of.link, ln_sd: of.ln_sd, separated: of.separated };
        Some(((from, to), fit, Source::EarlierJobs))
    };
    unseen.filter_map(link).collect()
}
