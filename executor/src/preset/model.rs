//! Models: the layers of the four presets with their sizes, from the models' published configurations.
//!
//! One microbatch is one sequence of 4,096 tokens in bf16. State is 18 bytes a parameter (bf16 weight, fp32 gradient,
//! fp32 master weight, two fp32 moments: mixed-precision Adam as in Megatron-LM); of it, 14 travel with a layer, since
//! gradients are zero at a boundary.

use crate::backend::cpu::LayerType;

/// Tokens of one microbatch.
pub const TOKENS: u64 = 4096;
const STATE_BYTES_PER_PARAMETER: u64 = 18;
const MOVED_BYTES_PER_PARAMETER: u64 = 14;
const ELEMENT_BYTES: u64 = 2;

/// A preset's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Gemma 2 2B: 26 blocks, a vocabulary of 256,000.
    Gemma,
    /// DeepSeek-V2-Lite: 27 blocks, all but the first with 64 experts, which stand sharded over 8 data-parallel peers.
    DeepSeek,
    /// Nemotron-H 4B: 52 layers, Mamba-2 and MLP in turn with four attention layers.
    Nemotron,
    /// Llama 3.2 3B: 28 blocks.
    Llama,
}

impl Preset {
    /// All, by the name the command takes.
    pub const NAMES: [(&'static str, Preset); 4] = [
        ("gemma", Preset::Gemma),
        ("deepseek", Preset::DeepSeek),
        ("nemotron", Preset::Nemotron),
        ("llama", Preset::Llama),
    ];

    /// By its name.
    pub fn named(name: &str) -> Option<Preset> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, preset)| *preset)
    }
}

/// A layer's sizes and work for one microbatch.
#[derive(Clone, Debug, PartialEq)]
pub struct PresetLayer {
    /// What the CPU backend trains in its place.
    pub layer_type: LayerType,
    /// Unique within the model.
    pub name: String,
    /// Cost class.
    pub signature: String,
    /// Parameters whose state lives on the device.
    pub parameters: u64,
    /// What crosses to the next layer.
    pub output_bytes: u64,
    /// Held from the start of F.
    pub activation_bytes: u64,
    /// Of it, held from I to W: inputs of the matrix products.
    pub weight_gradient_bytes: u64,
    /// Transient.
    pub workspace_bytes: u64,
    /// Work of F in matrix products; I and W take as much each.
    pub matrix_flops: f64,
    /// Work of F in attention scores; I takes 2.5 times as much (FlashAttention recomputes them), W none.
    pub attention_flops: f64,
    /// Memory traffic of F beside the products; I takes twice, W half as much.
    pub traffic_bytes: f64,
    /// Products run at this share of large ones (experts see few tokens each).
    pub product_efficiency: f64,
    /// Its input needs no gradient: tokens.
    pub first: bool,
}

impl PresetLayer {
    /// Weights alone, in bf16.
    pub fn parameter_bytes(&self) -> u64 {
        self.parameters * ELEMENT_BYTES
    }

    /// Weights, gradients and optimizer state.
    pub fn state_bytes(&self) -> u64 {
        self.parameters * STATE_BYTES_PER_PARAMETER
    }

    /// What travels.
    pub fn moved_bytes(&self) -> u64 {
        self.parameters * MOVED_BYTES_PER_PARAMETER
    }
}

/// Sizes of a transformer.
struct Sizes {
    width: u64,
    vocabulary: u64,
    query_heads: u64,
    key_heads: u64,
    head_width: u64,
    hidden: u64,
    /// 3 for a gated MLP, 2 for a plain one.
    hidden_matrices: u64,
}

impl Sizes {
    fn layer(&self, layer_type: LayerType, name: &str, index: usize, shape: String) -> PresetLayer {
        let output_bytes = TOKENS * self.width * ELEMENT_BYTES;
        PresetLayer {
            layer_type,
            name: format!("{name}{index}"),
            signature: format!("{name}/{shape}/bf16/b1xs{TOKENS}"),
            parameters: 0,
            output_bytes,
            activation_bytes: 0,
            weight_gradient_bytes: 0,
            workspace_bytes: 0,
            matrix_flops: 0.0,
            attention_flops: 0.0,
            // Norm and residual: read twice, written twice.
            traffic_bytes: 4.0 * output_bytes as f64,
            product_efficiency: 1.0,
            first: false,
        }
    }

    /// Token embedding: a gather; its backward a scatter.
    fn embedding(&self) -> PresetLayer {
        let shape = format!("{}x{}", self.vocabulary, self.width);
        let tokens = TOKENS * 8;
        PresetLayer {
            name: "embedding".into(),
            parameters: self.vocabulary * self.width,
            activation_bytes: tokens + TOKENS * self.width * ELEMENT_BYTES,
            weight_gradient_bytes: tokens + TOKENS * self.width * ELEMENT_BYTES,
            first: true,
            ..self.layer(LayerType::Embedding, "embedding", 0, shape)
        }
    }

    fn attention(&self, index: usize) -> PresetLayer {
        let queries = self.query_heads * self.head_width;
        let keys = self.key_heads * self.head_width;
        let parameters = self.width * (2 * queries + 2 * keys);
        let shape = format!("{}h{}k{}", self.width, self.query_heads, self.key_heads);
        // Held: input, normed input, queries, keys, values, output of the scores and their statistics.
        let held = TOKENS * ELEMENT_BYTES * (2 * self.width + 2 * queries + 2 * keys);
        PresetLayer {
            parameters,
            activation_bytes: held,
            weight_gradient_bytes: TOKENS * ELEMENT_BYTES * (self.width + 2 * queries + 2 * keys),
            matrix_flops: 2.0 * (TOKENS * parameters) as f64,
            // Two products of tokens x tokens x head width, causal: half of them.
            attention_flops: 2.0 * (TOKENS * TOKENS * queries) as f64,
            ..self.layer(LayerType::Attention, "attention", index, shape)
        }
    }

    fn mlp(&self, index: usize) -> PresetLayer {
        let parameters = self.hidden_matrices * self.width * self.hidden;
        let shape = format!("{}x{}", self.width, self.hidden);
        PresetLayer {
            parameters,
            activation_bytes: TOKENS * ELEMENT_BYTES * (2 * self.width + self.hidden_matrices * self.hidden),
            weight_gradient_bytes: TOKENS * ELEMENT_BYTES * (self.width + (self.hidden_matrices) * self.hidden),
            matrix_flops: 2.0 * (TOKENS * parameters) as f64,
            traffic_bytes: (TOKENS * ELEMENT_BYTES * (4 * self.width + 2 * self.hidden)) as f64,
            ..self.layer(LayerType::Mlp, "mlp", index, shape)
        }
    }

    /// `experts` of hidden width `hidden` each, `active` of them per token, `shared` always; state over `sharded` peers.
    fn moe(&self, index: usize, experts: u64, active: u64, shared: u64, hidden: u64, sharded: u64) -> PresetLayer {
        let one = 3 * self.width * hidden;
        let held = TOKENS * ELEMENT_BYTES * (2 * self.width + (active + shared) * (self.width + 3 * hidden));
        PresetLayer {
            parameters: one * (experts / sharded + shared) + self.width * experts,
            activation_bytes: held,
            weight_gradient_bytes: held - TOKENS * ELEMENT_BYTES * self.width,
            matrix_flops: 2.0 * (TOKENS * one * (active + shared)) as f64,
            // Dispatch and combine: each routed token is written and read once on both ways.
            traffic_bytes: (TOKENS * ELEMENT_BYTES * self.width * (4 + 4 * active)) as f64,
            product_efficiency: 0.55,
            ..self.layer(LayerType::Moe, "moe", index, format!("{}x{hidden}e{experts}t{active}", self.width))
        }
    }

    /// Mamba-2 with `heads` heads of width 64 and a state of 128 in 8 groups.
    fn state_space(&self, index: usize, heads: u64) -> PresetLayer {
        let inner = heads * 64;
        let parameters = self.width * (2 * inner + 2 * 8 * 128 + heads) + inner * self.width;
        PresetLayer {
            parameters,
            activation_bytes: TOKENS * ELEMENT_BYTES * (2 * self.width + 4 * inner + 2 * 8 * 128),
            weight_gradient_bytes: TOKENS * ELEMENT_BYTES * (self.width + 3 * inner + 2 * 8 * 128),
            matrix_flops: 2.0 * (TOKENS * parameters) as f64,
            // Chunked scan: about ten passes over the inner width, bound by memory.
            traffic_bytes: (TOKENS * ELEMENT_BYTES * (4 * self.width + 10 * inner)) as f64,
            product_efficiency: 0.9,
            ..self.layer(LayerType::StateSpace, "ssm", index, format!("{}x{inner}n128", self.width))
        }
    }

    /// Final norm, logits and loss.
    fn head(&self) -> PresetLayer {
        let shape = format!("{}x{}", self.width, self.vocabulary);
        let parameters = self.width * self.vocabulary;
        PresetLayer {
            name: "head".into(),
            parameters,
            output_bytes: 0,
            activation_bytes: TOKENS * ELEMENT_BYTES * (2 * self.width + self.vocabulary),
            weight_gradient_bytes: TOKENS * ELEMENT_BYTES * (self.width + self.vocabulary),
            workspace_bytes: TOKENS * 4 * self.vocabulary,
            matrix_flops: 2.0 * (TOKENS * parameters) as f64,
            traffic_bytes: (TOKENS * 10 * self.vocabulary) as f64,
            ..self.layer(LayerType::Head, "head", 0, shape)
        }
    }
}

fn blocks(sizes: &Sizes, count: usize, mut second: impl FnMut(usize) -> PresetLayer) -> Vec<PresetLayer> {
    let mut layers = vec![sizes.embedding()];
    for index in 0..count {
        layers.push(sizes.attention(index));
        layers.push(second(index));
    }
    layers.push(sizes.head());
    layers
}

/// The layers of a preset, in order.
pub fn layers(preset: Preset) -> Vec<PresetLayer> {
    match preset {
        // google/gemma-2-2b config.json; embedding and head, tied there, are two layers here.
        Preset::Gemma => {
            let sizes = Sizes {
                width: 2304,
                vocabulary: 256_000,
                query_heads: 8,
                key_heads: 4,
                head_width: 256,
                hidden: 9216,
                hidden_matrices: 3,
            };
            blocks(&sizes, 26, |index| sizes.mlp(index))
        }
        // deepseek-ai/DeepSeek-V2-Lite config.json; latent attention counted as 16 heads of 128 on 4 key heads.
        Preset::DeepSeek => {
            let sizes = Sizes {
                width: 2048,
                vocabulary: 102_400,
                query_heads: 16,
                key_heads: 4,
                head_width: 128,
                hidden: 10_944,
                hidden_matrices: 3,
            };
            blocks(&sizes, 27, |index| match index {
                0 => sizes.mlp(index),
                _ => sizes.moe(index, 64, 6, 2, 1408, 8),
            })
        }
        // nvidia/Nemotron-H-4B-Base-8K config.json: 52 layers, attention in four places.
        Preset::Nemotron => {
            let sizes = Sizes {
                width: 3072,
                vocabulary: 131_072,
                query_heads: 32,
                key_heads: 8,
                head_width: 128,
                hidden: 12_288,
                hidden_matrices: 2,
            };
            let mut layers = vec![sizes.embedding()];
            for pair in 0..26 {
                layers.push(match pair {
                    3 | 9 | 15 | 21 => sizes.attention(2 * pair),
                    _ => sizes.state_space(2 * pair, 112),
                });
                layers.push(sizes.mlp(2 * pair + 1));
            }
            layers.push(sizes.head());
            layers
        }
        // meta-llama/Llama-3.2-3B config.json; embedding and head, tied there, are two layers here.
        Preset::Llama => {
            let sizes = Sizes {
                width: 3072,
                vocabulary: 128_256,
                query_heads: 24,
                key_heads: 8,
                head_width: 128,
                hidden: 8192,
                hidden_matrices: 3,
            };
            blocks(&sizes, 28, |index| sizes.mlp(index))
        }
    }
}
