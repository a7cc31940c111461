//! What a layer holds for one microbatch between F and I, and between I and W.

use super::{attention, embedding, head, mlp, moe, state_space};

/// What a layer holds for one microbatch: after F what I needs, after I what W needs. To recompute, drop it and run F
/// on the same input again.
#[derive(Debug)]
pub struct Stash(pub(super) Held);

impl Stash {
    /// Bytes held now. The caller's copy of the layer's input is not among them.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Held::Embedding(phase) => phase.bytes(embedding::Forward::bytes, embedding::Weight::bytes),
            Held::Attention(phase) => phase.bytes(attention::Forward::bytes, attention::Weight::bytes),
            Held::Mlp(phase) => phase.bytes(mlp::Forward::bytes, mlp::Weight::bytes),
            Held::Moe(phase) => phase.bytes(moe::Forward::bytes, moe::Weight::bytes),
            Held::StateSpace(phase) => phase.bytes(state_space::Forward::bytes, state_space::Weight::bytes),
            Held::Head(phase) => phase.bytes(head::Forward::bytes, head::Weight::bytes),
        }
    }
}

/// One variant per layer type.
#[derive(Debug)]
pub(super) enum Held {
    Embedding(Phase<embedding::Forward, embedding::Weight>),
    Attention(Phase<attention::Forward, attention::Weight>),
    Mlp(Phase<mlp::Forward, mlp::Weight>),
    Moe(Phase<moe::Forward, moe::Weight>),
    StateSpace(Phase<state_space::Forward, state_space::Weight>),
    Head(Phase<head::Forward, head::Weight>),
}

/// How far a microbatch has come in a layer.
#[derive(Debug)]
pub(super) enum Phase<F, W> {
    /// F is done.
    Forward(F),
    /// I is done.
    Weight(W),
    /// I began and did not return.
    Broken,
}

impl<F, W> Phase<F, W> {
    /// Runs I: takes what F left and leaves what W needs.
    ///
    /// # Panics
    /// If I has run before.
    pub(super) fn advance(&mut self, input_gradient: impl FnOnce(F) -> (Vec<f32>, W)) -> Vec<f32> {
        let Phase::Forward(held) = std::mem::replace(self, Phase::Broken) else {
            panic!("the input gradient follows a forward, once");
        };
        let (gradient, weight) = input_gradient(held);
        *self = Phase::Weight(weight);
        gradient
    }

    /// What I left.
    ///
    /// # Panics
    /// If I has not run.
    pub(super) fn weight(&self) -> &W {
        let Phase::Weight(held) = self else {
            panic!("the weight gradient follows the input gradient");
        };
        held
    }

    fn bytes(&self, forward: impl FnOnce(&F) -> usize, weight: impl FnOnce(&W) -> usize) -> usize {
        match self {
            Phase::Forward(held) => forward(held),
            Phase::Weight(held) => weight(held),
            Phase::Broken => 0,
        }
    }
}
