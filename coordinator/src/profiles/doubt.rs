//! Whether what a file tells fits to what is known already: a file of another model, or of another card than its name says,
//! differs from what others predict for it by more than anything explains.
//!
//! A group is all of one kind and type of layer. It is doubted if nearly all of it lies outside of the 90% intervals, to one
//! side, and far. A doubt is told; it refuses nothing, since what is known may be what is wrong.

use super::account::{Account, BadProfile, Collection};
use super::evidence::{evidence, keep_comparable, measurements};
use super::measurement::{Cell, Measurement};
use adaptis_coordinator_core::predict::{Predictor, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Shorter works are launches, which nobody predicts.
const SECONDS_MIN: f64 = 50e-6;
/// Measurements that make a group.
const GROUP_MIN: usize = 3;
/// Share of a group that lies outside.
const SHARE_MIN: f64 = 0.8;
/// How far off the middle of a group is.
const FACTOR_MIN: f64 = 1.5;
/// The same of layers that nobody ran: what is predicted from other layers alone tells a wrong unit, and no more.
const FACTOR_ROUGH_MIN: f64 = 1000.0;

/// A group that does not fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Doubt {
    /// Kind of device.
    pub kind: String,
    /// Type of layer.
    pub layer_type: String,
    /// What was measured over what was predicted, in the middle.
    pub factor: f64,
    /// Measurements outside of their intervals on that side.
    pub outside: usize,
    /// Measurements that were predicted.
    pub of: usize,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Doubt { kind, layer_type, factor, outside, of } = self;
        let factor = if *factor < 0.01 { format!("{factor:.1e}") } else { format!("{factor:.2}") };
        write!(
            f,
            "{layer_type} on {kind}: {factor} times what the other profiles predict, {outside} of {of} outside of their \
             90% intervals"
        )
    }
}

/// What of a new account does not fit to the others.
///
/// # Errors
/// Names the profile that can't be read.
pub fn doubts(known: &Collection, new: &Account) -> Result<Vec<Doubt>, BadProfile> {
    let real = |accounts: &mut dyn Iterator<Item = &Account>| {
        let mut collection = Collection::default();
        accounts.cloned().for_each(|account| collection.take(account));
        keep_comparable(&mut collection, None);
        evidence(&collection).map(|(profiles, _)| measurements(&profiles))
    };
    let others = |of: &&Account| of.source.origin() != new.source.origin();
    let known = real(&mut known.accounts().filter(others))?;
    let new: Vec<Measurement> = real(&mut std::iter::once(new))?;
    // On a kind on which nothing ran, all is predicted too roughly to doubt anything by it.
    let kinds: BTreeSet<&str> = known.iter().map(|known| known.cell.kind.as_str()).collect();
    let signatures: BTreeSet<&str> = known.iter().map(|known| known.cell.signature.as_str()).collect();
    let is_rough = |cell: &Cell| !signatures.contains(cell.signature.as_str());
    let is_worth =
        |of: &Measurement| kinds.contains(of.cell.kind.as_str()) && (of.seconds >= SECONDS_MIN || is_rough(&of.cell));
    let new: Vec<Measurement> = new.into_iter().filter(is_worth).collect();
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<Cell> = new.iter().map(|of| of.cell.clone()).collect();
    let predictor = Predictor::fit(&known, &asked);
    // By kind and type of layer: the factor, and the side on which it lies.
    let mut groups: BTreeMap<(&str, &str), Vec<(f64, i32)>> = BTreeMap::new();
    for of in &new {
        let Ok(predicted) = predictor.predict(&of.cell) else { continue };
        let is_rough = is_rough(&of.cell) || predicted.source == Source::OtherLayers;
        if matches!(predicted.source, Source::Launch | Source::UnknownKind) || predicted.seconds < SECONDS_MIN {
            continue;
        }
        let factor = of.seconds / predicted.seconds;
        let is_far = factor.ln().abs() >= if is_rough { FACTOR_ROUGH_MIN } else { FACTOR_MIN }.ln();
        let side = i32::from(of.seconds > predicted.high) - i32::from(of.seconds < predicted.low);
        if is_rough && !is_far {
            continue;
        }
        let side = if is_far { side } else { 0 };
        let layer_type = of.cell.signature.split('/').next().unwrap_or_default();
        groups.entry((&of.cell.kind, layer_type)).or_default().push((factor, side));
    }
    let doubt = |((kind, layer_type), mut found): ((&str, &str), Vec<(f64, i32)>)| {
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (of, factor) = (found.len(), found[found.len() / 2].0);
        let side = if factor > 1.0 { 1 } else { -1 };
        let outside = found.iter().filter(|(_, on)| *on == side).count();
        let is_doubted = of >= GROUP_MIN && outside as f64 >= SHARE_MIN * of as f64;
        is_doubted.then(|| Doubt { kind: kind.to_owned(), layer_type: layer_type.to_owned(), factor, outside, of })
    };
    Ok(groups.into_iter().filter_map(doubt).collect())
}
