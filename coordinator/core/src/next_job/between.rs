//! What lies between the works of layers: what instructions cost besides them, and the links.

use super::{Profiles, Remark, Request};
use crate::estimate::fit_sizes;
use crate::estimate::robust::median;
use adaptis_plan::{Link, Links, Pair};
use std::collections::{BTreeMap, BTreeSet};

/// What an instruction costs a device of a kind besides the work of its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overhead {
    /// Each instruction; none where none ran without a transfer: then it is in these.
    pub instruction_ns: Option<u64>,
    /// Each send and each receive, on its own side; none where there were none.
    pub transfer_ns: Option<u64>,
}

impl Overhead {
    /// That of the device in the middle; none where nobody told anything.
    pub fn middle(all: &[Overhead]) -> Option<Overhead> {
        let of = |part: fn(&Overhead) -> Option<u64>| {
            let mut told: Vec<f64> = all.iter().filter_map(part).map(|ns| ns as f64).collect();
            median(&mut told).map(|ns| ns.round() as u64)
        };
        let middle = Overhead { instruction_ns: of(|of| of.instruction_ns), transfer_ns: of(|of| of.transfer_ns) };
        (middle != Overhead::default()).then_some(middle)
    }

    /// What is known after a later word: both numbers of one source, since one was worked out with the other. A word that
    /// tells less takes the place of none that tells more.
    pub fn or_later(self, later: Overhead) -> Overhead {
        let told = |of: &Overhead| usize::from(of.instruction_ns.is_some()) + usize::from(of.transfer_ns.is_some());
        if told(&later) >= told(&self) { later } else { self }
    }
}

/// What an instruction and a transfer cost besides: of the device in the middle. One whose kind nobody measured is taken
/// to be as the others.
pub(super) fn overhead(request: &Request<'_>, profiles: &Profiles, remarks: &mut Vec<Remark>) -> Overhead {
    let of_kind = |kind: &String| profiles.overheads.get(kind).copied().unwrap_or_default();
    let kinds = || request.devices.iter().map(|wanted| &wanted.device.kind);
    let middle = Overhead::middle(&kinds().map(of_kind).collect::<Vec<_>>()).unwrap_or_default();
    let lacks = |kind: &&String| {
        let own = of_kind(kind);
        own.instruction_ns.is_none() && middle.instruction_ns.is_some()
            || own.transfer_ns.is_none() && middle.transfer_ns.is_some()
    };
    let guessed: BTreeSet<&String> = kinds().filter(lacks).collect();
    remarks.extend(guessed.into_iter().map(|kind| Remark::OverheadOfOtherKind { kind: kind.clone() }));
    middle
}

/// Every directed pair of devices with its link: given for its place, else measured between its kinds, less what the calls
/// of both ends take, which devices pay for; else assumed.
pub(super) fn links(request: &Request<'_>, profiles: &Profiles, crossing_ns: u64, remarks: &mut Vec<Remark>) -> Links {
    let mut by_kinds: BTreeMap<(String, String), Link> = BTreeMap::new();
    let mut pairs = Vec::new();
    for from in request.devices {
        for to in request.devices.iter().filter(|to| to.device.name != from.device.name) {
            let given = if from.node == to.node { request.within_node } else { request.between_nodes };
            let link = given.unwrap_or_else(|| {
                let kinds = (from.device.kind.clone(), to.device.kind.clone());
                *by_kinds.entry(kinds).or_insert_with_key(|kinds| {
                    let Some(link) = of_kinds(profiles, kinds, remarks) else {
                        let ((from, to), link) = (kinds.clone(), request.unseen_link);
                        remarks.push(Remark::LinkAssumed { from, to, link });
                        return link;
                    };
                    Link { latency_ns: link.latency_ns.saturating_sub(crossing_ns.saturating_mul(2)), ..link }
                })
            });
            pairs.push(Pair {
                from: from.device.name.clone(),
                to: to.device.name.clone(),
                latency_ns: link.latency_ns,
                bytes_per_second: link.bytes_per_second,
                note: None,
            });
        }
    }
    // What most pairs have need not be listed.
    let default = pairs.first().map_or(request.unseen_link, Pair::link);
    pairs.retain(|pair| pair.link() != default);
    Links { default, pairs, note: None }
}

fn of_kinds(profiles: &Profiles, kinds: &(String, String), remarks: &mut Vec<Remark>) -> Option<Link> {
    let (from, to) = kinds.clone();
    let measured = |kinds: &(String, String)| profiles.transfers.get(kinds).and_then(|sizes| fit_sizes(sizes));
    let back = (to.clone(), from.clone());
    let (fit, sizes) = match (measured(kinds), measured(&back)) {
        (Some(fit), _) => (fit, &profiles.transfers[kinds]),
        (None, Some(fit)) => {
            remarks.push(Remark::LinkOfOtherDirection { from: from.clone(), to: to.clone() });
            (fit, &profiles.transfers[&back])
        }
        (None, None) => return None,
    };
    let largest = sizes.iter().max_by_key(|size| size.count).map_or(0, |size| size.bytes);
    if !fit.1 {
        remarks.push(Remark::LinkOfOneSize { from, to, bytes: largest });
    }
    Some(fit.0)
}
