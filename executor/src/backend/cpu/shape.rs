//! The sizes of a model and the types of its layers.

use super::error::LayerTypeError;
use std::{fmt, str::FromStr};

/// Sizes that all layers of a model share. All are positive and `heads` divides `width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Elements of a token's vector between two layers.
    pub width: usize,
    /// Heads of an attention layer; each has `width / heads` elements.
    pub heads: usize,
    /// Inner width of an MLP, and of each expert.
    pub hidden: usize,
    /// Experts of a mixture.
    pub experts: usize,
    /// Channels of a state-space layer's recurrence.
    pub state: usize,
    /// Tokens of a microbatch, at most.
    pub sequence: usize,
    /// Tokens that exist; 256 for bytes.
    pub vocabulary: usize,
}

impl Shape {
    /// Elements of one head.
    pub(super) fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// # Panics
    /// On a size of zero, or heads that do not divide the width.
    pub(super) fn assert_valid(&self) {
        let sizes = [
            ("width", self.width),
            ("heads", self.heads),
            ("hidden", self.hidden),
            ("experts", self.experts),
            ("state", self.state),
            ("sequence", self.sequence),
            ("vocabulary", self.vocabulary),
        ];
        for (name, size) in sizes {
            assert!(size > 0, "a shape's {name} is positive");
        }
        assert!(self.width.is_multiple_of(self.heads), "{} heads divide a width of {}", self.heads, self.width);
    }
}

/// What a layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerType {
    /// Bytes to vectors: a learned vector per byte plus one per position.
    Embedding,
    /// Causal multi-head self-attention.
    Attention,
    /// Two projections around SiLU.
    Mlp,
    /// A mixture of MLPs of which a router chooses one per token.
    Moe,
    /// A gated diagonal linear recurrence.
    StateSpace,
    /// Vectors to the loss.
    Head,
}

impl LayerType {
    /// Every type, in the order of declaration.
    pub const ALL: [LayerType; 6] = [
        LayerType::Embedding,
        LayerType::Attention,
        LayerType::Mlp,
        LayerType::Moe,
        LayerType::StateSpace,
        LayerType::Head,
    ];

    fn name(self) -> &'static str {
        match self {
            LayerType::Embedding => "embedding",
            LayerType::Attention => "attention",
            LayerType::Mlp => "mlp",
            LayerType::Moe => "moe",
            LayerType::StateSpace => "ssm",
            LayerType::Head => "head",
        }
    }
}

impl fmt::Display for LayerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for LayerType {
    type Err = LayerTypeError;

    fn from_str(name: &str) -> Result<Self, LayerTypeError> {
        LayerType::ALL
            .into_iter()
            .find(|layer_type| layer_type.name() == name)
            .ok_or_else(|| LayerTypeError { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for layer_type in LayerType::ALL {
            assert_eq!(layer_type.to_string().parse(), Ok(layer_type));
        }
        assert_eq!("Mlp".parse::<LayerType>(), Err(LayerTypeError { name: "Mlp".into() }));
    }
}
