//! Statistics that a stall of one work, or of one iteration, does not move.

/// Scale of the median absolute deviation that makes it the standard deviation of a normal distribution.
pub(crate) const MAD_TO_SD: f64 = 1.4826;
/// Standard deviation of a median over that of a mean, for normal values.
pub(crate) const MEDIAN_SD: f64 = 1.2533;

/// Middle value, the mean of both for an even count; none of nothing. Values are finite.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let even = values.len().is_multiple_of(2);
    let (below, &mut high, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    match below.iter().copied().max_by(f64::total_cmp) {
        Some(low) if even => Some(low.midpoint(high)),
        _ => Some(high),
    }
}

/// The value that half of the others are not below; none of nothing.
pub(crate) fn lower_median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// Degrees of freedom that works are taken to have: heavy tails.
const FREEDOM: f64 = 4.0;
/// Rounds of [`location`]; the last ones move nothing that matters.
const LOCATION_ROUNDS: usize = 6;
/// Standard deviation of [`location`] over `scale` and the root of the count, for so heavy tails; a little more for few
/// values.
pub(crate) const LOCATION_SD: f64 = 1.12;

/// Where values lie that are spread by `scale` (as [`scale_around`] tells it): the likeliest centre of Student's t of 4
/// degrees of freedom, nearest to the median. A tenth sharper than the median, and no more moved by a stall.
pub(crate) fn location(values: &mut [f64], scale: f64) -> Option<f64> {
    let mut centre = median(values)?;
    let scale = scale.max(f64::MIN_POSITIVE.sqrt());
    for _ in 0..LOCATION_ROUNDS {
        let (sum, weight) = values.iter().fold((0.0, 0.0), |(sum, weight), value| {
            let of = (FREEDOM + ((value - centre) / scale).powi(2)).recip();
            (sum + of * (value - centre), weight + of)
        });
        if weight > 0.0 {
            centre += sum / weight;
        }
    }
    Some(centre)
}

/// Standard deviation by the median absolute deviation around `centre`; none of nothing.
pub(crate) fn scale_around(values: &[f64], centre: f64) -> Option<f64> {
    median(&mut values.iter().map(|value| (value - centre).abs()).collect::<Vec<_>>()).map(|mad| MAD_TO_SD * mad)
}

/// By how much the variance of `count` values is above the expected 1, as `scale` tells (by [`scale_around`]): 0 where
/// chance alone makes it so.
pub(crate) fn beyond_chance(scale: f64, count: usize) -> f64 {
    // Twice the standard deviation of such a scale: 1.17 over the root of the count.
    let chance = 1.0 + 2.34 / (count.max(1) as f64).sqrt();
    if scale > chance { scale.powi(2) - 1.0 } else { 0.0 }
}

/// Smallest value whose weight and that of all below it reach half of the total; none without positive weight.
pub(crate) fn weighted_median(values: &mut [(f64, f64)]) -> Option<f64> {
    values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let half = values.iter().map(|value| value.1).sum::<f64>() / 2.0;
    let mut below = 0.0;
    values
        .iter()
        .find(|value| {
            below += value.1;
            value.1 > 0.0 && below >= half
        })
        .map(|value| value.0)
}

/// Standard deviations within which a residual counts in full.
pub(crate) const BEND: f64 = 2.0;

/// Huber's weight of a residual in units of its standard deviation: 1 near 0, falling as 1/|z| behind [`BEND`].
pub(crate) fn huber(z: f64) -> f64 {
    if z.abs() <= BEND { 1.0 } else { BEND / z.abs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles() {
        for (mut values, middle, lower) in [
            (vec![], None, None),
            (vec![3.0], Some(3.0), Some(3.0)),
            (vec![1.0, 2.0], Some(1.5), Some(1.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0), Some(2.0)),
            (vec![4.0, 1.0, 3.0, 2.0], Some(2.5), Some(2.0)),
        ] {
            assert_eq!(median(&mut values.clone()), middle);
            assert_eq!(lower_median(&mut values), lower);
        }
        assert_eq!(weighted_median(&mut [(1.0, 1.0), (2.0, 1.0), (9.0, 5.0)]), Some(9.0));
        assert_eq!(weighted_median(&mut [(1.0, 0.0)]), None);
        assert_eq!(scale_around(&[1.0, 2.0, 3.0], 2.0), Some(MAD_TO_SD));
        assert_eq!((location(&mut [], 1.0), location(&mut [3.0], 0.0)), (None, Some(3.0)));
        let far = location(&mut [0.9, 1.0, 1.1, 1.0, 1e6], 0.1).expect("there are values");
        assert!((far - 1.0).abs() < 1e-3, "{far}");
    }
}
