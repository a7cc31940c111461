//! Cards: what a device of a kind can do, from its maker's datasheet.

pub use adaptis_session::kind_of;

/// A kind of device.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Card and memory in lower case.
    pub kind: String,
    /// Memory.
    pub memory_bytes: u64,
    /// Dense matrix rate in 16 bits.
    pub flops_per_second: f64,
    /// Memory rate.
    pub memory_bytes_per_second: f64,
    /// Share of the matrix rate that large products reach in training.
    pub matrix_share: f64,
    /// Share of the matrix rate that fused attention reaches.
    pub attention_share: f64,
}

/// Kind, memory in GiB, dense bf16 (V100: fp16) TFLOP/s, memory GB/s, share in matrix products, share in attention.
///
/// Rates: NVIDIA's datasheets of the H100, H200, GH200, A100, L40S, L4, A10, V100 and RTX 4090. Shares: what Megatron-LM
/// (A100: 0.52 to 0.57 of peak, H100: 0.42 to 0.48, from its README's scaling tables) and FlashAttention 2 and 3
/// (A100: 0.5 forward, H100: 0.4 with version 2) report; V100 and the others by analogy, rounded.
const CARDS: [(&str, u64, f64, f64, f64, f64); 12] = [
    ("h200-141g", 141, 989.0, 4800.0, 0.46, 0.36),
    ("h100-80g", 80, 989.0, 3350.0, 0.46, 0.36),
    ("gh-96", 96, 989.0, 4000.0, 0.46, 0.36),
    ("a100-80g", 80, 312.0, 2039.0, 0.56, 0.48),
    ("a100-40g", 40, 312.0, 1555.0, 0.56, 0.48),
    ("l40s-48g", 48, 362.0, 864.0, 0.48, 0.40),
    ("l4-24g", 24, 121.0, 300.0, 0.45, 0.36),
    ("a10-24g", 24, 125.0, 600.0, 0.48, 0.38),
    ("rtx4090-24g", 24, 165.0, 1008.0, 0.60, 0.50),
    ("v100-32g", 32, 125.0, 900.0, 0.55, 0.25),
    ("v100-16g", 16, 125.0, 900.0, 0.55, 0.25),
    ("cpu", 16, 1.0, 40.0, 0.50, 0.40),
];

const GIB: u64 = 1 << 30;
/// Share of the memory rate that streaming kernels reach.
pub const MEMORY_SHARE: f64 = 0.8;

impl Card {
    /// The card of a kind from the table.
    pub fn known(kind: &str) -> Option<Card> {
        CARDS.iter().find(|row| row.0 == kind).map(|&(kind, gib, tera, giga, matrix_share, attention_share)| Card {
            kind: kind.to_owned(),
            memory_bytes: gib * GIB,
            flops_per_second: tera * 1e12,
            memory_bytes_per_second: giga * 1e9,
            matrix_share,
            attention_share,
        })
    }

    /// The kinds in the table.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        CARDS.iter().map(|row| row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_that_ranks_introduce_are_in_the_table() {
        for name in ["H100", "H200", "GH200", "A100", "L40S", "L4", "A10", "RTX 4090", "V100"] {
            let kinds: Vec<&str> = (1..200).filter_map(|gib| kind_of(name, gib << 30)).collect();
            assert!(!kinds.is_empty(), "{name}");
            assert!(kinds.iter().all(|kind| Card::known(kind).is_some()), "{kinds:?}");
        }
    }
}
