//! Writing `adaptis.profiles/1`.

use super::shape::{File, KindRow, LayerRow, LinkRow, MemoryRow, OverheadRow, ProfileRow, RateRow, SourceRow};
use crate::profiles::account::{BadProfile, Collection, Source};
use crate::profiles::measurement::{FORMAT, MeasuredPhase};
use crate::profiles::sketch::Sketch;
use adaptis_plan::json;

/// Everything, as `adaptis.profiles/1`.
///
/// # Errors
/// Names the profile that can't be read.
pub fn write(collection: &Collection) -> Result<String, BadProfile> {
    let mut file = File {
        format: FORMAT.to_owned(),
        profiles: Vec::new(),
        sources: Vec::new(),
        links: Vec::new(),
        memories: Vec::new(),
        layers: Vec::new(),
        kinds: Vec::new(),
        rates: Vec::new(),
        overheads: Vec::new(),
    };
    for account in collection.accounts() {
        let Source { id, name, how, samples, first_seen, last_seen, merged } = account.source.clone();
        let source = Some(id.clone());
        for (key, distribution) in &account.works {
            let bad = |why| BadProfile { what: format!("{} on {}", key.signature, key.kind), why };
            let sketch = distribution.sketch().map_err(bad)?;
            file.profiles.push(ProfileRow {
                kind: key.kind.clone(),
                signature: key.signature.clone(),
                phase: MeasuredPhase::from(key.phase).word().to_owned(),
                seconds: seconds(sketch.median_ns()),
                count: distribution.count,
                low: Some(seconds(sketch.quantile_ns(0.05))),
                high: Some(seconds(sketch.quantile_ns(0.95))),
                software: key.software.clone(),
                source: source.clone(),
                first_seen: Some(distribution.first_seen),
                last_seen: Some(distribution.last_seen),
                sketch: Some(bins(&sketch)),
            });
        }
        for (key, distribution) in &account.transfers {
            let bad = |why| BadProfile { what: format!("{} to {}", key.sender, key.receiver), why };
            let sketch = distribution.sketch().map_err(bad)?;
            file.links.push(LinkRow {
                from: key.sender.clone(),
                to: key.receiver.clone(),
                bytes: key.bytes,
                seconds: seconds(sketch.median_ns()),
                count: distribution.count,
                source: source.clone(),
                first_seen: Some(distribution.first_seen),
                last_seen: Some(distribution.last_seen),
                sketch: Some(bins(&sketch)),
            });
        }
        file.memories.extend(account.memories.iter().map(|((signature, kind), memory)| MemoryRow {
            kind: kind.clone(),
            signature: signature.clone(),
            activation_bytes: memory.activation_bytes,
            weight_gradient_bytes: memory.weight_gradient_bytes,
            workspace_bytes: memory.workspace_bytes,
            source: source.clone(),
        }));
        file.layers.extend(account.sizes.iter().map(|(signature, sizes)| LayerRow {
            signature: signature.clone(),
            parameter_bytes: sizes.parameter_bytes,
            state_bytes: sizes.state_bytes,
            output_bytes: sizes.output_bytes,
            moved_bytes: sizes.moved_bytes,
            source: source.clone(),
        }));
        file.kinds.extend(account.kinds.iter().map(|(kind, memory)| KindRow {
            kind: kind.clone(),
            memory_bytes: memory.memory_bytes,
            reserved_bytes: memory.reserved_bytes,
            source: source.clone(),
        }));
        file.rates.extend(account.rates.iter().map(|(kind, rates)| RateRow {
            kind: kind.clone(),
            operations_per_second: rates.operations_per_s,
            bytes_per_second: rates.bytes_per_s,
            source: source.clone(),
        }));
        file.overheads.extend(account.overheads.iter().map(|(kind, overhead)| OverheadRow {
            kind: kind.clone(),
            instruction_seconds: overhead.instruction_ns.map(seconds),
            transfer_seconds: overhead.transfer_ns.map(seconds),
            source: source.clone(),
        }));
        file.sources.push(SourceRow { id, name, how, samples, first_seen, last_seen, merged });
    }
    Ok(json::write(&file))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn bins(sketch: &Sketch) -> Vec<[u64; 2]> {
    sketch.bins().map(|(ns, count)| [ns, count]).collect()
}
