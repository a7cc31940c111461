//! Cards: what a device of a kind can do, from its maker's datasheet.

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

/// Words of a driver's name for a GPU, the card's own last, and the card in our kinds. Earlier ones count.
const NAMES: [(&[&str], &str); 11] = [
    (&["GH200"], "gh"),
    (&["H200"], "h200"),
    (&["H100"], "h100"),
    (&["A100"], "a100"),
    (&["L40S"], "l40s"),
    (&["L4"], "l4"),
    (&["A10"], "a10"),
    (&["A10G"], "a10"),
    (&["RTX", "4090"], "rtx4090"),
    (&["V100"], "v100"),
    (&["V100S"], "v100"),
];
/// What a driver reports of a card's memory is at least this share of what its name says: error correction takes the rest.
const REPORTED_MEMORY_SHARE: f64 = 0.92;

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

    /// The kind of a GPU by its driver's name for it and the memory that the driver reports: `NVIDIA A100-SXM4-40GB` is
    /// `a100-40g`. None if it is not in the table.
    pub fn kind_of(driver_name: &str, memory_bytes: u64) -> Option<&'static str> {
        let words: Vec<&str> = driver_name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let (_, card) = NAMES.iter().find(|(name, _)| words.windows(name.len()).any(|part| part == *name))?;
        CARDS.iter().find_map(|row| {
            let (of, _) = row.0.rsplit_once('-')?;
            let share = memory_bytes as f64 / (row.1 * GIB) as f64;
            (of == *card && (REPORTED_MEMORY_SHARE..=1.0).contains(&share)).then_some(row.0)
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
    fn kinds_by_what_drivers_say() {
        for (name, mebibytes, kind) in [
            ("NVIDIA H100 80GB HBM3", 81_559, Some("h100-80g")),
            ("NVIDIA H100 PCIe", 81_559, Some("h100-80g")),
            ("NVIDIA H200", 143_771, Some("h200-141g")),
            ("NVIDIA GH200 480GB", 97_871, Some("gh-96")),
            ("NVIDIA A100-SXM4-40GB", 40_960, Some("a100-40g")),
            ("NVIDIA A100 80GB PCIe", 81_920, Some("a100-80g")),
            ("NVIDIA L40S", 46_068, Some("l40s-48g")),
            ("NVIDIA L4", 23_034, Some("l4-24g")),
            ("NVIDIA A10", 23_028, Some("a10-24g")),
            ("NVIDIA A10G", 23_028, Some("a10-24g")),
            ("NVIDIA GeForce RTX 4090", 24_564, Some("rtx4090-24g")),
            ("Tesla V100-SXM2-16GB", 16_160, Some("v100-16g")),
            ("Tesla V100S-PCIE-32GB", 32_510, Some("v100-32g")),
            // Half of a card, and cards that the table lacks.
            ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19_968, None),
            ("NVIDIA L40", 46_068, None),
            ("NVIDIA GeForce RTX 3090", 24_576, None),
            ("", 0, None),
        ] {
            assert_eq!(Card::kind_of(name, mebibytes << 20), kind, "{name}");
        }
    }
}
