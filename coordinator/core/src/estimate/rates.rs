//! How much longer a kind takes than another one by what both did in their agents' calibrations: the last prior before
//! none.
//!
//! Layers that compute take time as a matrix product does, look-ups, norms and the optimizer as a copy does, and what
//! nobody told apart something between the two. Hardly any layer runs at the rate of a large product, and on newer cards
//! less so: the intervals are as wide as that makes them.
//!
//! On the published profiles of Sailor (three models on four kinds of GPU), with the rates of datasheets for want of a
//! calibration, the root mean square of the logarithm of what such a ratio misses is 0.8 for layers that compute, where
//! taking the kinds to be equal misses 1.7; 0.6 instead of 0.9 for look-ups; 0.05 instead of 0.5 for the optimizer.

use adaptis_proto::rates::Rates;

/// What the ratio of products misses of layers that compute: standard deviation of the logarithm.
const COMPUTING_SD: f64 = 0.8;
/// What the ratio of copies misses of work that waits for memory.
const COPYING_SD: f64 = 0.6;
/// What the other of the two rates misses besides, where only that one is known of both kinds.
const OTHER_RATE_SD: f64 = 0.5;
/// Types of layers that compute, as far as they are known.
const COMPUTING: [&str; 9] =
    ["attention", "mlp", "moe", "head", "block", "transformer", "decoder", "encoder", "linear"];
/// Types that read and write.
const COPYING: [&str; 2] = ["embed", "norm"];

/// What a layer's phase waits for.
enum Bound {
    Computing,
    Copying,
    Unknown,
}

fn bound(layer_type: &str, is_optimizer: bool) -> Bound {
    let is_of = |types: &[&str]| types.iter().any(|name| layer_type.to_ascii_lowercase().contains(name));
    if is_optimizer || is_of(&COPYING) {
        Bound::Copying
    } else if is_of(&COMPUTING) {
        Bound::Computing
    } else {
        Bound::Unknown
    }
}

/// How many devices act as one of a kind: the number before the `x` of `4xa100-40g`.
fn group(kind: &str) -> u64 {
    let count = kind.split_once('x').and_then(|(count, _)| count.parse().ok());
    count.unwrap_or(1)
}

/// The logarithm of how much longer `here` takes than `there`, each by its kind and rates, and its standard deviation.
/// None where no rate is known of both, or where they are groups of different sizes: what a group shares is in no
/// calibration.
pub(crate) fn ratio(
    (here_kind, here): (&str, &Rates),
    (there_kind, there): (&str, &Rates),
    layer_type: &str,
    is_optimizer: bool,
) -> Option<(f64, f64)> {
    if group(here_kind) != group(there_kind) {
        return None;
    }
    let ln = |here: Option<u64>, there: Option<u64>| Some((there? as f64 / here? as f64).ln());
    let products = ln(here.operations_per_s, there.operations_per_s);
    let copies = ln(here.bytes_per_s, there.bytes_per_s);
    let own = |own: Option<f64>, other: Option<f64>, sd: f64| {
        own.map(|ln| (ln, sd)).or(other.map(|ln| (ln, sd.hypot(OTHER_RATE_SD))))
    };
    match bound(layer_type, is_optimizer) {
        Bound::Computing => own(products, copies, COMPUTING_SD),
        Bound::Copying => own(copies, products, COPYING_SD),
        Bound::Unknown => match (products, copies) {
            (Some(products), Some(copies)) => {
                Some(((products + copies) / 2.0, COMPUTING_SD.hypot((products - copies) / 2.0)))
            }
            (one, other) => own(one, other, COMPUTING_SD.hypot(OTHER_RATE_SD)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_for_what_computes_and_copies_for_what_reads() {
        let of = |operations: u64, bytes: u64| Rates { operations_per_s: Some(operations), bytes_per_s: Some(bytes) };
        let (fast, slow) = (of(800, 90), of(100, 30));
        let found = |layer_type: &str, is_optimizer: bool| {
            let (ln, sd) = ratio(("l40s-48g", &slow), ("h100-80g", &fast), layer_type, is_optimizer).unwrap();
            (ln.exp().round() as u64, sd)
        };
        assert_eq!(found("attention", false), (8, COMPUTING_SD));
        assert_eq!(found("lm_head", false), (8, COMPUTING_SD));
        assert_eq!(found("embedding", false), (3, COPYING_SD));
        assert_eq!(found("attention", true), (3, COPYING_SD), "the optimizer reads and writes");
        let (between, sd) = found("mamba", false);
        assert!((4..=6).contains(&between) && sd > COMPUTING_SD, "{between} {sd}");
        let copies = Rates { operations_per_s: None, ..slow };
        let (ln, sd) = ratio(("l40s-48g", &copies), ("h100-80g", &fast), "mlp", false).unwrap();
        assert!((ln.exp() - 3.0).abs() < 1e-9 && sd > COMPUTING_SD, "{ln} {sd}");
        assert_eq!(ratio(("l40s-48g", &Rates::default()), ("h100-80g", &fast), "mlp", false), None);
        assert_eq!(ratio(("4xl40s-48g", &slow), ("h100-80g", &fast), "mlp", false), None, "groups of other sizes");
        assert!(ratio(("4xl40s-48g", &slow), ("4xh100-80g", &fast), "mlp", false).is_some());
    }
}
