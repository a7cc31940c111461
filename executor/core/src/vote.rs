//! The vote: what all ranks conclude from the all-gather before the optimizer.
//!
//! Every rank judges the same votes by the same function, so all come to the same verdict without another message.
//!
//! 1. Apply only if all voters stand at one generation, step and epoch, none failed, every number is finite and every
//!    layer was voted for exactly once (WholeState, OneEpochPerStep).
//! 2. A vote that fails is not a "no": it stops.
//! 3. Switch only if all are armed with one epoch and one digest, and all have rotated.
//! 4. The norm adds per-layer squares in layer order: no bit of it depends on the placement.
//!
//! Left out on purpose: gathering the votes, and what a rank does after the verdict ([`crate::gate`]).

use adaptis_proto::message::{Failure, Vote};
use adaptis_proto::{DeviceIndex, Digest, Epoch, Generation};

/// What the ranks of a job have agreed on beforehand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Layers of the model.
    pub layers: usize,
    /// Gradients are scaled down to this global norm if theirs is larger.
    pub max_norm: f64,
    /// From the last rank's readiness to the optimizer.
    pub boundary_ns: u64,
}

/// What to do with an iteration.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Run the optimizer.
    Apply(Apply),
    /// Stop without applying.
    Stop(Failure),
}

/// How to run the optimizer and what comes after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apply {
    /// Factor on all gradients.
    pub scale: f64,
    /// Global gradient norm before it.
    pub norm: f64,
    /// Mean loss of the iteration; none if no voter holds the last layer's loss.
    pub loss: Option<f32>,
    /// What comes after.
    pub next: Next,
    /// When the optimizer may begin: the last rank's readiness plus the boundary.
    pub apply_at_ns: u64,
    /// When the next iteration begins: after the slowest rank's optimizer.
    pub start_ns: u64,
}

/// What comes after the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next iteration under the same plan.
    Stay,
    /// Another plan.
    Switch {
        /// Its number.
        epoch: Epoch,
        /// Digest of its text.
        digest: Digest,
    },
    /// The end of this generation.
    Drain(Generation),
}

/// The verdict on the votes of all ranks, in order of device index.
///
/// # Panics
/// Without a vote: a generation has members.
pub fn judge(votes: &[Vote], rules: &Rules) -> Verdict {
    assert!(!votes.is_empty(), "a generation has members");
    if let Some(peer) = votes.iter().position(|vote| vote.failure.is_some()) {
        return Verdict::Stop(Failure::PeerFailed { peer: peer.into() });
    }
    let dissenters = dissenters(votes);
    if !dissenters.is_empty() {
        return Verdict::Stop(Failure::VoteUnequal { dissenters });
    }
    let squares = match squares_in_layer_order(votes, rules.layers) {
        Ok(squares) => squares,
        Err(dissenters) => return Verdict::Stop(Failure::VoteUnequal { dissenters }),
    };
    let norm = squares.iter().sum::<f64>().sqrt();
    let loss = votes.iter().find_map(|vote| vote.loss);
    if !norm.is_finite() || loss.is_some_and(|loss| !loss.is_finite()) {
        return Verdict::Stop(Failure::NotFinite);
    }
    let apply_at_ns = largest(votes, |vote| vote.ready_ns).saturating_add(rules.boundary_ns);
    Verdict::Apply(Apply {
        scale: if norm > rules.max_norm { rules.max_norm / norm } else { 1.0 },
        norm,
        loss,
        next: next(votes),
        apply_at_ns,
        start_ns: apply_at_ns.saturating_add(largest(votes, |vote| vote.apply_ns)),
    })
}

fn largest(votes: &[Vote], of: impl Fn(&Vote) -> u64) -> u64 {
    votes.iter().map(of).max().unwrap_or(0)
}

/// Those who stand elsewhere than most; of two equal camps, the one without the lowest device.
fn dissenters(votes: &[Vote]) -> Vec<DeviceIndex> {
    let at = |vote: &Vote| votes.iter().filter(|other| other.place == vote.place).count();
    // `max_by_key` keeps the last of equals: reversed, the lowest device's camp.
    let most = votes.iter().rev().max_by_key(|vote| at(vote)).map(|vote| vote.place);
    votes.iter().enumerate().filter(|(_, vote)| Some(vote.place) != most).map(|(device, _)| device.into()).collect()
}

fn squares_in_layer_order(votes: &[Vote], layers: usize) -> Result<Vec<f64>, Vec<DeviceIndex>> {
    let mut of: Vec<Option<(usize, f64)>> = vec![None; layers];
    let mut wrong = Vec::new();
    for (device, vote) in votes.iter().enumerate() {
        for &(layer, square) in &vote.squares {
            match of.get_mut(layer.index()) {
                Some(slot @ None) => *slot = Some((device, square)),
                Some(Some((other, _))) => wrong.extend([*other, device]),
                None => wrong.push(device),
            }
        }
    }
    wrong.sort_unstable();
    wrong.dedup();
    if wrong.is_empty() && of.iter().any(Option::is_none) {
        // Nobody voted for some layer, so nobody can be singled out.
        wrong = (0..votes.len()).collect();
    }
    if wrong.is_empty() {
        Ok(of.into_iter().flatten().map(|(_, square)| square).collect())
    } else {
        Err(wrong.into_iter().map(DeviceIndex::from).collect())
    }
}

fn next(votes: &[Vote]) -> Next {
    if let Some(generation) = votes.iter().filter_map(|vote| vote.drain).max() {
        return Next::Drain(generation);
    }
    match votes[0].armed {
        Some((epoch, digest)) if votes.iter().all(|vote| vote.armed == votes[0].armed && vote.rotated) => {
            Next::Switch { epoch, digest }
        }
        _ => Next::Stay,
    }
}

#[cfg(test)]
mod tests;
