//! The kind by which a rank introduces its GPU.

/// Words of a driver's name for a GPU, and the kinds that such a card is made as, by their memory in GiB.
type Cards = (&'static [&'static str], &'static [(u64, &'static str)]);

/// Earlier ones count.
const KINDS: [Cards; 11] = [
    (&["GH200"], &[(96, "gh-96")]),
    (&["H200"], &[(141, "h200-141g")]),
    (&["H100"], &[(80, "h100-80g")]),
    (&["A100"], &[(80, "a100-80g"), (40, "a100-40g")]),
    (&["L40S"], &[(48, "l40s-48g")]),
    (&["L4"], &[(24, "l4-24g")]),
    (&["A10"], &[(24, "a10-24g")]),
    (&["A10G"], &[(24, "a10-24g")]),
    (&["RTX", "4090"], &[(24, "rtx4090-24g")]),
    (&["V100"], &[(32, "v100-32g"), (16, "v100-16g")]),
    (&["V100S"], &[(32, "v100-32g"), (16, "v100-16g")]),
];
/// What a driver reports of a card's memory is at least this share of what its name says: error correction takes the rest.
const REPORTED_MEMORY_SHARE: f64 = 0.92;

/// The kind of a GPU by its driver's name for it and the memory that the driver reports: `NVIDIA A100-SXM4-40GB` is
/// `a100-40g`. None if it is not in the table.
pub fn kind_of(driver_name: &str, memory_bytes: u64) -> Option<&'static str> {
    let words: Vec<&str> = driver_name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let (_, kinds) = KINDS.iter().find(|(name, _)| words.windows(name.len()).any(|part| part == *name))?;
    kinds.iter().find_map(|(gib, kind)| {
        let share = memory_bytes as f64 / (gib << 30) as f64;
        (REPORTED_MEMORY_SHARE..=1.0).contains(&share).then_some(*kind)
    })
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
            assert_eq!(kind_of(name, mebibytes << 20), kind, "{name}");
        }
    }
}
